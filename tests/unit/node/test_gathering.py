"""Group commit: when a batch waits for more, and what ends its waiting."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from kvstore.node.gathering import BUSY, ENOUGH, GATHER_S, WINDOW_S, Gathering
from tests.unit.node.world import FakeCall, World, run, settle, world


class Loop:
    """A loop's thread that has a processor for a part of the time."""

    def __init__(self, part: float) -> None:
        self.now = 0.0
        self.part = part
        self.gathering = Gathering(lambda: self.now * part)

    def append(self, under_way: int) -> int:
        self.now += WINDOW_S
        self.gathering.appended(self.now, under_way)
        return self.gathering.wanted(self.now)


def test_a_busy_loop_waits_for_as_many_as_were_under_way() -> None:
    loop = Loop(BUSY + 0.1)
    assert [loop.append(count) for count in (3, 20, 5)] == [3, 20, 5]
    assert loop.append(10 * ENOUGH) == ENOUGH


def test_who_is_alone_does_not_wait() -> None:
    loop = Loop(1.0)
    assert [loop.append(1) for _ in range(5)] == [1] * 5


def test_a_loop_with_time_to_spare_does_not_wait() -> None:
    assert Loop(BUSY - 0.1).append(20) == 1


def test_what_was_long_ago_is_forgotten() -> None:
    loop = Loop(1.0)
    assert loop.append(20) == 20
    assert loop.gathering.wanted(loop.now + WINDOW_S) == 20
    assert loop.gathering.wanted(loop.now + 3 * WINDOW_S) == 1


@asynccontextmanager
async def crowded() -> AsyncIterator[tuple[World, list[FakeCall]]]:
    """A busy server after an append with three requests under way: two of them are open."""
    async with world(cpu_s=asyncio.get_running_loop().time) as w:
        await asyncio.sleep(1)
        w.journal.hold()
        first = w.put(b"a/1")
        await w.journal.in_flight(1)
        calls = [w.put(b"a/2"), w.put(b"a/3")]
        w.journal.release()
        await first
        await settle(20)
        assert not any(call.done for call in calls), "they wait for a third"
        yield w, calls


def test_the_last_one_that_is_waited_for_ends_the_waiting() -> None:
    async def main() -> None:
        async with crowded() as (w, calls):
            tail = w.storage.tail
            now = asyncio.get_running_loop().time()
            for call in (*calls, w.put(b"b/1")):
                await call
            assert asyncio.get_running_loop().time() == now, "virtual time"
            assert w.storage.tail == tail + 1, "one append for all"

    run(main)


def test_a_batch_does_not_wait_for_ever() -> None:
    async def main() -> None:
        async with crowded() as (w, calls):
            tail = w.storage.tail
            now = asyncio.get_running_loop().time()
            for call in calls:
                await call
            assert asyncio.get_running_loop().time() == pytest.approx(now + GATHER_S)
            assert w.storage.tail == tail + 1

    run(main)


def test_who_needs_the_batch_gone_ends_the_waiting() -> None:
    """A range delete waits until nothing is in flight (R4), and holds what comes after it."""

    async def main() -> None:
        async with crowded() as (w, calls):
            now = asyncio.get_running_loop().time()
            drains = w.delete(b"a/", b"a0")
            behind = w.put(b"a/4")
            assert (await drains).response.deleted == 3
            await behind
            assert all(call.done for call in calls)
            assert asyncio.get_running_loop().time() == now

    run(main)


def test_the_first_one_after_the_waiting_is_noticed() -> None:
    async def main() -> None:
        async with crowded() as (w, calls):
            for call in calls:
                await call
            await asyncio.sleep(1)
            now = asyncio.get_running_loop().time()
            await w.put(b"a/4")
            assert asyncio.get_running_loop().time() == now, "alone, and not kept waiting"

    run(main)
