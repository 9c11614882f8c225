"""Flags of `jotd serve` that change what clients see: the store's answers, and a real etcd's with
the same flags, are equal field by field. Both are also held to what they should be, for where
there is no etcd.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from kvstore.pb import rpc_pb2 as rpc
from tests import peers
from tests.differential.wire import put_of_length
from tests.e2e.conftest import STORE
from tests.hostile import converse, http2
from tests.oracle.client import Client
from tests.oracle.plain import comparable

T = TypeVar("T")
Servers = dict[str, peers.Process]
Series = dict[tuple[str, ...], float]

TXN_OPS, REQUEST_BYTES, STREAMS = 3, 10_000, 4
MESSAGE_BYTES = REQUEST_BYTES + (512 << 10)
FLAGS = [
    f"--max-txn-ops={TXN_OPS}",
    f"--max-request-bytes={REQUEST_BYTES}",
    f"--max-concurrent-streams={STREAMS}",
    "--auto-compaction-mode=periodic",
    "--auto-compaction-retention=1s",
    "--metrics=extensive",
    # Nothing is as quick as that.
    "--warning-apply-duration=1ns",
]
#: For those whose effect is also seen by its absence.
OTHER_FLAGS = ["--metrics=basic", "--warning-apply-duration=1h"]

TABLE = """
[[shard]]
name = "hot"
prefixes = ["/hot/", "/cold/warm/"]

[[shard]]
name = "small"
prefixes = ["/small/"]
budget-bytes = 2000
"""

SECONDS_MAX = 60.0
WATCH, RANGE, PUT = "/etcdserverpb.Watch/Watch", "/etcdserverpb.KV/Range", "/etcdserverpb.KV/Put"
OK, INVALID, EXHAUSTED, OUT_OF_RANGE, UNAVAILABLE = 0, 3, 8, 11, 14
MAX_CONCURRENT_STREAMS, REFUSED_STREAM = 3, 7


def start(base: Path, flags: list[str], *own: str, **how: Any) -> Iterator[Servers]:
    """The store, and beside it an etcd that knows these flags, if there is one. `own`: the store's
    flags that etcd does not have.
    """
    with ExitStack() as stack:
        if STORE == "etcd":
            servers = {"store": peers.start_etcd(base, flags, **how)}
        else:
            servers = {"store": peers.start_jotd(base / "jotd", [*flags, *own], **how)}
        stack.enter_context(servers["store"])
        if (peers.version("etcd") or ()) >= (3, 6):
            servers["etcd"] = stack.enter_context(peers.start_etcd(base, flags, **how))
        yield servers


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    base = tmp_path_factory.mktemp("flags")
    table = base / "table.toml"
    table.write_text(TABLE)
    yield from start(base, FLAGS, f"--partitions={table}", own_http=True)


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    yield from start(tmp_path_factory.mktemp("others"), OTHER_FLAGS)


def all_say(servers: Servers, look: Callable[[peers.Process], T]) -> T:
    """What is seen at each server, which has to be the same."""
    seen = {name: look(server) for name, server in servers.items()}
    assert all(one == seen["store"] for one in seen.values()), seen
    return seen["store"]


def call(server: peers.Process, *requests: Any) -> list[dict[str, Any]]:
    """The answers to requests of the service KV, without what is a server's own."""
    answers = []
    with Client(server.endpoint) as client:
        for request in requests:
            method = "KV." + type(request).__name__.removesuffix("Request")
            answers.append(comparable(method, request, client.call(method, request)))
    return answers


def verdicts(answers: list[dict[str, Any]]) -> list[tuple[int, str]]:
    return [(answer["code"], answer.get("text", "")) for answer in answers]


def put(key: bytes, value: bytes = b"v") -> rpc.PutRequest:
    return rpc.PutRequest(key=key, value=value)


def txn(*success: Any, **more: Any) -> rpc.TxnRequest:
    operations = [
        rpc.RequestOp(request_txn=one)
        if isinstance(one, rpc.TxnRequest)
        else rpc.RequestOp(request_put=one)
        for one in success
    ]
    return rpc.TxnRequest(success=operations, **more)


def scrape(url: str | None) -> dict[str, Series]:
    """All series of /metrics, by their names and then by their labels' values."""
    assert url is not None
    text = httpx.get(url + "/metrics", trust_env=False, timeout=SECONDS_MAX).text
    found: dict[str, Series] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = tuple(value for _, value in sorted(sample.labels.items()))
            found.setdefault(sample.name, {})[labels] = sample.value
    return found


def test_operations_of_a_transaction(servers: Servers) -> None:
    puts = [put(b"txn/%d" % n) for n in range(TXN_OPS + 1)]
    compares = [rpc.Compare(key=b"txn/%d" % n) for n in range(TXN_OPS + 1)]
    too_many = (INVALID, "etcdserver: too many operations in txn request")
    cases = [
        (txn(*puts[:-1]), (OK, "")),
        (txn(*puts), too_many),
        (txn(failure=txn(*puts).success), too_many),
        (txn(compare=compares[:-1]), (OK, "")),
        (txn(compare=compares), too_many),
        # What is inside has what its path has left.
        (txn(txn(*puts[:-2])), (OK, "")),
        (txn(txn(*puts[:-1])), too_many),
    ]
    answers = all_say(servers, lambda one: call(one, *(request for request, _ in cases)))
    assert verdicts(answers) == [verdict for _, verdict in cases]


def test_bytes_of_a_request(servers: Servers) -> None:
    too_large = (INVALID, "etcdserver: request is too large")
    over = MESSAGE_BYTES + 1
    beyond = (EXHAUSTED, f"grpc: received message larger than max ({over} vs. {MESSAGE_BYTES})")
    long_key = rpc.RangeRequest(key=b"k" * REQUEST_BYTES).SerializeToString()
    cases = [
        # What etcd adds to a request in its log is some bytes, of its own number.
        (PUT, put_of_length(REQUEST_BYTES - 100), (OK, "")),
        (PUT, put_of_length(REQUEST_BYTES), too_large),
        (PUT, put_of_length(MESSAGE_BYTES), too_large),
        (PUT, put_of_length(over), beyond),
        # Nothing of this goes into the log.
        (RANGE, long_key, (OK, "")),
    ]

    def look(server: peers.Process) -> list[tuple[int, str]]:
        with Client(server.endpoint) as client:
            answers = [client.raw(path, body) for path, body, _ in cases]
        return [(answer.code, answer.text) for answer in answers]

    assert all_say(servers, look) == [verdict for _, _, verdict in cases]


def read_frame(sock: socket.socket) -> tuple[int, bytes, int]:
    """The next frame: its kind, payload and stream."""

    def exactly(count: int) -> bytes:
        got = b""
        while len(got) < count:
            part = sock.recv(count - len(got))
            assert part, "the connection was closed"
            got += part
        return got

    head = exactly(9)
    payload = exactly(int.from_bytes(head[:3], "big"))
    return head[3], payload, int.from_bytes(head[5:], "big")


def test_streams_of_a_connection_by_hand(servers: Servers) -> None:
    """How many may be open is said at once, and one more is refused."""
    watch = rpc.WatchRequest(create_request=rpc.WatchCreateRequest(key=b"w")).SerializeToString()
    headers = converse.call_headers(WATCH.encode())

    def look(server: peers.Process) -> tuple[int, int]:
        with socket.create_connection(("127.0.0.1", server.port), timeout=SECONDS_MAX) as sock:
            sock.sendall(http2.PREFACE + http2.settings())
            kind, payload, _ = read_frame(sock)
            assert kind == http2.SETTINGS
            said = dict(struct.iter_unpack(">HI", payload))
            sock.sendall(http2.frame(http2.SETTINGS, http2.ACK, 0))
            for stream in range(1, 2 * STREAMS, 2):
                sock.sendall(
                    http2.frame(http2.HEADERS, http2.END_HEADERS, stream, headers)
                    + http2.frame(http2.DATA, 0, stream, http2.message(watch))
                )
                while read_frame(sock)[::2] != (http2.DATA, stream):
                    pass
            one_more = 2 * STREAMS + 1
            sock.sendall(http2.frame(http2.HEADERS, http2.END_HEADERS, one_more, headers))
            while True:
                kind, payload, stream = read_frame(sock)
                if kind == http2.RST_STREAM and stream == one_more:
                    return said[MAX_CONCURRENT_STREAMS], int.from_bytes(payload, "big")

    assert all_say(servers, look) == (STREAMS, REFUSED_STREAM)


def test_streams_of_a_connection(servers: Servers) -> None:
    """A client that keeps to it waits for a place, and others do not wait for it."""
    watch = rpc.WatchRequest(create_request=rpc.WatchCreateRequest(key=b"w"))
    get = rpc.RangeRequest(key=b"w")
    for server in servers.values():
        with Client(server.endpoint) as client, ExitStack() as stack:
            streams = [stack.enter_context(client.open("Watch.Watch")) for _ in range(STREAMS)]
            for stream in streams:
                stream.send(watch)
                assert stream.next().created
            path = client.channel.unary_unary(RANGE)
            waiting = path.future(get.SerializeToString(), timeout=SECONDS_MAX)
            with Client(server.endpoint) as another:
                assert another.call("KV.Range", get).ok
            assert not waiting.done()
            streams[0].close()
            assert rpc.RangeResponse.FromString(waiting.result()).header.revision


@pytest.mark.slow
def test_history_that_is_kept(servers: Servers) -> None:
    """What is older than the retention goes by itself; what is current stays."""
    last = all_say(servers, lambda one: call(one, put(b"old", b"1"), put(b"old", b"2")))[-1]
    revision = last["message"]["header"]["revision"]
    compacted = (OUT_OF_RANGE, "etcdserver: mvcc: required revision has been compacted")

    def look(server: peers.Process) -> list[Any]:
        older, current = (
            rpc.RangeRequest(key=b"old", revision=at) for at in (revision - 1, revision)
        )
        deadline = time.monotonic() + SECONDS_MAX
        while call(server, older)[0]["code"] == OK:
            assert time.monotonic() < deadline, "nothing was compacted"
            time.sleep(0.05)
        watch = rpc.WatchCreateRequest(key=b"old", start_revision=1)
        with Client(server.endpoint) as client, client.open("Watch.Watch") as stream:
            stream.send(rpc.WatchRequest(create_request=watch))
            told = stream.until(lambda one: one.canceled)
        return [
            *call(server, older, current),
            *((one.created, one.canceled, one.compact_revision, one.cancel_reason) for one in told),
        ]

    refused, kept, *_, canceled = all_say(servers, look)
    assert verdicts([refused, kept]) == [compacted, (OK, "")]
    assert kept["message"]["kvs"][0]["value"] == b"2"
    assert canceled[1:3] == (True, revision)


def test_an_address_of_its_own_for_http(servers: Servers) -> None:
    """It serves what clients' addresses serve otherwise, and no gRPC; those serve no HTTP."""

    def get(url: str | None, path: str) -> tuple[int, str, str]:
        answer = httpx.get(f"{url}{path}", trust_env=False, timeout=SECONDS_MAX)
        return answer.status_code, answer.headers.get("content-type", ""), answer.text

    paths = {"/health": 200, "/livez": 200, "/readyz": 200, "/nope": 404}
    seen = all_say(servers, lambda one: [get(one.http_url, path) for path in paths])
    assert [status for status, _, _ in seen] == list(paths.values())
    assert all_say(servers, lambda one: get(one.http_url, "/version")[:2])[0] == 200
    for server in servers.values():
        assert "etcd_server_has_leader" in scrape(server.http_url)
        for path in ("/health", "/livez", "/version", "/metrics"):
            try:
                status, _, text = get(server.url, path)
            except httpx.TransportError:
                # What etcd does.
                continue
            assert (status, text) == (404, "404 page not found\n"), (server.name, path)

    def by_grpc(server: peers.Process) -> int:
        assert server.http_url is not None
        with Client(server.http_url.removeprefix("http://")) as client:
            return client.call("KV.Range", rpc.RangeRequest(key=b"a")).code

    assert all_say(servers, by_grpc) == UNAVAILABLE


@pytest.mark.slow
def test_extensive_metrics(servers: Servers, others: Servers) -> None:
    """Histograms of every method, with etcd's labels and bounds, that count each call once."""
    name = "grpc_server_handling_seconds"
    put_calls = ("Put", "etcdserverpb.KV", "unary")
    requests = [put(b"metrics"), put(b""), put(b"metrics")]

    def look(server: peers.Process) -> tuple[float, set[tuple[str, ...]]]:
        before = scrape(server.http_url)
        call(server, *requests)
        after = scrape(server.http_url)
        counts = [found[f"{name}_count"].get(put_calls, 0.0) for found in (before, after)]
        buckets = {labels for labels in after[f"{name}_bucket"] if labels[:2] == put_calls[:2]}
        assert after[f"{name}_sum"].keys() == after[f"{name}_count"].keys()
        return counts[1] - counts[0], buckets

    counted, buckets = all_say(servers, look)
    assert counted == len(requests)
    assert len(buckets) == 12
    # etcd has methods that jotd has not; those of jotd are etcd's, kinds included.
    series = {key: scrape(one.http_url)[f"{name}_count"].keys() for key, one in servers.items()}
    assert all(series["store"] <= one for one in series.values()), series
    for server in others.values():
        found = scrape(server.metrics_url)
        assert "grpc_server_handled_total" in found
        assert not [series for series in found if series.startswith(name)]


@pytest.mark.slow
def test_what_counts_as_a_slow_apply(servers: Servers, others: Servers) -> None:
    for server in (*servers.values(), *others.values()):
        call(server, put(b"slow"), put(b"slow"))
    slow = "etcd_server_slow_apply_total"
    assert all_say(servers, lambda one: scrape(one.metrics_url)[slow][()] > 0)
    assert all_say(others, lambda one: scrape(one.metrics_url)[slow][()]) == 0


@pytest.mark.skipif(STORE == "etcd", reason="etcd has no shards")
def test_partitions(servers: Servers) -> None:
    """Keys lie in the shards that the file says, and a client sees nothing of that."""
    keys = [b"/cold/a", b"/cold/warm/a", b"/cold/z", b"/hot", b"/hot/a", b"/registry/pods/a"]
    end = b"/smallest"
    requests = [put(key, key) for key in (*keys, b"/small/a")]
    requests += [
        txn(put(b"/hot/a", b"2"), put(b"/cold/a", b"2"), put(b"/small/a", b"2")),
        rpc.RangeRequest(key=b"/", range_end=end),
        rpc.RangeRequest(key=b"/cold/", range_end=b"/hot/b", limit=3),
        rpc.RangeRequest(key=b"/", range_end=end, sort_order=rpc.RangeRequest.DESCEND),
        rpc.DeleteRangeRequest(key=b"/cold/warm/a", range_end=b"/cold/zz", prev_kv=True),
        rpc.RangeRequest(key=b"/", range_end=end, count_only=True),
    ]
    answers = all_say(servers, lambda one: call(one, *requests))
    assert {answer["code"] for answer in answers} == {OK}
    assert answers[-1]["message"]["count"] == len(keys) + 1 - 2
    store = servers["store"]
    shards = scrape(store.metrics_url)["jotd_shard_keys"]
    assert {name for (name,) in shards} == {"default", "hot", "small"}
    # A deleted key is one until it is compacted.
    assert shards["hot",] in (2, 3) and shards["small",] == 1
    # What is over a shard's budget is refused there and nowhere else. What a shard of that size
    # never has room for is no alarm.
    big = b"x" * 3000
    refused = call(store, put(b"/small/b", big), txn(put(b"/small/b", big)))
    assert verdicts(refused) == [(EXHAUSTED, "etcdserver: mvcc: database space exceeded")] * 2
    assert verdicts(all_say(servers, lambda one: call(one, put(b"/hot/b", big)))) == [(OK, "")]
    assert httpx.get(f"{store.http_url}/health", trust_env=False).status_code == 200
    # Two thirds of its budget: there is room for one.
    part = b"x" * 1000
    assert verdicts(call(store, put(b"/small/b", part))) == [(OK, "")]
    assert verdicts(call(store, put(b"/small/c", part))) == verdicts(refused[:1])
    unhealthy = httpx.get(f"{store.http_url}/health", trust_env=False)
    assert (unhealthy.status_code, unhealthy.json()["reason"]) == (503, "ALARM NOSPACE")
    assert verdicts(call(store, rpc.DeleteRangeRequest(key=b"/small/b"), put(b"/hot/c"))) == [
        (OK, ""),
        (OK, ""),
    ]
