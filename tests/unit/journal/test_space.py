"""Reservations and the spare segment of the file journal."""

from __future__ import annotations

import asyncio
import errno
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from journal.contract import NoSpace
from journal.file import FileJournal
from tests.unit.journal.disks import FaultyDisk, TracedDisk

SEGMENT_BYTES = 64 << 10
HEADROOM_BYTES = SEGMENT_BYTES // 4


def run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(scenario(), 60))


class FullDisk(FaultyDisk):
    """No new segment can be had while `full`."""

    def __init__(self) -> None:
        super().__init__(lambda name, _: self.full and name == "allocate", errno.ENOSPC)
        self.full = False

    def free_bytes(self, path: Path) -> int:
        return 0 if self.full else super().free_bytes(path)


def make(directory: Path, disk: FaultyDisk | TracedDisk, tick_s: float = 0.01) -> FileJournal:
    return FileJournal(directory, segment_bytes=SEGMENT_BYTES, disk=disk, tick_s=tick_s)


async def fill_up(journal: FileJournal, disk: FullDisk) -> int:
    """Let the disk be full, and append until the last spare segment is in use."""
    tail = await journal.append([b"first"], 0)
    await journal.trim(1)  # behind the housekeeper's next spare
    disk.full = True
    while journal.stats().segments < 2:
        tail = await journal.append([b"x" * 4000], tail)
    return tail


def test_what_was_reserved_can_be_appended_on_a_full_disk(tmp_path: Path) -> None:
    """The guarantee of `reserve`, however the reserved bytes are cut into batches."""

    async def scenario(number: int, sizes: list[int]) -> None:
        disk = FullDisk()
        journal = make(tmp_path / str(number), disk)
        await journal.open()
        tail = await fill_up(journal, disk)
        reserved = []
        for size in sizes * 1500:
            if not journal.reserve(size):
                break
            reserved.append(size)
        assert reserved
        assert len(reserved) < len(sizes) * 1500
        for size in reserved:
            tail = await journal.append([b"y" * size], tail)
        # The headroom is still there for what is urgent.
        assert journal.reserve(HEADROOM_BYTES - 4096, urgent=True)
        await journal.append([b"z" * (HEADROOM_BYTES - 4096)], tail)
        await journal.close()

    for number, sizes in enumerate(([10_000], [1], [1, 5000, 0], [700])):
        run(lambda number=number, sizes=sizes: scenario(number, sizes))


def test_appends_under_way_count(tmp_path: Path) -> None:
    async def scenario() -> None:
        disk = FullDisk()
        journal = make(tmp_path, disk)
        await journal.open()
        tail = await fill_up(journal, disk)
        free = journal.stats().free_bytes - HEADROOM_BYTES
        half = free * 2 // 3
        assert journal.reserve(half)
        assert not journal.reserve(half)
        under_way = asyncio.ensure_future(journal.append([b"x" * half], tail))
        await asyncio.sleep(0)
        assert not journal.reserve(half)
        await under_way
        assert not journal.reserve(half)
        assert journal.reserve(free - half - 1000)
        await journal.close()

    run(scenario)


def test_a_reservation_ends_with_the_next_append(tmp_path: Path) -> None:
    """So that what a caller reserved and then dropped is not lost for good."""

    async def scenario() -> None:
        disk = FullDisk()
        journal = make(tmp_path, disk)
        await journal.open()
        tail = await fill_up(journal, disk)
        most = (journal.stats().free_bytes - HEADROOM_BYTES) * 2 // 3
        for _ in range(50):
            assert journal.reserve(most)
            assert not journal.reserve(most)
            tail = await journal.append([b"small"], tail)
        await journal.close()

    run(scenario)


def test_a_refused_append_leaves_the_journal_healthy(tmp_path: Path) -> None:
    async def scenario() -> None:
        disk = FullDisk()
        journal = make(tmp_path, disk)
        await journal.open()
        tail = await fill_up(journal, disk)
        with pytest.raises(NoSpace):
            await journal.append([b"x" * SEGMENT_BYTES], tail)
        assert await journal.append([b"small"], tail) == tail + 1
        disk.full = False
        assert await journal.append([b"x" * SEGMENT_BYTES], tail + 1) == tail + 2
        await journal.close()

    run(scenario)


def test_reserve_recovers_by_itself(tmp_path: Path) -> None:
    async def scenario() -> None:
        disk = FullDisk()
        journal = make(tmp_path, disk)
        await journal.open()
        await fill_up(journal, disk)
        while journal.reserve(1000):
            pass
        disk.full = False
        while not journal.reserve(1000):
            await asyncio.sleep(0.005)
        await journal.close()

    run(scenario)


def test_a_spare_is_tried_for_at_a_bounded_pace(tmp_path: Path) -> None:
    """However often `reserve` is asked."""

    async def scenario() -> None:
        disk = FullDisk()
        journal = make(tmp_path, disk, tick_s=3600)
        await journal.open()
        await fill_up(journal, disk)
        await journal.trim(1)  # behind the housekeeper's own attempt
        before = len(disk.calls)
        for _ in range(1000):
            journal.reserve(1 << 20)
            await asyncio.sleep(0)
        assert disk.calls[before:] == []
        await journal.close()

    run(scenario)


def test_more_than_a_segment_is_an_estimate(tmp_path: Path) -> None:
    async def scenario() -> None:
        disk = FullDisk()
        journal = make(tmp_path, disk)
        await journal.open()
        assert journal.reserve(3 * SEGMENT_BYTES)
        assert not journal.reserve(1 << 60)
        assert await journal.append([b"x" * 3 * SEGMENT_BYTES], 0) == 1
        disk.full = True
        assert not journal.reserve(3 * SEGMENT_BYTES)
        with pytest.raises(NoSpace):
            await journal.append([b"x" * 3 * SEGMENT_BYTES], 1)
        await journal.close()

    run(scenario)


def test_the_spare_is_not_touched_between_its_use_and_its_renaming(tmp_path: Path) -> None:
    """The housekeeper looks for a spare just when the writer has taken it."""

    class SlowRename(TracedDisk):
        def __init__(self) -> None:
            super().__init__()
            self.reached = threading.Event()
            self.go_on = threading.Event()

        def before(self, name: str, number: int, args: tuple[Any, ...]) -> None:
            if name == "rename" and args[1].suffix == ".seg":
                self.reached.set()
                assert self.go_on.wait(60)

    async def scenario() -> None:
        disk = SlowRename()
        journal = make(tmp_path, disk, tick_s=0.001)
        await journal.open()
        append = asyncio.ensure_future(journal.append([b"precious"], 0))
        await asyncio.to_thread(disk.reached.wait, 60)
        before = len(disk.calls)
        await asyncio.sleep(0.05)  # the housekeeper comes by some fifty times
        assert disk.calls[before:] == []
        disk.go_on.set()
        assert await append == 1
        assert [e.payload async for step in journal.read(0) for e in step] == [b"precious"]
        await journal.close()

    run(scenario)


def test_a_spare_whose_blocks_are_had_already_counts_as_coming(tmp_path: Path) -> None:
    """It took the last of the disk and is being zeroed: nothing has run out for a client."""

    class SlowZeroing(TracedDisk):
        def __init__(self) -> None:
            super().__init__()
            self.slow = self.allocated = False
            self.reached = threading.Event()
            self.go_on = threading.Event()

        def before(self, name: str, number: int, args: tuple[Any, ...]) -> None:
            if self.slow and name == "allocate":
                self.allocated = True
            elif self.allocated and name == "sync":
                self.reached.set()
                assert self.go_on.wait(60)

        def free_bytes(self, path: Path) -> int:
            return 0 if self.reached.is_set() else super().free_bytes(path)

    async def scenario() -> None:
        disk = SlowZeroing()
        journal = make(tmp_path, disk, tick_s=0.001)
        await journal.open()
        disk.slow = True
        tail = await journal.append([b"first"], 0)
        await asyncio.to_thread(disk.reached.wait, 60)
        while journal.stats().free_bytes > 4000 + HEADROOM_BYTES // 2:
            assert journal.reserve(2000)
            tail = await journal.append([b"x" * 2000], tail)
        disk.go_on.set()
        while journal.stats().segments < 2:
            assert journal.reserve(2000)
            tail = await journal.append([b"x" * 2000], tail)
        await journal.close()

    run(scenario)


def test_a_batch_larger_than_a_segment_gets_its_own(tmp_path: Path) -> None:
    async def scenario() -> None:
        journal = make(tmp_path, TracedDisk())
        await journal.open()
        for tail, size in enumerate((100, 200_000, 100, SEGMENT_BYTES, 0)):
            await journal.append([b"x" * size], tail)
        assert journal.stats().segments == 5
        assert journal.stats().bytes_on_disk > 200_000 + SEGMENT_BYTES
        await journal.close()
        journal = make(tmp_path, TracedDisk())
        assert (await journal.open()).tail == 5
        sizes = [len(e.payload) async for step in journal.read(0) for e in step]
        assert sizes == [100, 200_000, 100, SEGMENT_BYTES, 0]
        await journal.close()

    run(scenario)


def test_options_that_make_no_sense(tmp_path: Path) -> None:
    for size in (0, 512, 5000):
        with pytest.raises(ValueError):
            FileJournal(tmp_path, segment_bytes=size)
