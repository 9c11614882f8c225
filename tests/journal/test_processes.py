"""The file journal against real processes: kill -9, two openers, a really full file system."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from journal.contract import Locked, NoSpace
from journal.file import FileJournal
from tests.unit.journal.workload import SEGMENT_BYTES, SNAPSHOT, read_through

pytestmark = pytest.mark.slow

WRITER = """
import asyncio, sys
from journal.contract import Conflict
from tests.unit.journal.workload import SNAPSHOT, make, payload
from pathlib import Path

async def main():
    journal = make(Path(sys.argv[1]))
    tail = (await journal.open()).tail
    print(tail, flush=True)
    while True:
        tail = await journal.append([payload(tail + 1)], tail)
        print(tail, flush=True)
        if tail % 50 == 25:
            async with journal.snapshots.writer("s") as writer:
                for chunk in SNAPSHOT:
                    await writer.write(chunk)
            print(tail, flush=True)
            await journal.trim(tail - 30)

asyncio.run(main())
"""
ROOT = Path(__file__).parents[2]


def _killed_writer(directory: Path, seconds: float) -> int:
    """Let a process append until it is killed; the last sequence that it acknowledged."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(directory)], stdout=subprocess.PIPE, cwd=ROOT
    )
    assert process.stdout is not None
    assert process.stdout.readline(), "the writer did not start"
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    lines = process.stdout.read().split(b"\n")
    process.wait()
    # What the kill cut off in the middle was not a whole answer.
    return int(lines[-2]) if len(lines) > 1 else 0


def test_kill_9_in_a_loop_loses_nothing_acknowledged(tmp_path: Path) -> None:
    rng = random.Random(9)
    acknowledged = 0

    async def check() -> int:
        journal = FileJournal(tmp_path, segment_bytes=SEGMENT_BYTES)
        opened = await journal.open()
        try:
            assert acknowledged <= opened.tail
            assert opened.oldest <= max(acknowledged - 29, 1)
            await read_through(journal, opened)
            for info in await journal.snapshots.list():
                assert [chunk async for chunk in journal.snapshots.read(info.name)] == SNAPSHOT
            return opened.tail
        finally:
            await journal.close()

    lives = 0
    while lives < 12 or acknowledged <= 100:
        acknowledged = max(acknowledged, _killed_writer(tmp_path, rng.uniform(0.02, 0.25)))
        acknowledged = asyncio.run(check())
        lives += 1


def test_two_processes_cannot_have_one_journal(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, cwd=ROOT
    )
    assert process.stdout is not None and process.stdout.readline()

    async def attempt() -> None:
        await FileJournal(tmp_path, segment_bytes=SEGMENT_BYTES).open()

    try:
        with pytest.raises(Locked) as caught:
            asyncio.run(attempt())
        assert caught.value.pid == process.pid
        assert str(tmp_path) in str(caught.value) and str(process.pid) in str(caught.value)
    finally:
        process.kill()
        process.stdout.close()
        process.wait()

    async def afterwards() -> None:
        journal = FileJournal(tmp_path, segment_bytes=SEGMENT_BYTES)
        await journal.open()
        await journal.close()

    asyncio.run(afterwards())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    libc = ctypes.CDLL(None, use_errno=True)
    target = tmp_path / "small"
    target.mkdir()
    if libc.mount(b"tmpfs", bytes(target), b"tmpfs", 0, b"size=1m") != 0:
        pytest.skip(f"no tmpfs can be mounted here: {os.strerror(ctypes.get_errno())}")
    try:
        yield target
    finally:
        assert libc.umount2(bytes(target), 2) == 0


def test_a_really_full_disk_refuses_and_recovers(small_disk: Path) -> None:
    """Reserved bytes fit, urgent ones longer than others, and room that comes free is found."""
    chunk = b"x" * 2000

    async def scenario() -> None:
        directory = small_disk / "journal"
        journal = FileJournal(directory, segment_bytes=64 << 10, tick_s=0.01)
        await journal.open()
        ballast = small_disk / "ballast"
        ballast.write_bytes(bytes(400 << 10))
        tail = 0
        while journal.reserve(len(chunk)):
            tail = await journal.append([chunk], tail)
        assert tail > 100
        urgent = 0
        while journal.reserve(len(chunk), urgent=True):
            tail = await journal.append([chunk], tail)
            urgent += 1
        # A quarter of a segment was kept for them.
        assert urgent >= (16 << 10) // 2100
        with pytest.raises(NoSpace):
            while True:
                tail = await journal.append([chunk], tail)
        with pytest.raises(NoSpace):
            async with journal.snapshots.writer("s") as writer:
                for _ in range(1000):
                    await writer.write(chunk)
        # Full, but alive: reading works, and so does a restart.
        assert sum([len(step) async for step in journal.read(0)]) == tail
        await journal.close()
        journal = FileJournal(directory, segment_bytes=64 << 10, tick_s=0.01)
        assert (await journal.open()).tail == tail
        assert not journal.reserve(len(chunk))
        with pytest.raises(NoSpace):
            await journal.append([b"x" * (32 << 10)], tail)
        ballast.unlink()
        while not journal.reserve(len(chunk)):
            await asyncio.sleep(0.01)
        tail = await journal.append([chunk], tail)
        # Trimming is the other way to get room.
        while journal.reserve(len(chunk)):
            tail = await journal.append([chunk], tail)
        await journal.trim(tail)
        while not journal.reserve(len(chunk)):
            await asyncio.sleep(0.01)
        tail = await journal.append([chunk], tail)
        await journal.close()

    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_a_full_disk_from_the_start(small_disk: Path) -> None:
    filler = small_disk / "filler"
    with pytest.raises(OSError) as caught:
        filler.write_bytes(bytes(2 << 20))
    assert caught.value.errno == errno.ENOSPC

    async def scenario() -> None:
        os.truncate(filler, (1 << 20) - (64 << 10))
        journal = FileJournal(small_disk / "journal", segment_bytes=64 << 10, tick_s=0.01)
        assert (await journal.open()).tail == 0
        assert not journal.reserve(10)
        with pytest.raises(NoSpace):
            await journal.append([b"x"], 0)
        filler.unlink()
        while not journal.reserve(10):
            await asyncio.sleep(0.01)
        assert await journal.append([b"x"], 0) == 1
        await journal.close()

    asyncio.run(asyncio.wait_for(scenario(), 60))
