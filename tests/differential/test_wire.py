"""Calls that are made wrongly, byte for byte the same to both servers: same status, same text."""

from __future__ import annotations

import pytest

from kvstore.pb import rpc_pb2
from tests import peers
from tests.hostile import http2
from tests.hostile.converse import (
    PADDED,
    PRIORITY,
    Answer,
    call_headers,
    converse,
    frames,
    message,
)
from tests.oracle.pair import Pair

pytestmark = pytest.mark.skipif(
    peers.transport() == "grpcio",
    reason="gRPC core refuses what is malformed in its own words (ARCHITECTURE.md)",
)

RANGE = b"/etcdserverpb.KV/Range"
WATCH = b"/etcdserverpb.Watch/Watch"
GOOD = message(rpc_pb2.RangeRequest(key=b"a").SerializeToString())
TRAILERS = http2.frame(
    http2.HEADERS, http2.END_HEADERS | http2.END_STREAM, 1, http2.literal(b"x", b"y")
)


def call(block: bytes, data: bytes | None = GOOD, *, end: bool = True) -> bytes:
    return frames(block, data, end=end)


def of(*more: tuple[bytes, bytes], path: bytes = RANGE) -> bytes:
    return call(call_headers(path, *more))


def typed(content_type: bytes) -> bytes:
    return call(call_headers(RANGE, (b"content-type", content_type), without=(b"content-type",)))


CASES = {
    "good": of(),
    "no te": call(call_headers(RANGE, without=(b"te",))),
    # Messages.
    "no message": call(call_headers(RANGE), b""),
    "half a prefix": call(call_headers(RANGE), b"\0\0\0"),
    "cut short": call(call_headers(RANGE), message(b"\n\1a", length=100)),
    "two messages": call(call_headers(RANGE), GOOD + GOOD),
    "a message and a half": call(call_headers(RANGE), GOOD + GOOD[:3]),
    "4 GiB announced": call(call_headers(RANGE), message(b"x", length=2**32 - 1)),
    "one byte too long": call(
        call_headers(RANGE), message(b"x" * 100, length=(1536 << 10) + (512 << 10) + 1)
    ),
    "not protobuf": call(call_headers(RANGE), message(b"\xff\xff\xff")),
    # Compression.
    "gzip named and used": call(
        call_headers(RANGE, (b"grpc-encoding", b"gzip")), message(b"x", flag=1)
    ),
    "gzip named, not used": of((b"grpc-encoding", b"gzip")),
    "an encoding of no fame": of((b"grpc-encoding", b'x"y')),
    "identity named": of((b"grpc-encoding", b"identity")),
    "identity named, flag set": call(
        call_headers(RANGE, (b"grpc-encoding", b"identity")), message(b"x", flag=1)
    ),
    "flag set, none named": call(call_headers(RANGE), message(b"x", flag=1)),
    "flag of no meaning": call(call_headers(RANGE), message(b"x", flag=2)),
    "flag of no meaning, too long": call(
        call_headers(RANGE), message(b"x", flag=255, length=2**31)
    ),
    # Methods and paths.
    "GET": call(call_headers(RANGE, method=b"GET")),
    "PUT": call(call_headers(RANGE, method=b"PUT")),
    "unknown method": of(path=b"/etcdserverpb.KV/Nope"),
    "unknown service": of(path=b"/x.Y/Z"),
    "a service of another case": of(path=b"/etcdserverpb.kv/Range"),
    "a path of one part": of(path=b"/x"),
    "the root": of(path=b"/"),
    "two slashes": of(path=b"//"),
    "three parts": of(path=b"/etcdserverpb.KV/Range/x"),
    "a query": of(path=RANGE + b"?x=y"),
    "a percent sign": of(path=b"/x.Y/%C3%A4%"),
    # Content types.
    "+proto": typed(b"application/grpc+proto"),
    "+json": typed(b"application/grpc+json"),
    "with a parameter": typed(b"application/grpc;charset=utf-8"),
    # Metadata.
    "hasleader": of((b"hasleader", b"true")),
    "client-api-version": of((b"client-api-version", b"3.6")),
    "a token that nobody gave": of((b"authorization", b"nobody.1"), (b"token", b"nobody.1")),
    "binary": of((b"x-bin", b"AAEC")),
    "binary, padded": of((b"x-bin", b"AAECAw==")),
    "binary that is none": of((b"x-bin", b"!!")),
    "a host, too": of((b"host", b"other")),
    "17 KiB of metadata": of(*((b"x-%d" % n, b"y" * 1000) for n in range(17))),
    # Deadlines. (What has passed on arrival is not compared: who is quicker is a matter of luck.)
    **{
        f"timeout {text!r}": of((b"grpc-timeout", text))
        for text in (
            b"",
            b"1",
            b"S",
            b"1x",
            b"xS",
            b"-1S",
            b"+1S",
            b"1 S",
            b"123456789S",
            b"99999999H",
            b"10S",
            b"\xc3\xa4S",
            b'"S',
        )
    },
    # Frames.
    "padded data": http2.frame(http2.HEADERS, http2.END_HEADERS, 1, call_headers(RANGE))
    + http2.frame(http2.DATA, http2.END_STREAM | PADDED, 1, b"\x0a" + GOOD + b"\0" * 10),
    "headers with a priority": http2.frame(
        http2.HEADERS, http2.END_HEADERS | PRIORITY, 1, b"\0\0\0\0\x10" + call_headers(RANGE)
    )
    + http2.frame(http2.DATA, http2.END_STREAM, 1, GOOD),
    "byte by byte": http2.frame(http2.HEADERS, http2.END_HEADERS, 1, call_headers(RANGE))
    + b"".join(http2.frame(http2.DATA, 0, 1, GOOD[n : n + 1]) for n in range(len(GOOD)))
    + http2.frame(http2.DATA, http2.END_STREAM, 1),
    # etcd, too, may answer a whole message before it reads what follows.
    "trailers of the client": call(call_headers(RANGE), GOOD[:3], end=False) + TRAILERS,
    "a name in upper case": of((b"X-Y", b"z")),
    "a connection header": of((b"connection", b"close")),
    "te of another kind": of((b"te", b"gzip")),
    # Streams.
    "watch: flag set": call(call_headers(WATCH), message(b"x", flag=1), end=False),
    "watch: gzip": call(
        call_headers(WATCH, (b"grpc-encoding", b"gzip")), message(b"x", flag=1), end=False
    ),
    "watch: too long": call(call_headers(WATCH), message(b"x", length=2**31), end=False),
    "watch: cut short": call(call_headers(WATCH), message(b"x", length=100)),
    "watch: not protobuf": call(call_headers(WATCH), message(b"\xff\xff\xff"), end=False),
    "watch: unknown": call(call_headers(b"/etcdserverpb.Watch/Nope"), None, end=False),
}


STREAM = b"/etcdserverpb.KV/RangeStream"
CASES |= {
    f"one request: {name}": call(call_headers(STREAM), data)
    for name, data in {
        "good": GOOD,
        "none": b"",
        "half a prefix": GOOD[:3],
        "cut short": GOOD[:-1],
        "two": GOOD + GOOD,
        "and half a prefix": GOOD + GOOD[:3],
        "and one cut short": GOOD + GOOD[:-1],
        "and one too long": GOOD + message(b"", length=2**31),
        "flag set": message(b"x", flag=1),
    }.items()
}
CASES["one request: two, in two frames"] = (
    call(call_headers(STREAM), GOOD, end=False)
    + http2.frame(http2.DATA, 0, 1, GOOD)
    + http2.frame(http2.DATA, http2.END_STREAM, 1)
)

NO_GZIP = ("200", "12", 'grpc: Decompressor is not installed for grpc-encoding "gzip"')

#: What jotd says where it does not say what etcd says: status, RST_STREAM, GOAWAY.
DEVIATIONS = {
    # etcd takes gzip from those who ask for it; jotd has nothing that a bomb could go off in.
    "gzip named and used": (NO_GZIP, None, None),
    "gzip named, not used": (NO_GZIP, None, None),
    "watch: gzip": (NO_GZIP, None, None),
    # A bound that etcd does not have (I8).
    "17 KiB of metadata": (
        ("200", "8", "received metadata size exceeds hard limit (17704 vs. 16384)"),
        None,
        None,
    ),
    # h2 takes what HTTP/2 forbids for a fault of the connection or of the stream.
    "a name in upper case": ((None, None, ""), None, 1),
    "te of another kind": ((None, None, ""), 1, None),
    # They end the request as an empty frame does; etcd ends the connection.
    "trailers of the client": (("200", "2", "EOF"), None, None),
    # Nothing reads binary metadata, so nothing decodes it.
    "binary that is none": (("200", "0", ""), None, None),
}


def answers(pair: Pair, request: bytes) -> tuple[Answer, Answer]:
    return converse(pair.left.port, request), converse(pair.right.port, request)


@pytest.mark.parametrize("case", [case for case in CASES if case not in DEVIATIONS])
def test_a_call_gets_the_same_answer(pair: Pair, case: str) -> None:
    etcd, jotd = answers(pair, CASES[case])
    assert jotd.status == etcd.status
    assert (jotd.reset, jotd.goaway, jotd.closed) == (etcd.reset, etcd.goaway, etcd.closed)
    # etcd repeats the subtype; gRPC's clients look at the beginning.
    for said in (etcd, jotd):
        assert said.headers.get("content-type", "application/grpc").startswith("application/grpc")
    assert (jotd.trailers == {}) == (etcd.trailers == {})
    assert (jotd.data == b"") == (etcd.data == b"")


@pytest.mark.parametrize("case", DEVIATIONS)
def test_a_declared_deviation(pair: Pair, case: str) -> None:
    etcd, jotd = answers(pair, CASES[case])
    assert (jotd.status, jotd.reset, jotd.goaway) == DEVIATIONS[case]
    assert (etcd.status, etcd.reset, etcd.goaway) != DEVIATIONS[case]


def test_trailers_after_a_whole_message_change_nothing(pair: Pair) -> None:
    request = call(call_headers(RANGE), end=False) + TRAILERS
    assert converse(pair.right.port, request).status == ("200", "0", "")


@pytest.mark.parametrize(
    ("path", "status"),
    [
        (RANGE, ("200", "2", "EOF")),
        (
            STREAM,
            (
                "200",
                "13",
                "cardinality violation: received no request message from non-client-streaming RPC",
            ),
        ),
    ],
)
def test_headers_that_are_all_there_is(
    pair: Pair, path: bytes, status: tuple[str, str, str]
) -> None:
    """etcd 3.7 never answers this; jotd says what it says of an empty frame."""
    assert converse(pair.right.port, call(call_headers(path), None)).status == status


@pytest.mark.slow
@pytest.mark.parametrize("data", [b"", b"\0\0\0"], ids=["nothing", "half a prefix"])
def test_a_watch_goes_on_when_its_client_has_said_everything(pair: Pair, data: bytes) -> None:
    for client in (pair.left, pair.right):
        with pytest.raises(TimeoutError):
            converse(client.port, call(call_headers(WATCH), data), wait_s=1.0)
