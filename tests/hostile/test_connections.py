"""I8 on the wire: connections that are not what they should be, and floods of what is cheap."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator

import grpc
import grpc.aio
import pytest

from kvstore.pb import rpc_pb2
from tests import peers, wire
from tests.hostile import guard, http2
from tests.hostile.guard import guarding, open_files, resident_bytes
from tests.hostile.http2 import Connection

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

MIB = 1 << 20
PUT = b"/etcdserverpb.KV/Put"
RANGE = b"/etcdserverpb.KV/Range"
WATCH = b"/etcdserverpb.Watch/Watch"


@pytest.fixture(scope="module")
def jotd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[peers.Process]:
    with peers.start_jotd(tmp_path_factory.mktemp("hostile") / "data") as process:
        asyncio.run(guard.prepare(process))
        yield process


def test_what_is_not_grpc(jotd: peers.Process) -> None:
    """Random bytes, HTTP/1.1, TLS hellos, half a preface."""
    rng = random.Random(1)
    openings = [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /v3/kv/put HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n{",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + rng.randbytes(500),
        http2.PREFACE[:10],
        http2.PREFACE + rng.randbytes(5000),
        http2.PREFACE + http2.settings() + rng.randbytes(5000),
        b"\x00" * 100_000,
        *(rng.randbytes(rng.randrange(1, 3000)) for _ in range(60)),
    ]

    async def run() -> None:
        async with guarding(jotd):
            for data in openings:
                connection = await Connection.open(jotd.endpoint, greet=False)
                await connection.send(data)
                try:
                    async with asyncio.timeout(0.05):
                        await connection.reader.read(1000)
                except (TimeoutError, ConnectionError):
                    pass
                connection.close()

    asyncio.run(run())


def test_frames_gone_wrong(jotd: peers.Process) -> None:
    """Valid calls with random bytes changed anywhere, frame headers and field blocks included.

    The method's name stays as it is; see the next test.
    """
    rng = random.Random(2)
    message = rpc_pb2.PutRequest(key=b"wrong", value=b"x" * 50).SerializeToString()
    whole = http2.settings() + http2.call(1, PUT, message)
    name = range(whole.index(PUT), whole.index(PUT) + len(PUT))

    async def run() -> None:
        async with guarding(jotd):
            for _ in range(300):
                data = bytearray(whole)
                for _ in range(rng.randrange(1, 6)):
                    at = rng.randrange(len(data))
                    if at not in name:
                        data[at] = rng.randrange(256)
                connection = await Connection.open(jotd.endpoint, greet=False)
                await connection.send(http2.PREFACE + bytes(data[: rng.randrange(len(data))]))
                connection.close()

    asyncio.run(run())


def test_methods_that_are_not_text(jotd: peers.Process) -> None:
    """A method name that is not UTF-8 ends grpc.aio's accept loop: the transport makes a new one.

    Calls of others in between may fail, and are served again at once. No fault of ours to mend.
    """

    async def run() -> None:
        async with guarding(jotd, hiccups=True):
            for _ in range(10):
                try:
                    connection = await Connection.open(jotd.endpoint)
                except ConnectionError:
                    await asyncio.sleep(0.05)
                    continue
                await connection.send(http2.call(1, b"/etcdserverpb.KV/\xb8ut", b""))
                await asyncio.sleep(0.02)
                connection.close()

    asyncio.run(run())


def test_idle_and_half_open_connections(jotd: peers.Process) -> None:
    """Hundreds of connections that say nothing, or half a sentence, cost one file each."""

    async def run() -> None:
        before = open_files(jotd)
        async with guarding(jotd):
            connections = []
            for n in range(400):
                connection = await Connection.open(jotd.endpoint, greet=n % 2 == 0)
                if n % 4 == 0:
                    headers = http2.request_headers(PUT)
                    await connection.send(http2.frame(http2.HEADERS, http2.END_HEADERS, 1, headers))
                connections.append(connection)
            await asyncio.sleep(0.5)
            for connection in connections:
                connection.close()
        async with asyncio.timeout(20):
            while open_files(jotd) > before + 20:
                await asyncio.sleep(0.1)

    asyncio.run(run())


def test_rapid_reset(jotd: peers.Process) -> None:
    """Calls that are reset at once, tens of thousands of them (CVE-2023-44487)."""

    async def run() -> None:
        async with guarding(jotd):
            before = resident_bytes(jotd)
            message = rpc_pb2.RangeRequest(key=guard.GUARDED, range_end=b"h").SerializeToString()
            for _ in range(4):
                connection = await Connection.open(jotd.endpoint)
                for n in range(5000):
                    stream = 2 * n + 1
                    reset = http2.frame(
                        http2.RST_STREAM, 0, stream, http2.CANCEL.to_bytes(4, "big")
                    )
                    if not await connection.send(http2.call(stream, RANGE, message) + reset):
                        break
                connection.close()
            # Calls that wait for their turn, dead as they are.
            assert resident_bytes(jotd) - before < 300 * MIB

    asyncio.run(run())


def test_a_burst_of_honest_calls(jotd: peers.Process) -> None:
    """Thousands of calls at once are answered, each; none is dropped with its fate unknown."""

    async def run() -> None:
        async with guarding(jotd) as client:
            await asyncio.gather(*(client.put(b"burst/%d" % n) for n in range(8000)))
            answer = await client.get(b"burst/", b"burst0", count_only=True)
            assert answer.count == 8000
            await client.delete(b"burst/", b"burst0")

    asyncio.run(run())


def test_continuation_flood(jotd: peers.Process) -> None:
    """A header block that never ends (CVE-2024-27316)."""

    async def run() -> None:
        async with guarding(jotd):
            before = resident_bytes(jotd)
            connection = await Connection.open(jotd.endpoint)
            await connection.send(http2.frame(http2.HEADERS, 0, 1, http2.request_headers(PUT)))
            field = http2.literal(b"x-more", b"y" * 120) * 100
            for _ in range(5000):
                if not await connection.send(http2.frame(http2.CONTINUATION, 0, 1, field)):
                    break
            assert resident_bytes(jotd) - before < 64 * MIB
            connection.close()

    asyncio.run(run())


def test_pings_and_settings(jotd: peers.Process) -> None:
    """Control frames whose answers nobody reads."""

    async def run() -> None:
        async with guarding(jotd):
            before = resident_bytes(jotd)
            connection = await Connection.open(jotd.endpoint)
            connection.unread()
            burst = (http2.frame(http2.PING, 0, 0, b"12345678") + http2.settings()) * 500
            for _ in range(200):
                try:
                    async with asyncio.timeout(0.5):
                        if not await connection.send(burst):
                            break
                except TimeoutError:
                    # The server reads no more: it waits for us. Good.
                    break
            assert resident_bytes(jotd) - before < 64 * MIB
            connection.close()

    asyncio.run(run())


def test_metadata_flood(jotd: peers.Process) -> None:
    """Metadata beyond any sense is refused, and the call with it."""

    async def run() -> None:
        async with guarding(jotd) as client:
            request = rpc_pb2.RangeRequest(key=b"x")
            for size, count in ((200_000, 1), (5_000, 40), (10, 5_000)):
                metadata = [(f"x-{n}", "y" * size) for n in range(count)]
                with pytest.raises(grpc.aio.AioRpcError) as info:
                    await client.call("Range", request, metadata=metadata)
                assert info.value.code() in (
                    grpc.StatusCode.RESOURCE_EXHAUSTED,
                    grpc.StatusCode.UNAVAILABLE,
                    grpc.StatusCode.INTERNAL,
                )
            # Some is allowed.
            await client.call("Range", request, metadata=[("x", "y" * 1000)])

    asyncio.run(run())


def test_answers_that_nobody_reads(jotd: peers.Process) -> None:
    """Big ranges asked for on connections that take nothing: the answer and its copy on the way.

    They go when the connection goes. (A list that shall cost less is streamed; see RangeStream.)
    """
    size = 4 * MIB
    connections_max = 40

    async def run() -> None:
        async with guarding(jotd) as client:
            for n in range(8):
                await client.put(b"big/%d" % n, b"x" * (size // 8))
            message = rpc_pb2.RangeRequest(key=b"big/", range_end=b"big0").SerializeToString()
            before = resident_bytes(jotd)
            connections = []
            for _ in range(connections_max):
                connection = await Connection.open(jotd.endpoint, window=1000)
                connection.unread()
                await connection.send(http2.call(1, RANGE, message))
                connections.append(connection)
            await asyncio.sleep(1)
            assert resident_bytes(jotd) - before < 3 * size * connections_max
            for connection in connections:
                connection.close()
            async with asyncio.timeout(20):
                while resident_bytes(jotd) - before > size * connections_max // 2:
                    await asyncio.sleep(0.1)
            await client.delete(b"big/", b"big0")

    asyncio.run(run())


def test_streams_come_and_go(jotd: peers.Process) -> None:
    """Thousands of watch streams, opened and dropped; nothing of them stays."""

    async def wave() -> None:
        async with wire.Client(jotd.endpoint) as client:
            calls = [client.stream("Watch") for _ in range(500)]
            request = rpc_pb2.WatchRequest(
                create_request=rpc_pb2.WatchCreateRequest(key=b"\x00", range_end=b"\x00")
            )
            for call in calls:
                await call.write(request)
            created = await asyncio.gather(*(call.read() for call in calls))
            assert all(answer.created for answer in created)

    async def run() -> None:
        async with guarding(jotd):
            await wave()
            before = resident_bytes(jotd)
            for _ in range(4):
                await wave()
            assert resident_bytes(jotd) - before < 64 * MIB

    asyncio.run(run())
