"""RangeStream: chunks at one revision, at the client's pace, overtaken or not (R10, I8)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from kvstore.api import range_stream
from kvstore.pb import rpc_pb2 as pb
from kvstore.transport.seam import Code
from tests.property.stepper import Stepper, small_slices
from tests.unit.node.world import KV, FakeCall, FakeStream, World, run, world

COMPACTED = (Code.OUT_OF_RANGE, "etcdserver: mvcc: required revision has been compacted")


async def fill(w: World, count: int, value: bytes = b"v") -> list[bytes]:
    keys = [b"a/%04d" % n for n in range(count)]
    for key in keys:
        await w.put(key, value)
    return keys


def parts(stream: FakeStream) -> list[Any]:
    return [message.range_response for message in stream.messages]


def keys_of(stream: FakeStream) -> list[bytes]:
    return [kv.key for part in parts(stream) for kv in part.kvs]


def ask(stream: FakeStream, **fields: Any) -> None:
    stream.say(pb.RangeRequest(key=b"a/", range_end=b"a0", **fields))


def test_chunks_double_and_the_last_one_says_how_many_there_are() -> None:
    async def main() -> None:
        async with world() as w:
            keys = await fill(w, 100)
            stream = w.range_stream()
            ask(stream)
            while stream.closed is None:
                await asyncio.sleep(0)
            assert stream.closed == (Code.OK, "")
            assert [len(part.kvs) for part in parts(stream)] == [10, 20, 40, 30]
            assert keys_of(stream) == keys
            *early, last = parts(stream)
            assert not any(p.HasField("header") or p.count or p.more for p in early)
            assert (last.count, last.more) == (100, False)
            assert last.header.revision == w.revision

    run(main)


@pytest.mark.parametrize("limit", [1, 9, 10, 11, 99, 100, 101])
def test_a_limit_is_kept_over_chunks(limit: int) -> None:
    async def main() -> None:
        async with world() as w:
            keys = await fill(w, 100)
            stream = w.range_stream()
            ask(stream, limit=limit)
            while stream.closed is None:
                await asyncio.sleep(0)
            assert keys_of(stream) == keys[:limit]
            last = parts(stream)[-1]
            assert (last.count, last.more) == (100, limit < 100)

    run(main)


def test_a_stream_stays_at_its_revision_while_writes_go_on() -> None:
    async def main() -> None:
        async with world() as w:
            keys = await fill(w, 100)
            revision = w.revision
            stream = w.range_stream(room=1)
            ask(stream)
            for key in keys[50:]:
                await w.delete(key)
                await w.put(b"a/0000", b"changed")
            while stream.closed is None:
                stream.give_room(1000)
                await asyncio.sleep(0)
            assert keys_of(stream) == keys
            assert parts(stream)[-1].header.revision == revision
            assert parts(stream)[-1].count == 100

    run(main)


def test_without_room_nothing_is_made() -> None:
    async def main() -> None:
        async with world() as w:
            await fill(w, 100)
            stream = w.range_stream(room=1)
            ask(stream)
            await asyncio.sleep(1)
            assert len(stream.messages) == 1
            stream.give_room(1 - stream.room)
            await asyncio.sleep(1)
            assert len(stream.messages) == 2

    run(main)


def test_a_stream_that_is_overtaken_ends_with_compacted() -> None:
    async def main() -> None:
        async with world() as w:
            await fill(w, 100)
            stream = w.range_stream(room=1)
            ask(stream)
            await w.put(b"b/1")
            await w.compact(w.revision, physical=True)
            stream.give_room(10_000)
            assert stream.closed == COMPACTED

    run(main)


def test_big_objects_behind_small_ones_do_not_make_a_huge_chunk() -> None:
    async def main() -> None:
        async with world() as w:
            await fill(w, 310)
            for n in range(40):
                await w.put(b"a/big%d" % n, b"x" * 1_000_000)
            stream = w.range_stream()
            ask(stream)
            while stream.closed is None:
                await asyncio.sleep(0)
            assert len(keys_of(stream)) == 350
            assert max(part.ByteSize() for part in parts(stream)) < 4 << 20

    run(main)


def test_count_only_and_nothing_there() -> None:
    async def main() -> None:
        async with world() as w:
            await fill(w, 20)
            stream = w.range_stream()
            ask(stream, count_only=True, limit=3)
            assert [(p.count, len(p.kvs)) for p in parts(stream)] == [(20, 0)]
            stream = w.range_stream()
            stream.say(pb.RangeRequest(key=b"zzz"))
            assert [(p.count, p.HasField("header")) for p in parts(stream)] == [(0, True)]

    run(main)


def test_what_a_stream_does_not_take() -> None:
    async def main() -> None:
        async with world() as w:
            await fill(w, 3)
            for fields, code in [
                ({"key": b""}, Code.INVALID_ARGUMENT),
                ({"sort_order": 2}, Code.UNIMPLEMENTED),
                ({"min_mod_revision": 1}, Code.UNIMPLEMENTED),
                ({"revision": 1000}, Code.OUT_OF_RANGE),
            ]:
                stream = w.range_stream()
                stream.say(pb.RangeRequest(**{"key": b"a/", "range_end": b"a0", **fields}))
                assert stream.closed is not None and stream.closed[0] == code
                stream.give_room(1)

    run(main)


@pytest.mark.parametrize("pause", range(1, 14))
def test_compaction_between_the_slices_of_a_chunk(
    pause: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chunk under way is pinned: it comes whole, and what follows may be Compacted (R10)."""
    small_slices(monkeypatch)
    monkeypatch.setattr(range_stream, "FIRST_CHUNK_KEYS", 12)
    server = Stepper()

    def write(method: str, request: Any) -> None:
        server.service.on_calls([FakeCall(KV + method, request)])
        server.settle()

    for n in range(20):
        write("Put", pb.PutRequest(key=b"a/%02d" % n, value=b"old"))
    revision = server.state.store.revision
    for n in range(20):
        write("Put", pb.PutRequest(key=b"a/%02d" % n, value=b"new"))
    stream = FakeStream(KV + "RangeStream", pb.RangeStreamResponse)
    stream.handler = server.service.on_stream(stream)
    ask(stream, revision=revision)
    (job,) = server.slicer.jobs
    for _ in range(pause):
        if job in server.slicer.jobs:
            server.slicer.step(server.slicer.jobs.index(job))
    compact = pb.CompactionRequest(revision=revision + 20)
    server.service.on_calls([FakeCall(KV + "Compact", compact)])
    assert server.append() and server.append()
    for _ in range(30):  # compaction goes as far as it can
        for other in server.slicer.jobs:
            if other is not job:
                server.slicer.step(server.slicer.jobs.index(other))
                break
        server.tick()
    server.settle()
    kvs = [kv for part in parts(stream) for kv in part.kvs]
    assert len(kvs) in (12, 20)
    assert [kv.key for kv in kvs] == [b"a/%02d" % n for n in range(len(kvs))]
    assert {kv.value for kv in kvs} == {b"old"}
    assert stream.closed == (COMPACTED if len(kvs) == 12 else (Code.OK, ""))
