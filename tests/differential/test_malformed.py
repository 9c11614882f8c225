"""Bytes that are no request, requests that are too long, and methods that do not exist.

Equal verdicts on both servers, nothing written, and both well afterwards.
"""

from __future__ import annotations

import pytest

from kvstore.pb import rpc_pb2 as rpc
from tests.differential.conftest import needs_oracle
from tests.differential.wire import delimited, nested_txns, put_of_length, tag, varint
from tests.oracle.client import Answer
from tests.oracle.pair import Pair

PUT, RANGE, TXN = "/etcdserverpb.KV/Put", "/etcdserverpb.KV/Range", "/etcdserverpb.KV/Txn"
OK, INVALID, EXHAUSTED, INTERNAL = 0, 3, 8, 13
GARBAGE = "grpc: error unmarshalling request: proto: cannot parse invalid wire-format data"
STREAM_GARBAGE = (
    "grpc: failed to unmarshal the received message: proto: cannot parse invalid wire-format data"
)

REQUEST_BYTES_MAX = 1536 * 1024
MESSAGE_BYTES_MAX = REQUEST_BYTES_MAX + 512 * 1024


def revision(pair: Pair) -> int:
    """The current revision, on both; also a request that a healthy server answers."""
    answer = pair.call("KV.Range", rpc.RangeRequest(key=b"\0", range_end=b"\0"))
    assert answer.ok
    return int(answer.message.header.revision)


KEY = delimited(1, b"u")
MALFORMED = {
    "nothing after a tag": b"\x0a",
    "cut short": b"\x0a\x05ab",
    "cut in a nested message": delimited(2, delimited(2, b"\x0a\x05a")),
    "wire type 6": b"\x0e",
    "wire type 7": b"\x0f",
    "field 0": b"\x00\x00",
    "field 0, delimited": b"\x02\x00",
    "a length of 2^64-1": b"\x0a" + varint((1 << 64) - 1),
    "a length of 2^63": b"\x0a" + varint(1 << 63),
    "a length of 2^31": b"\x0a" + varint(1 << 31) + b"x" * 100,
    "a length of 11 bytes": b"\x0a" + b"\xff" * 10 + b"\x01",
    "an open group": KEY + b"\xf3\x3f",
    "the end of no group": KEY + b"\xf4\x3f",
    "the end of another group": KEY + b"\xf3\x3f\xec\x3f",
    "a tag above 32 bit": b"\xff" * 6 + b"\x01\x01",
    "a field above 2^29-1": varint(1 << 32) + b"\x00",
    "an unfinished tag": KEY + b"\x80",
    "an unfinished number": KEY + b"\x18\x80\x80",
    "fixed64 cut short": KEY + tag(500, 1) + b"1234567",
    "fixed32 cut short": KEY + tag(500, 5) + b"123",
}


@needs_oracle((3, 7), "another protobuf parser")
@pytest.mark.parametrize("name", MALFORMED)
@pytest.mark.parametrize("path", [PUT, RANGE, TXN, "/etcdserverpb.KV/Compact"])
def test_malformed_requests(pair: Pair, path: str, name: str) -> None:
    before = revision(pair)
    answer = pair.raw(path, MALFORMED[name])
    if name != "cut in a nested message" or path == TXN:
        assert (answer.code, answer.text) == (INTERNAL, GARBAGE)
    assert revision(pair) == before


ODD_BUT_SOUND = {
    "an unknown field": KEY + delimited(1022, b"abc"),
    "an unknown group": KEY + b"\xf3\x3f\xf4\x3f",
    "a group with fields": KEY + b"\xf3\x3f" + delimited(1, b"q") + b"\xf4\x3f",
    "true as 2": KEY + b"\x20\x02",
    "true as 2^64-1": KEY + b"\x20" + varint((1 << 64) - 1),
    "a key twice": KEY + delimited(1, b"w"),
    "a key that is no text": delimited(1, b"\xff\xfe"),
    "a long form of a length": b"\x0a\x81\x00u",
    "a lease of -1": KEY + b"\x18" + varint((1 << 64) - 1),
    "fields backwards": delimited(2, b"value") + KEY,
    "a key as a number": b"\x08\x01",
    "a key as fixed32": b"\x0d\x01\x00\x00\x00",
    "an empty key": delimited(1, b""),
    "nothing at all": b"",
}


@needs_oracle((3, 7), "another protobuf parser")
@pytest.mark.parametrize("name", ODD_BUT_SOUND)
def test_odd_requests(pair: Pair, name: str) -> None:
    """What protobuf allows is taken as etcd takes it."""
    pair.raw(PUT, ODD_BUT_SOUND[name])
    revision(pair)


@needs_oracle((3, 7), "another protobuf parser")
def test_odd_transactions(pair: Pair) -> None:
    """Of a oneof given twice the last counts; the same one twice is merged."""
    one, other = delimited(1, b"one"), delimited(1, b"other")
    pair.raw(TXN, delimited(2, delimited(2, one) + delimited(3, other)))
    revision(pair)
    pair.raw(TXN, delimited(2, delimited(2, one) + delimited(2, delimited(2, b"value"))))
    revision(pair)
    pair.raw(TXN, delimited(2, b"") + delimited(2, delimited(2, one)))
    revision(pair)
    pair.raw(TXN, delimited(1, delimited(3, b"a") + delimited(64, b"b")) + delimited(3, b""))
    revision(pair)
    # An enum in more bits than it has.
    pair.raw(TXN, delimited(1, delimited(3, b"a") + b"\x10" + varint((1 << 64) - 3)))
    revision(pair)


@needs_oracle((3, 7), "another protobuf parser")
@pytest.mark.parametrize("method", ["KV.RangeStream", "Watch.Watch", "Lease.LeaseKeepAlive"])
def test_malformed_streams(pair: Pair, method: str) -> None:
    for client in (pair.left, pair.right):
        if method == "KV.RangeStream":
            end = client.stream(method, b"\x0a\x05a")
        else:
            with client.open(method) as stream:
                stream.send(b"\x0a\x05a")
                end = stream.next()
        assert isinstance(end, Answer)
        assert (end.code, end.text) == (INTERNAL, STREAM_GARBAGE)
    revision(pair)


@needs_oracle((3, 7), "another protobuf parser")
def test_text_that_is_no_text(pair: Pair) -> None:
    for body in (b"\x0a\x01\xff", b"\x0a\x03\xed\xa0\x80", b"\x0a\x02\xc0\x80"):
        answer = pair.raw("/grpc.health.v1.Health/Check", body)
        assert (answer.code, answer.text) == (
            INTERNAL,
            "grpc: error unmarshalling request: string field contains invalid UTF-8",
        )


@needs_oracle((3, 7), "another protobuf parser")
@pytest.mark.parametrize(
    "path",
    [
        "/etcdserverpb.KV/Nope",
        "/etcdserverpb.KV/put",
        "/etcdserverpb.KV/",
        "/etcdserverpb.Nope/Put",
        "/KV/Put",
        "/nope",
        "/",
        "//",
        "/etcdserverpb.KV/Put/",
        "/a/b/c",
        "/grpc.health.v1.Health/Nope",
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    ],
)
def test_unknown_methods(pair: Pair, path: str) -> None:
    assert pair.raw(path, b"").code == 12
    revision(pair)


def test_health(pair: Pair) -> None:
    for body in (b"", delimited(1, b""), delimited(1, b"nope"), delimited(1, b"etcdserverpb.KV")):
        left = pair.left.raw("/grpc.health.v1.Health/Check", body)
        assert left == pair.right.raw("/grpc.health.v1.Health/Check", body)


@pytest.mark.parametrize("depth", [1, 5, 10, 20, 23])
def test_deep_transactions(pair: Pair, depth: int) -> None:
    """Depths that every parser takes. Deeper ones: `test_deviations`."""
    before = revision(pair)
    assert pair.raw(TXN, nested_txns(depth)).ok
    assert revision(pair) == before + 1


@needs_oracle((3, 7), "another protobuf parser")
@pytest.mark.parametrize("depth", [5000, 20000])
def test_bottomless_transactions(pair: Pair, depth: int) -> None:
    before = revision(pair)
    answer = pair.raw(TXN, nested_txns(depth))
    assert (answer.code, answer.text) == (
        INTERNAL,
        "grpc: error unmarshalling request: proto: exceeded maximum recursion depth",
    )
    assert revision(pair) == before


def _largest_put(pair: Pair, side: int) -> int:
    """The length of the longest Put that a server takes, by bisection."""
    client = (pair.left, pair.right)[side]
    low, high = REQUEST_BYTES_MAX - 200, REQUEST_BYTES_MAX
    assert client.raw(PUT, put_of_length(low)).ok
    while high - low > 1:
        middle = (low + high) // 2
        if client.raw(PUT, put_of_length(middle)).ok:
            low = middle
        else:
            high = middle
    return low


@pytest.mark.slow
def test_request_limit(servers: Pair) -> None:
    """etcd wraps a write with the id of the request, whose length depends on the member's id."""
    servers.fresh()
    left, right = _largest_put(servers, 0), _largest_put(servers, 1)
    servers.in_step = False
    assert abs(left - right) <= 2, (left, right)


@needs_oracle((3, 7), "another protobuf parser")
@pytest.mark.slow
def test_long_messages(pair: Pair) -> None:
    too_large = (INVALID, "etcdserver: request is too large")
    before = revision(pair)
    for length in (REQUEST_BYTES_MAX, REQUEST_BYTES_MAX + 1, MESSAGE_BYTES_MAX):
        answer = pair.raw(PUT, put_of_length(length))
        assert (answer.code, answer.text) == too_large
    for length in (MESSAGE_BYTES_MAX + 1, 2 * MESSAGE_BYTES_MAX, 8 << 20):
        answer = pair.raw(PUT, put_of_length(length))
        text = f"grpc: received message larger than max ({length} vs. {MESSAGE_BYTES_MAX})"
        assert (answer.code, answer.text) == (EXHAUSTED, text)
    long = b"x" * REQUEST_BYTES_MAX
    for path, body, verdict in (
        # Only what goes into the log has the lower limit.
        (RANGE, delimited(1, long), (OK, "")),
        (TXN, delimited(2, delimited(1, delimited(1, long))), (OK, "")),
        ("/etcdserverpb.KV/DeleteRange", delimited(1, long), too_large),
        (TXN, delimited(2, delimited(3, delimited(1, long))), too_large),
        (TXN, delimited(3, delimited(2, delimited(1, b"k") + delimited(2, long))), too_large),
        # Malformed comes before long, long before its effects.
        (PUT, delimited(2, long), (INVALID, "etcdserver: key is not provided")),
        (PUT, KEY + delimited(2, long) + b"\x18\x07", too_large),
        (PUT, KEY + delimited(2, long) + b"\x0f", (INTERNAL, GARBAGE)),
    ):
        answer = pair.raw(path, body)
        assert (answer.code, answer.text) == verdict, path
    assert revision(pair) == before


@pytest.mark.slow
@pytest.mark.parametrize("method", ["Watch.Watch", "Lease.LeaseKeepAlive"])
def test_long_messages_on_streams(pair: Pair, method: str) -> None:
    ends = []
    for client in (pair.left, pair.right):
        with client.open(method) as stream:
            stream.send(delimited(1, delimited(1, b"x" * MESSAGE_BYTES_MAX)))
            ends.append(stream.next())
    assert ends[0] == ends[1]
    assert ends[0].code == EXHAUSTED
    revision(pair)
