"""Where jotd means to differ from etcd, or etcd does not survive the question (README.md).

These run against jotd alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from kvstore.pb import kv_pb2 as kv
from kvstore.pb import rpc_pb2 as rpc
from tests import peers
from tests.differential.conftest import subject_is_etcd
from tests.differential.strategies import wrap
from tests.differential.watching import PROGRESS, create
from tests.differential.wire import delimited, nested_txns, varint
from tests.oracle.client import Client

INVALID, INTERNAL, OUT_OF_RANGE, UNIMPLEMENTED = 3, 13, 11, 12
TXN = "/etcdserverpb.KV/Txn"

pytestmark = pytest.mark.skipif(subject_is_etcd(), reason="about jotd alone")


@pytest.fixture(scope="module")
def server(start_subject: Callable[[], peers.Process]) -> Iterator[peers.Process]:
    with start_subject() as process:
        yield process


@pytest.fixture
def jotd(server: peers.Process) -> Iterator[Client]:
    with Client(server.endpoint) as client:
        client.call("KV.DeleteRange", rpc.DeleteRangeRequest(key=b"\0", range_end=b"\0"))
        yield client
        assert server.alive


def put(client: Client, key: bytes, value: bytes = b"v") -> int:
    answer = client.call("KV.Put", rpc.PutRequest(key=key, value=value))
    assert answer.ok
    return int(answer.message.header.revision)


def everything(client: Client) -> rpc.RangeResponse:
    answer = client.call("KV.Range", rpc.RangeRequest(key=b"\0", range_end=b"\0"))
    assert answer.ok
    assert isinstance(answer.message, rpc.RangeResponse)
    return answer.message


def txn(*ops: object) -> rpc.TxnRequest:
    return rpc.TxnRequest(success=[wrap(op) for op in ops])  # type: ignore[arg-type]


def doomed() -> dict[str, rpc.TxnRequest]:
    """Each passes etcd's check and panics in execution."""
    delete = rpc.DeleteRangeRequest(key=b"k1", range_end=b"\0")
    no_value = rpc.PutRequest(key=b"k2", ignore_value=True)
    no_lease = rpc.PutRequest(key=b"k2", value=b"x", ignore_lease=True)
    other = rpc.PutRequest(key=b"a", value=b"written first")
    return {
        "ignore_value": txn(delete, no_value),
        "ignore_lease": txn(delete, no_lease),
        "after a write": txn(other, delete, no_value),
        "nested": txn(other, txn(delete), txn(txn(no_value))),
        "in an else": rpc.TxnRequest(
            compare=[rpc.Compare(key=b"k1", version=99)], failure=txn(delete, no_lease).success
        ),
    }


@pytest.mark.parametrize("name", doomed())
def test_transactions_that_fail_half_way(jotd: Client, name: str) -> None:
    """Nothing of them is written, and the process lives."""
    for key in (b"k1", b"k2", b"k3"):
        put(jotd, key)
    before = everything(jotd)
    answer = jotd.call("KV.Txn", doomed()[name])
    assert (answer.code, answer.text) == (INVALID, "etcdserver: key not found")
    assert everything(jotd) == before


def test_alarm_actions_that_do_not_exist(jotd: Client) -> None:
    for action in (3, 9, -1):
        assert jotd.call("Maintenance.Alarm", rpc.AlarmRequest(action=action)).code == INVALID
    assert not jotd.call("Maintenance.Alarm", rpc.AlarmRequest()).message.alarms


@pytest.mark.parametrize("depth", [60, 100, 127, 128, 4990])
def test_deep_transactions_are_refused(jotd: Client, depth: int) -> None:
    """etcd takes 127 levels; protobuf's parser takes about 50."""
    before = everything(jotd)
    answer = jotd.raw(TXN, nested_txns(depth))
    assert (answer.code, answer.text) == (
        INTERNAL,
        "grpc: error unmarshalling request: proto: exceeded maximum recursion depth",
    )
    assert everything(jotd) == before


def test_depth_that_is_promised(jotd: Client) -> None:
    before = everything(jotd).header.revision
    assert jotd.raw(TXN, nested_txns(45)).ok
    assert everything(jotd).header.revision == before + 1


def test_all_operations_count(jotd: Client) -> None:
    """etcd's limit is for each path; here there is one for the whole transaction too."""
    wide = [txn(*[rpc.PutRequest(key=b"%d/%d" % (n, m)) for m in range(64)]) for n in range(64)]
    before = everything(jotd)
    answer = jotd.call("KV.Txn", txn(*wide))
    assert (answer.code, answer.text) == (
        INVALID,
        "etcdserver: too many operations in txn request",
    )
    assert everything(jotd) == before
    assert jotd.call("KV.Txn", txn(*wide[:60])).ok
    assert everything(jotd).count == 60 * 64


@pytest.mark.parametrize("target", [1, 2, 3, 4])
def test_streams_without_order_have_every_key_once(jotd: Client, target: int) -> None:
    for n in range(40):
        put(jotd, b"k%02d" % n, b"%02d" % (99 - n))
    request = rpc.RangeRequest(key=b"k", range_end=b"l", sort_target=target)
    answer = jotd.stream("KV.RangeStream", request)
    assert answer.ok
    kvs = [one for chunk in answer.messages for one in chunk.range_response.kvs]
    assert kvs == list(everything(jotd).kvs)
    assert answer.messages[-1].range_response.count == 40


def test_previous_value_at_the_compacted_revision(jotd: Client) -> None:
    put(jotd, b"a", b"old")
    at = put(jotd, b"a", b"new")
    deleted = jotd.call("KV.DeleteRange", rpc.DeleteRangeRequest(key=b"a"))
    for border in (at, deleted.message.header.revision):
        assert jotd.call("KV.Compact", rpc.CompactionRequest(revision=border, physical=True)).ok
        with jotd.open("Watch.Watch") as stream:
            stream.send(
                create(rpc.WatchCreateRequest(key=b"a", start_revision=border, prev_kv=True))
            )
            assert stream.next().created
            first = stream.next().events[0]
        assert first.kv.mod_revision == border
        expected = b"old" if border == at else b"new"
        assert first.prev_kv.value == expected
        assert (first.type == kv.Event.DELETE) == (border != at)


def test_hash_at_a_compaction(jotd: Client) -> None:
    """Computed anew, whatever was compacted when: equal histories have equal hashes (I5)."""
    first = put(jotd, b"a", b"1")
    second = put(jotd, b"a", b"2")

    def ask(revision: int) -> rpc.HashKVResponse:
        answer = jotd.call("Maintenance.HashKV", rpc.HashKVRequest(revision=revision))
        assert answer.ok, answer
        assert isinstance(answer.message, rpc.HashKVResponse)
        return answer.message

    assert jotd.call("KV.Compact", rpc.CompactionRequest(revision=first)).ok
    assert ask(first).compact_revision == ask(first).hash_revision == first
    assert jotd.call("KV.Compact", rpc.CompactionRequest(revision=second)).ok
    assert ask(second).hash == ask(0).hash
    assert ask(second).compact_revision == second
    gone = jotd.call("Maintenance.HashKV", rpc.HashKVRequest(revision=first))
    assert gone.code == OUT_OF_RANGE


def test_numbers_above_64_bit(jotd: Client) -> None:
    """The parser drops what is above; no write may come of it that was not meant."""
    before = everything(jotd)
    lease = b"\x18" + b"\xff" * 9 + b"\x02"
    answer = jotd.raw("/etcdserverpb.KV/Put", delimited(1, b"u") + lease)
    assert answer.code in (5, INTERNAL)
    assert everything(jotd) == before
    # Ten bytes are as long as a number gets.
    assert jotd.raw("/etcdserverpb.KV/Put", b"\x0a" + varint(1 << 70)).code == INTERNAL


def test_progress_beside_an_overtaken_watch(jotd: Client) -> None:
    """In etcd one such watch silences the stream's progress for ever."""
    put(jotd, b"a")
    at = put(jotd, b"a")
    assert jotd.call("KV.Compact", rpc.CompactionRequest(revision=at)).ok
    with jotd.open("Watch.Watch") as stream:
        stream.send(create(rpc.WatchCreateRequest(key=b"a", start_revision=1, watch_id=7)))
        stream.send(create(rpc.WatchCreateRequest(key=b"b", watch_id=8)))
        seen = [stream.next() for _ in range(3)]
        assert [one.watch_id for one in seen if one.compact_revision == at] == [7]
        stream.send(PROGRESS)
        answer = stream.next()
        assert (answer.watch_id, answer.header.revision) == (-1, at)


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("v3lockpb.Lock/Lock", "unknown service v3lockpb.Lock"),
        ("v3electionpb.Election/Campaign", "unknown service v3electionpb.Election"),
        ("etcdserverpb.Auth/AuthEnable", "unknown service etcdserverpb.Auth"),
        (
            "etcdserverpb.Maintenance/Snapshot",
            "unknown method Snapshot for service etcdserverpb.Maintenance",
        ),
        (
            "etcdserverpb.Maintenance/Downgrade",
            "unknown method Downgrade for service etcdserverpb.Maintenance",
        ),
        (
            "etcdserverpb.Cluster/MemberAdd",
            "unknown method MemberAdd for service etcdserverpb.Cluster",
        ),
    ],
)
def test_what_is_not_here(jotd: Client, path: str, text: str) -> None:
    """As an etcd answers that was built without it."""
    answer = jotd.raw(f"/{path}", b"")
    assert (answer.code, answer.text) == (UNIMPLEMENTED, text)
