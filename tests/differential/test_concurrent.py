"""Requests that jotd has in flight at the same time, replayed on an etcd one after the other.

The store evaluates a request with sight of writes that are not committed yet (R3, R4). Whatever
comes of that must be explained by *one* order: that of the revisions in the answers, in which a
request that wrote nothing stands behind the write whose revision it reports (I2, I3). Replayed on
an etcd in this order, every answer is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from kvstore.pb import rpc_pb2 as rpc
from tests import peers
from tests.differential import strategies as some
from tests.differential.conftest import oracle_version, subject_is_etcd
from tests.oracle.client import Answer, Client
from tests.oracle.pair import Divergence, Pair
from tests.property.profiles import LONG

ROUNDS = 30
SEEDS = 200 if LONG else 8

#: Never deleted, so that a put may rely on what is there.
KEPT = [b"/registry/pods/kept", b"/registry/minions/kept", b"/registry/kept"]
#: Few, so that requests meet.
HOT = [b"/registry/pods/a", b"/registry/pods/b", b"/registry/minions/a", b"/registry/services/a"]


def _put(s: some.Source) -> rpc.PutRequest:
    request = rpc.PutRequest(key=s.choice(HOT + KEPT), value=some.value(s), prev_kv=True)
    if request.key in KEPT and some.maybe(s, 2):
        request.ClearField("value")
        request.ignore_value = True
    elif request.key in KEPT and some.maybe(s, 2):
        request.ignore_lease = True
    else:
        request.lease = s.choice([0, 0, 1, 2])
    return request


def _delete(s: some.Source) -> rpc.DeleteRangeRequest:
    request = rpc.DeleteRangeRequest(key=s.choice(HOT), prev_kv=True)
    if some.maybe(s, 3):
        # As far as the kept keys, over two shards or one.
        request.key, request.range_end = s.choice(
            [
                (b"/registry/pods/", b"/registry/pods/kept"),
                (b"/registry/minions/a", b"/registry/minions/kept"),
                (b"/registry/minions/kept0", b"/registry/pods/b"),
            ]
        )
    return request


def _get(s: some.Source) -> rpc.RangeRequest:
    if some.maybe(s, 2):
        return rpc.RangeRequest(key=s.choice(HOT + KEPT))
    return rpc.RangeRequest(key=b"/registry/", range_end=b"/registry0", limit=s.integer(0, 3))


def _compare(s: some.Source) -> rpc.Compare:
    """Guesses at the state that other requests are about to make."""
    compare = rpc.Compare(key=s.choice(HOT), result=s.choice([0, 0, 1, 2, 3]))
    kind = s.integer(1, 4)
    if kind == 1:
        compare.target, compare.mod_revision = rpc.Compare.MOD, 0
    elif kind == 2:
        compare.target, compare.version = rpc.Compare.VERSION, s.integer(0, 4)
    elif kind == 3:
        compare.target, compare.value = rpc.Compare.VALUE, some.value(s)
    else:
        compare.target, compare.lease = rpc.Compare.LEASE, s.choice([0, 1, 2])
    if some.maybe(s, 8):
        compare.range_end = b"/registry/z"
    return compare


def _optimistic(s: some.Source) -> rpc.TxnRequest:
    """As kube-apiserver writes: one key, one compare, maybe a read of what is there instead."""
    key = s.choice(HOT)
    request = rpc.TxnRequest(compare=[_compare(s)])
    request.compare[0].key = key
    if some.maybe(s, 3):
        request.success.append(some.wrap(rpc.DeleteRangeRequest(key=key)))
    else:
        request.success.append(some.wrap(rpc.PutRequest(key=key, value=some.value(s))))
    if some.maybe(s, 2):
        request.failure.append(some.wrap(rpc.RangeRequest(key=key)))
    return request


def _several(s: some.Source) -> rpc.TxnRequest:
    """Several keys and shards, ranges, a level below."""
    free = s.shuffled(HOT)
    inner = rpc.TxnRequest(
        compare=[_compare(s)],
        success=[some.wrap(rpc.PutRequest(key=free.pop(), value=b"below", prev_kv=True))],
        failure=[some.wrap(rpc.DeleteRangeRequest(key=free.pop()))],
    )
    request = rpc.TxnRequest(
        compare=[_compare(s) for _ in range(s.integer(0, 2))],
        success=[some.wrap(_get(s)), some.wrap(inner), some.wrap(_get(s))],
        failure=[some.wrap(rpc.PutRequest(key=free.pop(), lease=1)), some.wrap(_get(s))],
    )
    return request


def _request(s: some.Source) -> tuple[str, Any]:
    kind = s.choice(["put", "put", "put", "get", "get", "delete", "optimistic", "optimistic", "t"])
    if kind == "put":
        return "KV.Put", _put(s)
    if kind == "get":
        return "KV.Range", _get(s)
    if kind == "delete":
        return "KV.DeleteRange", _delete(s)
    return "KV.Txn", _optimistic(s) if kind == "optimistic" else _several(s)


def _wrote(message: Any) -> bool:
    if isinstance(message, rpc.PutResponse):
        return True
    if isinstance(message, rpc.DeleteRangeResponse):
        return message.deleted > 0
    if isinstance(message, rpc.TxnResponse):
        return any(
            _wrote(getattr(one, one.WhichOneof("response") or "")) for one in message.responses
        )
    return False


def in_order(sent: Sequence[tuple[str, Any, Answer]]) -> Iterator[tuple[str, Any, Answer]]:
    """By revision; behind each write those that saw it and wrote nothing."""
    yield from sorted(
        sent, key=lambda one: (one[2].message.header.revision, not _wrote(one[2].message))
    )


def _round(pair: Pair, clients: Sequence[Client], s: some.Source) -> None:
    requests = [_request(s) for _ in range(s.integer(2, 40))]
    before = pair.revision
    if before > pair.compacted and some.maybe(s, 3):
        compaction = rpc.CompactionRequest(revision=before, physical=some.maybe(s, 2))
        requests.insert(s.integer(0, len(requests)), ("KV.Compact", compaction))
    pending = [
        clients[n % len(clients)].start(method, request)
        for n, (method, request) in enumerate(requests)
    ]
    sent = [(*request, one.answer()) for request, one in zip(requests, pending, strict=True)]
    for method, request, answer in sent:
        if not answer.ok:
            pair.diverged([f"{method} {request}: {answer}"])
        if answer.message.header.revision < before:
            pair.diverged([f"{method} {request} was answered from before {before}: {answer}"])
    written = [one[2].message.header.revision for one in sent if _wrote(one[2].message)]
    if sorted(written) != list(range(before + 1, before + 1 + len(written))):
        pair.diverged([f"revisions of one round, from {before + 1} on: {sorted(written)}"])
    for method, request, answer in in_order(sent):
        pair.replay(method, request, answer)


@pytest.fixture(scope="module", params=["file", "memory"])
def journaled(
    request: pytest.FixtureRequest,
    start_oracle: Callable[[], peers.Process],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Pair]:
    """A pair whose subject has this journal; with `file`, requests wait for the disk together."""
    running: list[peers.Process] = []

    def start() -> tuple[str, str]:
        while running:
            running.pop().stop()
        running.append(start_oracle())
        if subject_is_etcd():
            running.append(start_oracle())
        else:
            base = Path(tmp_path_factory.mktemp("journaled"))
            running.append(peers.start_jotd(base / "jotd", journal=request.param))
        return running[0].endpoint, running[1].endpoint

    pair = Pair(start, oracle_version())
    yield pair
    pair.close()
    for process in running:
        process.stop()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_concurrent_requests(journaled: Pair) -> None:
    servers = journaled
    for seed in range(SEEDS):
        s = some.Seeded(seed)
        servers.reset()
        for lease in (1, 2):
            servers.call("Lease.LeaseGrant", rpc.LeaseGrantRequest(ID=lease, TTL=5000))
        for key in KEPT:
            servers.call("KV.Put", rpc.PutRequest(key=key, value=b"kept", lease=1))
        clients = [Client(servers.right.endpoint) for _ in range(3)]
        try:
            for _ in range(ROUNDS):
                _round(servers, clients, s)
        except Divergence as error:
            error.add_note(f"seed {seed}")
            raise
        finally:
            for client in clients:
                client.close()
        servers.call("KV.Range", rpc.RangeRequest(key=b"\0", range_end=b"\0"))
        servers.call("Maintenance.HashKV", rpc.HashKVRequest())


def test_an_order_that_explains_nothing_is_noticed(servers: Pair) -> None:
    """Negative control: an answer from an intermediate state."""
    servers.reset()
    key = b"/registry/pods/a"
    first = servers.right.call("KV.Put", rpc.PutRequest(key=key, value=b"1"))
    stale = servers.right.call("KV.Range", rpc.RangeRequest(key=key))
    second = servers.right.call("KV.Put", rpc.PutRequest(key=key, value=b"2"))
    stale.message.header.revision = second.message.header.revision
    put, get = ("KV.Put", rpc.PutRequest(key=key, value=b"1")), rpc.RangeRequest(key=key)
    again = ("KV.Put", rpc.PutRequest(key=key, value=b"2"))
    order = list(in_order([("KV.Range", get, stale), (*again, second), (*put, first)]))
    assert [one[2] for one in order] == [first, second, stale]
    with pytest.raises(Divergence):
        for method, request, answer in order:
            servers.replay(method, request, answer)
