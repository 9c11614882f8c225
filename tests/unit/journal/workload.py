"""A short life of a file journal that touches everything it does to a disk, and its check."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from journal.contract import JournalError, NoSpace, Opened, Poisoned
from journal.file import FileJournal
from journal.file.disk import Disk

SEGMENT_BYTES = 4096
BATCHES = 26
SNAPSHOT = [b"chunk %d" % i * 40 for i in range(30)]


def payload(sequence: int) -> bytes:
    """What batch `sequence` holds: mostly some hundred bytes, now and then a few sectors."""
    size = (sequence * 379) % 900 if sequence % 7 else 2500 if sequence % 2 else 6000
    return (b"%d." % sequence * size)[:size]


@dataclass
class Life:
    """What the outside world was told."""

    acknowledged: int = 0
    attempted: int = 0
    trimmed: int = 1
    snapshots: set[str] = field(default_factory=set)
    """Committed, so they must be there."""
    snapshots_maybe: set[str] = field(default_factory=set)
    """Begun or deleted without an answer."""
    errors: list[Exception] = field(default_factory=list)


def make(directory: Path, disk: Disk | None = None) -> FileJournal:
    return FileJournal(directory, segment_bytes=SEGMENT_BYTES, disk=disk, tick_s=3600)


async def live(directory: Path, disk: Disk, life: Life) -> None:
    """Open, append, snapshot, trim, append, close. Goes on after errors as a caller might."""
    journal = make(directory, disk)
    try:
        opened = await journal.open()
    except JournalError as error:
        life.errors.append(error)
        return
    life.acknowledged = opened.tail
    try:
        for _ in range(BATCHES):
            await _append(journal, life)
            if life.acknowledged % 10 == 5:
                await _snapshot(journal, f"at-{life.acknowledged}", life)
                life.trimmed = max(life.trimmed, life.acknowledged - 2)
                try:
                    await journal.trim(life.trimmed)
                except JournalError as error:
                    life.errors.append(error)
    finally:
        await journal.close()


async def _append(journal: FileJournal, life: Life) -> None:
    sequence = life.acknowledged + 1
    life.attempted = max(life.attempted, sequence)
    poisoned = any(isinstance(error, Poisoned) for error in life.errors)
    try:
        assert await journal.append([payload(sequence)], life.acknowledged) == sequence
        assert not poisoned, "an append succeeded after the journal was poisoned (I10)"
        life.acknowledged = sequence
    except (NoSpace, Poisoned) as error:
        assert not poisoned or isinstance(error, Poisoned)
        life.errors.append(error)


async def _snapshot(journal: FileJournal, name: str, life: Life) -> None:
    life.snapshots_maybe.add(name)
    try:
        async with journal.snapshots.writer(name) as writer:
            for chunk in SNAPSHOT:
                await writer.write(chunk)
        life.snapshots.add(name)
    except JournalError as error:
        life.errors.append(error)


async def read_through(journal: FileJournal, opened: Opened) -> None:
    """Every batch that is kept is what was written, up to the tail."""
    expected = opened.oldest
    async for entries in journal.read(opened.oldest - 1):
        for entry in entries:
            assert (entry.sequence, entry.payload) == (expected, payload(expected))
            expected += 1
    assert expected == opened.tail + 1


async def check(directory: Path, life: Life) -> None:
    """Everything that was acknowledged is there, nothing else is, and the journal works (I1)."""
    journal = make(directory)
    opened = await journal.open()
    try:
        assert life.acknowledged <= opened.tail <= max(life.attempted, life.acknowledged)
        assert opened.oldest <= life.trimmed
        await read_through(journal, opened)
        names = {info.name for info in await journal.snapshots.list()}
        assert life.snapshots <= names <= life.snapshots_maybe
        for name in names:
            assert [chunk async for chunk in journal.snapshots.read(name)] == SNAPSHOT
        tail = opened.tail
        for sequence in range(tail + 1, tail + 8):
            assert await journal.append([payload(sequence)], sequence - 1) == sequence
        life.acknowledged = life.attempted = tail + 7
    finally:
        await journal.close()
