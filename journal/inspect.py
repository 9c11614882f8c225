"""What is in a file journal, for a person: behind `jotd journal verify` and `jotd journal dump`.

Read-only, and without the lock, so it can be run beside a server. What it then sees is a
moving target, which `in_use_by` lets the reader know; damage counts only if it is still in the
same place when looked at again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from journal.contract import Corrupt, JournalError
from journal.file.control import Control, load_control
from journal.file.disk import Disk
from journal.file.frames import BadFrame, seed_of
from journal.file.lock import holder
from journal.file.log import View
from journal.file.recovery import SNAPSHOT_DIR, Survey, survey
from journal.file.replay import STEP_BYTES, STEP_ENTRIES, Replay
from journal.file.segment import SegmentCursor, load_segment, parse_segment_name
from journal.file.snapshots import SUFFIX, SnapshotReader

_LOOKS_MAX = 5


@dataclass(slots=True)
class SegmentReport:
    name: str
    first: int
    last: int
    """Sequence of its last frame that was read, `first - 1` if none was."""
    used: int
    """Bytes up to the end of that frame."""
    size: int
    problem: str | None = None
    """Why reading stopped before the end (also the regular end of the last segment), where no
    look at the whole journal was possible."""


@dataclass(slots=True)
class SnapshotReport:
    name: str
    size: int
    chunks: int
    damage: str | None = None


@dataclass(slots=True)
class Report:
    """What `verify` found. `ok` is the answer, `lines` is for a person."""

    directory: Path
    in_use_by: int | None = None
    control: Control | None = None
    oldest: int = 1
    tail: int = 0
    segments: list[SegmentReport] = field(default_factory=list)
    snapshots: list[SnapshotReport] = field(default_factory=list)
    torn: str | None = None
    """An interrupted append at the end, which opening the journal will cut."""
    damage: str | None = None
    """The first damage: file, offset, what, and what to do."""

    @property
    def damages(self) -> list[str]:
        """All damage that was found."""
        found = [self.damage, *(snapshot.damage for snapshot in self.snapshots)]
        return [damage for damage in found if damage is not None]

    @property
    def ok(self) -> bool:
        return not self.damages

    def lines(self) -> Iterator[str]:
        yield f"journal {self.directory}"
        if self.in_use_by is not None:
            yield (
                f"in use by process {self.in_use_by}: the end of the journal and new snapshots "
                f"are moving while this is read"
            )
        if self.control is not None:
            closed = "closed properly" if self.control.clean else "not closed properly (or open)"
            yield f"identity {self.control.identity.hex()}, {closed}"
            if self.damage is None:
                yield f"entries {self.oldest} to {self.tail}"
        for segment in self.segments:
            yield (
                f"{segment.name}  entries {segment.first} to {segment.last}, "
                f"{segment.used} of {segment.size} bytes used"
                + (f"; then {segment.problem}" if segment.problem else "")
            )
        for snapshot in self.snapshots:
            state = snapshot.damage or "intact"
            size = f"{snapshot.size} bytes, {snapshot.chunks} chunks"
            yield f"snapshot {snapshot.name}  {size}: {state}"
        if self.torn is not None:
            yield f"interrupted append: {self.torn}"
        if self.damage is not None:
            yield f"DAMAGED: {self.damage}"
        yield "ok" if self.ok else "NOT OK"


def verify(directory: str | Path, on_progress: Callable[[int, int], None] | None = None) -> Report:
    """Read everything, and report each segment and snapshot and the first damage.

    Raises JournalError (IncompatibleVersion included) when there is no journal to look at.
    """
    report = _verify_once(Path(directory), on_progress)
    for _ in range(_LOOKS_MAX - 1):
        if report.ok or report.in_use_by is None:
            break
        before, report = report, _verify_once(Path(directory), on_progress)
        if report.damages == before.damages:
            break
    return report


def _verify_once(directory: Path, on_progress: Callable[[int, int], None] | None) -> Report:
    report = Report(directory)
    disk = Disk()
    report.in_use_by = holder(report.directory)
    try:
        found = _survey(disk, report.directory)
    except Corrupt as damage:
        report.damage = str(damage)
        _look_at_each(disk, report)
        return report
    report.control = found.control
    report.oldest, report.tail = found.control.oldest, found.tail
    if found.cut is not None:
        report.torn = (
            f"entry {found.cut.sequence} at offset {found.cut.offset} of {found.cut.path.name} was "
            f"never acknowledged; it is cut when the journal is opened"
        )
    by_first = {
        s.first: SegmentReport(s.path.name, s.first, s.first - 1, 0, s.size) for s in found.segments
    }
    report.segments = list(by_first.values())
    replay = _replay(disk, found)
    try:
        while entries := replay.step():
            segment = replay.segment
            assert segment is not None
            by_first[segment.first].last = entries[-1].sequence
            by_first[segment.first].used = replay.position
            if on_progress is not None:
                on_progress(replay.done_bytes, replay.total_bytes)
    except Corrupt as damage:
        report.damage = str(damage)
    except FileNotFoundError as error:
        report.damage = f"{error.filename} disappeared while it was read"
    finally:
        replay.close()
    report.snapshots = list(_snapshots(disk, report.directory, found.control.identity))
    return report


def dump(
    directory: str | Path,
    decode: Callable[[int, bytes], str] | None = None,
    *,
    after: int | None = None,
) -> Iterator[str]:
    """One line (or what `decode` makes of sequence and payload) for each entry above `after`.

    Raises Corrupt when it comes to damage, JournalError when there is no journal.
    """
    disk = Disk()
    found = _survey(disk, Path(directory))
    start = found.control.oldest - 1
    replay = _replay(disk, found, start if after is None else max(after, start))
    try:
        while entries := replay.step():
            for entry in entries:
                text = (
                    f"{len(entry.payload)} bytes"
                    if decode is None
                    else decode(entry.sequence, entry.payload)
                )
                yield f"{entry.sequence}: {text}"
    finally:
        replay.close()


def _survey(disk: Disk, directory: Path) -> Survey:
    for look in range(_LOOKS_MAX):
        try:
            found = survey(disk, directory)
            break
        except OSError as error:
            # A server that trims takes away what was just listed.
            gone = isinstance(error, FileNotFoundError) and holder(directory) is not None
            if not gone or look == _LOOKS_MAX - 1:
                raise JournalError(f"cannot read {directory}: {error}") from error
    if found is None:
        raise JournalError(f"there is no journal in {directory}")
    return found


def _replay(disk: Disk, found: Survey, after: int | None = None) -> Replay:
    oldest = found.control.oldest
    view = View(found.segments, found.tail, found.chain, found.end, oldest)
    return Replay(
        disk, seed_of(found.control.identity), oldest - 1 if after is None else after, view
    )


def _look_at_each(disk: Disk, report: Report) -> None:
    """What is intact in each file by itself, where the files do not make a journal together."""
    try:
        report.control = load_control(disk, report.directory)
    except (JournalError, OSError):
        return
    identity = report.control.identity
    for path in sorted(report.directory.iterdir()):
        first = parse_segment_name(path.name)
        if first is None:
            continue
        try:
            report.segments.append(_look_at(disk, path, first, identity))
        except FileNotFoundError:
            # Trimmed by a server that runs.
            continue
    report.snapshots = list(_snapshots(disk, report.directory, identity))


def _look_at(disk: Disk, path: Path, first: int, identity: bytes) -> SegmentReport:
    found = SegmentReport(path.name, first, first - 1, 0, path.stat().st_size)
    try:
        segment = load_segment(disk, path, identity)
    except JournalError as damage:
        found.problem = str(damage)
        return found
    cursor = SegmentCursor(disk, segment, seed_of(identity))
    try:
        while cursor.step(STEP_ENTRIES, STEP_BYTES):
            pass
    except BadFrame as bad:
        found.problem = str(bad)
    finally:
        found.last, found.used = cursor.sequence - 1, cursor.position
        cursor.close()
    return found


def _snapshots(disk: Disk, directory: Path, identity: bytes) -> Iterator[SnapshotReport]:
    folder = directory / SNAPSHOT_DIR
    for path in sorted(folder.glob("*" + SUFFIX)) if folder.is_dir() else ():
        report = SnapshotReport(path.name.removesuffix(SUFFIX), 0, 0)
        try:
            report.size = path.stat().st_size
            reader = SnapshotReader(disk, path, identity)
            try:
                while chunks := reader.step():
                    report.chunks += len(chunks)
            finally:
                reader.close()
        except FileNotFoundError:
            continue
        except JournalError as damage:
            report.damage = str(damage)
        yield report


__all__ = ["Report", "SegmentReport", "SnapshotReport", "dump", "verify"]
