"""The native door under random bytes: conversations that were right once, from many connections.

Seeded: a failure names its seed, and JOTD_TEST_SEED repeats it.
"""

from __future__ import annotations

import asyncio
import random
import re
import time
import urllib.request
from collections.abc import Iterator

import grpc
import pytest

from kvstore.pb import rpc_pb2
from tests import peers, wire
from tests.hostile import guard, http2
from tests.hostile.converse import call_headers, frames, message
from tests.hostile.guard import guarding, open_files, resident_bytes
from tests.hostile.http2 import Connection

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(240),
    pytest.mark.skipif(peers.transport() == "grpcio", reason="this is about the native door"),
]

MIB = 1 << 20
CONNECTIONS = 8
CONVERSATIONS = 200 * wire.scale()
IDLE_WITHIN_S = 30.0

PATHS = [b"/etcdserverpb." + name for name in (b"KV/Put", b"KV/Range", b"KV/Txn", b"Watch/Watch")]
PATHS += [b"/etcdserverpb.Lease/LeaseKeepAlive", b"/etcdserverpb.KV/RangeStream", b"/x.Y/Z"]
BODIES = [
    b"",
    rpc_pb2.PutRequest(key=b"wild", value=b"x" * 300).SerializeToString(),
    rpc_pb2.RangeRequest(key=b"wild", range_end=b"wilf").SerializeToString(),
    rpc_pb2.WatchRequest(
        create_request=rpc_pb2.WatchCreateRequest(key=b"wild", range_end=b"wilf")
    ).SerializeToString(),
]
FIELDS = [
    (b"grpc-timeout", b"10m"),
    (b"grpc-timeout", b"1S"),
    (b"grpc-encoding", b"gzip"),
    (b"hasleader", b"true"),
    (b"x-bin", b"AAEC"),
    (b"content-length", b"3"),
    (b"x", b"y" * 20_000),
]
HTTP1 = [
    b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n",
    b"POST /version HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc",
    b"GET /metrics HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n",
]


@pytest.fixture(scope="module")
def jotd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[peers.Process]:
    peers.require_native()
    with peers.start_jotd(tmp_path_factory.mktemp("hostile") / "data") as process:
        asyncio.run(guard.prepare(process))
        yield process


def _frame(rng: random.Random, stream: int) -> bytes:
    """One frame of any kind, in itself well made."""
    number = rng.randbytes(4)
    match rng.randrange(9):
        case 0 | 1:
            body = message(rng.choice(BODIES), rng.choice([0, 0, 0, 1]))
            return http2.frame(http2.DATA, rng.choice([0, 1]), stream, body)
        case 2:
            return http2.frame(http2.RST_STREAM, 0, stream, b"\0\0\0\x08")
        case 3:
            return http2.frame(http2.WINDOW_UPDATE, 0, rng.choice([0, stream]), number)
        case 4:
            return http2.frame(http2.PING, rng.choice([0, 1]), 0, number * 2)
        case 5:
            return http2.settings(
                initial_window=rng.choice([0, 1, 65535, 2**31 - 1]),
                header_table=rng.choice([0, 4096, 2**32 - 1]),
                max_frame=rng.choice([16384, 2**24 - 1]),
            )
        case 6:
            return http2.frame(7, 0, 0, b"\0\0\0\1\0\0\0\0")
        case 7:
            return http2.frame(http2.CONTINUATION, rng.choice([0, 4]), stream, number)
        case _:
            return http2.frame(rng.randrange(256), rng.randrange(256), stream, rng.randbytes(20))


def conversation(rng: random.Random) -> bytes:
    """What a client might send, before it is mutilated."""
    kind = rng.randrange(10)
    if kind == 0:
        return rng.randbytes(rng.randrange(3000))
    if kind == 1:
        return b"".join(rng.choices(HTTP1, k=rng.randrange(1, 5)))
    out = http2.PREFACE + http2.settings(initial_window=rng.choice([0, 10, 65535]))
    stream = 1
    for _ in range(rng.randrange(1, 30)):
        if rng.random() < 0.5:
            more = rng.sample(FIELDS, rng.choice([0, 0, 0, 1, 2]))
            data = message(rng.choice(BODIES)) if rng.random() < 0.8 else None
            call = frames(call_headers(rng.choice(PATHS), *more), data, end=rng.random() < 0.7)
            # Made for stream 1; every frame of it goes to the newest.
            at = 0
            while at < len(call):
                size = 9 + int.from_bytes(call[at : at + 3], "big")
                call = call[: at + 5] + stream.to_bytes(4, "big") + call[at + 9 :]
                at += size
            out += call
            stream += 2
        else:
            out += _frame(rng, max(1, stream - rng.choice([0, 2, 4])))
    return out


def mutilated(rng: random.Random, data: bytes) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice([0, 0, 1, 2, 5])):
        at, end = sorted(rng.randrange(len(out) + 1) for _ in range(2))
        match rng.randrange(5):
            case 0 if at < len(out):
                out[at] = rng.randrange(256)
            case 1:
                del out[at : min(end, at + 50)]
            case 2:
                out[at:at] = rng.randbytes(rng.randrange(20))
            case 3:
                out[at:at] = out[at : min(end, at + 200)]
            case _:
                del out[max(at, len(http2.PREFACE)) :]
    return bytes(out)


async def attack(jotd: peers.Process, seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(CONVERSATIONS):
        data = mutilated(rng, conversation(rng))
        connection = await Connection.open(jotd.endpoint, greet=False)
        at = 0
        while at < len(data):
            step = rng.choice([1, 9, 100, 5000, 50_000])
            if not await connection.send(data[at : at + step]):
                break
            at += step
            if rng.random() < 0.1:
                await asyncio.sleep(0.001)
        try:
            async with asyncio.timeout(rng.choice([0, 0.01, 0.1])):
                while await connection.reader.read(10_000):
                    pass
        except (TimeoutError, ConnectionError):
            pass
        connection.close()


def levels(jotd: peers.Process) -> dict[str, float]:
    """The door's own figures, less what it takes to ask for them."""
    with urllib.request.urlopen(f"{jotd.metrics_url}/metrics", timeout=15) as answer:
        text = answer.read().decode()
    return {n: float(v) for n, v in re.findall(r"^jotd_door_(\w+) (\S+)$", text, re.M)}


def test_random_conversations(jotd: peers.Process) -> None:
    (first,) = wire.seeds(1)[:1]

    async def run() -> None:
        async with guarding(jotd):
            # Buffers and arenas grow to their size in the first round.
            await asyncio.gather(*(attack(jotd, first + n) for n in range(CONNECTIONS)))
            files, memory = open_files(jotd), resident_bytes(jotd)
            await asyncio.gather(*(attack(jotd, first - n - 1) for n in range(CONNECTIONS)))
            assert resident_bytes(jotd) - memory < 64 * MIB
            assert open_files(jotd) < files + 20

    before = levels(jotd)
    try:
        asyncio.run(run())
    except BaseException:
        print(f"JOTD_TEST_SEED={first}")
        raise
    until = time.monotonic() + IDLE_WITHIN_S
    while (now := levels(jotd))["live_open"] or now["connections_open"]:
        assert time.monotonic() < until, now
        time.sleep(0.1)
    assert "panicked" not in jotd.log_text()
    # It was an attack, and of every kind.
    for counted in ("malformed_total", "handshake_failures_total", "connection_errors_total"):
        assert now[counted] > before[counted], counted
    for counted in ("calls_total", "streams_total", "http_total", "cancelled_total"):
        assert now[counted] > before[counted], counted


def test_a_server_that_dies_of_it_is_noticed(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The control of the check above."""
    base = tmp_path_factory.mktemp("control")
    with peers.start_jotd(base / "data", journal="memory") as process:

        async def run() -> None:
            await guard.prepare(process)
            async with guarding(process):
                process.kill9()

        with pytest.raises((AssertionError, grpc.aio.AioRpcError)):
            asyncio.run(run())
