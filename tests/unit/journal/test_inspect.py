"""`journal.inspect` on whole, torn, damaged, absent and busy journals."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from journal import inspect
from journal.contract import Corrupt, JournalError
from journal.file import FileJournal
from journal.file.blocks import SECTOR

PAYLOADS = [b"%d" % i * 150 for i in range(30)]


async def _build(directory: Path) -> None:
    journal = FileJournal(directory, segment_bytes=4096)
    await journal.open()
    for tail, payload in enumerate(PAYLOADS):
        await journal.append([payload], tail)
    async with journal.snapshots.writer("at-30") as writer:
        await writer.write(b"one")
        await writer.write(b"two")
    await journal.close()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    asyncio.run(_build(tmp_path))
    return tmp_path


def segments(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.seg"))


def test_a_whole_journal(directory: Path) -> None:
    progress: list[tuple[int, int]] = []
    report = inspect.verify(directory, lambda done, total: progress.append((done, total)))
    assert report.ok and report.damage is None and report.torn is None
    assert report.in_use_by is None
    assert (report.oldest, report.tail) == (1, 30)
    assert [s.name for s in report.segments] == [p.name for p in segments(directory)]
    assert report.segments[0].first == 1 and report.segments[-1].last == 30
    for one, two in zip(report.segments, report.segments[1:], strict=False):
        assert two.first == one.last + 1
    assert [(s.name, s.chunks, s.damage) for s in report.snapshots] == [("at-30", 2, None)]
    assert progress and all(0 < done <= total for done, total in progress)
    lines = list(report.lines())
    assert lines[-1] == "ok" and "entries 1 to 30" in lines and "closed properly" in lines[1]


def test_nothing_is_changed(directory: Path) -> None:
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in directory.iterdir() if p.is_file()}
    inspect.verify(directory)
    list(inspect.dump(directory))
    after = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in directory.iterdir() if p.is_file()}
    assert before == after


def test_damage_is_named_and_the_rest_still_told(directory: Path) -> None:
    path = segments(directory)[1]
    data = bytearray(path.read_bytes())
    data[SECTOR + 100] ^= 1
    path.write_bytes(data)
    report = inspect.verify(directory)
    assert not report.ok
    assert report.damage is not None
    assert str(path) in report.damage and f"offset {SECTOR}" in report.damage
    assert report.segments[0].last == report.segments[1].first - 1
    assert report.snapshots[0].damage is None
    assert list(report.lines())[-1] == "NOT OK"
    with pytest.raises(Corrupt):
        list(inspect.dump(directory))


def test_a_journal_that_cannot_be_opened_is_told_file_by_file(directory: Path) -> None:
    first, lost, *rest = segments(directory)
    lost.unlink()
    report = inspect.verify(directory)
    assert not report.ok and report.damage is not None and "missing" in report.damage
    assert [s.name for s in report.segments] == [p.name for p in (first, *rest)]
    assert report.segments[-1].last == 30
    assert report.snapshots[0].chunks == 2
    (directory / "control").unlink()
    report = inspect.verify(directory)
    assert report.damage is not None and "control" in report.damage and report.segments == []


def test_a_damaged_snapshot_is_reported(directory: Path) -> None:
    path = directory / "snapshots" / "at-30.snap"
    path.write_bytes(path.read_bytes()[:-1])
    report = inspect.verify(directory)
    assert not report.ok and report.damage is None
    assert report.snapshots[0].damage is not None and str(path) in report.snapshots[0].damage


def test_an_interrupted_append_is_no_damage(tmp_path: Path) -> None:
    async def crash() -> tuple[bytes, bytes]:
        journal = FileJournal(tmp_path, segment_bytes=4096)
        await journal.open()
        await journal.append([b"kept"], 0)
        one = segments(tmp_path)[0].read_bytes()
        control = (tmp_path / "control").read_bytes()
        await journal.append([b"torn" * 300], 1)
        two = segments(tmp_path)[0].read_bytes()
        await journal.close()
        (tmp_path / "control").write_bytes(control)
        return one, two

    one, two = asyncio.run(crash())
    segments(tmp_path)[0].write_bytes(two[:1024] + one[1024:])
    report = inspect.verify(tmp_path)
    assert report.ok and report.tail == 1
    assert report.torn is not None and "entry 2" in report.torn
    assert list(inspect.dump(tmp_path)) == ["1: 4 bytes"]


def test_dump_decodes_with_what_it_is_given(directory: Path) -> None:
    lines = list(inspect.dump(directory, lambda number, payload: f"<{payload[:2].decode()}>"))
    assert lines[:2] == ["1: <00>", "2: <11>"] and len(lines) == 30
    assert list(inspect.dump(directory, after=28)) == ["29: 300 bytes", "30: 300 bytes"]


def test_no_journal(tmp_path: Path) -> None:
    for directory in (tmp_path, tmp_path / "absent"):
        with pytest.raises(JournalError):
            inspect.verify(directory)
        with pytest.raises(JournalError):
            list(inspect.dump(directory))


def test_a_busy_journal(tmp_path: Path) -> None:
    async def scenario() -> None:
        journal = FileJournal(tmp_path, segment_bytes=4096)
        await journal.open()
        looking = asyncio.ensure_future(asyncio.to_thread(look))
        tail = 0
        while not looking.done():
            tail = await journal.append([b"x" * (tail % 500)], tail)
            if tail % 50 == 0:
                await journal.trim(tail - 100)
        await looking
        await journal.close()

    def look() -> None:
        for _ in range(100):
            report = inspect.verify(tmp_path)
            assert report.damages == []
            assert report.in_use_by == os.getpid()
        assert any(f"in use by process {os.getpid()}" in line for line in report.lines())

    asyncio.run(scenario())
    assert inspect.verify(tmp_path).in_use_by is None
