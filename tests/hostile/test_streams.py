"""I8 on streams: watchers that never read, floods of watches, requests nobody waits for."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from typing import Any

import pytest

from kvstore.pb import rpc_pb2
from tests import peers
from tests.hostile import guard, http2
from tests.hostile.guard import guarding, resident_bytes
from tests.hostile.http2 import Connection, DeafStream

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

MIB = 1 << 20
FLOOD = 200_000
WATCH = b"/etcdserverpb.Watch/Watch"
KEEP_ALIVE = b"/etcdserverpb.Lease/LeaseKeepAlive"
EVERYTHING = rpc_pb2.WatchCreateRequest(key=b"\x00", range_end=b"\x00", prev_kv=True)


@pytest.fixture(scope="module")
def jotd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[peers.Process]:
    with peers.start_jotd(tmp_path_factory.mktemp("hostile") / "data") as process:
        asyncio.run(guard.prepare(process))
        yield process


def _message(request: Any) -> bytes:
    """A message as gRPC frames it."""
    return http2.message(request.SerializeToString())


async def _flood(stream: DeafStream, message: bytes, count: int) -> int:
    """Sends a message many times, until the server reads no more. Returns how many went."""
    burst = 100
    for done in range(0, count, burst):
        try:
            async with asyncio.timeout(2.0):
                if not await stream.send(message * burst):
                    return done
        except TimeoutError:
            return done
    return count


def test_watchers_that_never_read(jotd: peers.Process) -> None:
    """50 deaf watchers of everything, 24 MiB of writes: what piles up is not 50 times that.

    Compaction then overtakes them, and the store is not held back by them either.
    """
    watchers, writes, size = 50, 400, 64 << 10

    async def run() -> None:
        async with guarding(jotd) as client:
            before = resident_bytes(jotd)
            deaf = [await DeafStream.open(jotd.endpoint, WATCH) for _ in range(watchers)]
            for stream in deaf:
                await stream.send(_message(rpc_pb2.WatchRequest(create_request=EVERYTHING)))
            for n in range(writes):
                await client.put(b"loud/%d" % (n % 10), os.urandom(size))
            growth = resident_bytes(jotd) - before
            # History itself, garbage, and a bounded amount for each watcher.
            assert growth < 4 * writes * size + watchers * 2 * MIB, f"{growth / MIB} MiB"
            revision = await client.revision()
            await client.call("Compact", rpc_pb2.CompactionRequest(revision=revision))
            for stream in deaf:
                await stream.close()

    asyncio.run(run())


@pytest.mark.parametrize(
    ("path", "request_"),
    [
        (WATCH, rpc_pb2.WatchRequest(progress_request=rpc_pb2.WatchProgressRequest())),
        (WATCH, rpc_pb2.WatchRequest(create_request=EVERYTHING)),
        (WATCH, rpc_pb2.WatchRequest(cancel_request=rpc_pb2.WatchCancelRequest(watch_id=5))),
        (KEEP_ALIVE, rpc_pb2.LeaseKeepAliveRequest(ID=12345)),
    ],
    ids=["progress", "create", "cancel", "keepalive"],
)
def test_requests_whose_answers_nobody_reads(
    jotd: peers.Process, path: bytes, request_: Any
) -> None:
    """The server stops reading, ends the stream, or keeps up at bounded cost."""

    async def run() -> None:
        async with guarding(jotd):
            before = resident_bytes(jotd)
            stream = await DeafStream.open(jotd.endpoint, path)
            # One that is there, so that progress has somebody to be for.
            if path == WATCH:
                await stream.send(_message(rpc_pb2.WatchRequest(create_request=EVERYTHING)))
            sent = await _flood(stream, _message(request_), FLOOD)
            growth = resident_bytes(jotd) - before
            print(f"{sent} sent, {growth / MIB:.1f} MiB")
            assert growth < 100 * MIB
            await stream.close()

    asyncio.run(run())


def test_a_flood_of_watch_requests_is_served_once_its_answers_are_read(
    jotd: peers.Process,
) -> None:
    """A deaf client sends more than there is room to answer: all of it waits, and not for ever."""
    count = 70_000
    one = rpc_pb2.WatchCreateRequest(key=b"late" * 10, watch_id=7)

    async def run() -> None:
        async with guarding(jotd) as client:
            stream = await DeafStream.open(jotd.endpoint, WATCH)
            # The first is a watch; all others are refused at length, so that room runs out.
            flood = _message(rpc_pb2.WatchRequest(create_request=one)) * count
            sending = asyncio.create_task(stream.send(flood))
            # Until it is stopped; or not, on grpc.aio, whose windows grow.
            await asyncio.wait({sending}, timeout=2.0)
            await stream.listen()
            async with asyncio.timeout(60):
                assert await sending
                answers = _take(stream)
                while len(answers) < count:
                    await asyncio.sleep(0.01)
                    answers += _take(stream)
                await client.put(one.key, b"seen")
                while len(answers) == count:
                    await asyncio.sleep(0.01)
                    answers += _take(stream)
            created, *refused, event = answers
            assert (created.created, created.canceled, created.watch_id) == (True, False, 7)
            assert len(refused) == count - 1
            assert all(answer.canceled for answer in refused)
            assert [e.kv.value for e in event.events] == [b"seen"]
            await stream.close()

    asyncio.run(run())


def _take(stream: DeafStream) -> list[Any]:
    """The whole answers that came since the last time."""
    found, at, data = [], 0, bytes(stream.received)
    while len(data) >= at + 5:
        end = at + 5 + int.from_bytes(data[at + 1 : at + 5], "big")
        if end > len(data):
            break
        found.append(rpc_pb2.WatchResponse.FromString(data[at + 5 : end]))
        at = end
    del stream.received[:at]
    return found


def test_thousands_of_watches_on_one_stream(jotd: peers.Process) -> None:
    """As many as anyone could want work; beyond that there is a bound, with an error."""
    sane, absurd = 5_000, 200_000

    async def run() -> None:
        async with guarding(jotd) as client:
            before = resident_bytes(jotd)
            stream = await DeafStream.open(jotd.endpoint, WATCH)
            await stream.listen()
            created, refused, events = 0, False, 0
            # By the frame, for a client that is slower than the server would be what is tested.
            async with asyncio.timeout(100):
                for first in range(0, absurd, sane):
                    keys = (b"w/%d" % n for n in range(first, first + sane))
                    creates = (rpc_pb2.WatchCreateRequest(key=key) for key in keys)
                    requests = (rpc_pb2.WatchRequest(create_request=create) for create in creates)
                    await stream.send(b"".join(map(_message, requests)))
                    while not refused and (created < first + sane or not events):
                        await asyncio.sleep(0.01)
                        for answer in _take(stream):
                            created += answer.created and not answer.canceled
                            refused |= answer.canceled
                            events += len(answer.events)
                        refused |= stream.ended
                        if created == sane and not events:
                            await client.put(b"w/%d" % (sane - 1), b"seen")
                    if refused:
                        break
            assert created >= sane
            assert refused, "there is no bound on watches"
            assert resident_bytes(jotd) - before < 512 * MIB
            await stream.close()

    asyncio.run(run())


def test_range_streams_that_nobody_reads(jotd: peers.Process) -> None:
    """RangeStream is paced by its client: 30 deaf ones cost a chunk or so each, not the range."""
    readers, keys, size = 30, 200, 64 << 10

    async def run() -> None:
        async with guarding(jotd) as client:
            for n in range(keys):
                await client.put(b"page/%d" % n, os.urandom(size))
            before = resident_bytes(jotd)
            request = rpc_pb2.RangeRequest(key=b"page/", range_end=b"page0")
            deaf = []
            for _ in range(readers):
                connection = await Connection.open(jotd.endpoint, window=1000)
                connection.unread()
                data = request.SerializeToString()
                await connection.send(http2.call(1, b"/etcdserverpb.KV/RangeStream", data))
                deaf.append(connection)
            await asyncio.sleep(1)
            growth = resident_bytes(jotd) - before
            # Two chunks each, the holes they leave in the heap, and all of it at once.
            assert growth < readers * keys * size // 3, f"{growth / MIB} MiB"
            for connection in deaf:
                connection.close()
            await client.delete(b"page/", b"page0")

    asyncio.run(run())
