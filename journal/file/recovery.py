"""Reading a journal's directory after whatever happened to it: find the tail, or the damage.

`survey` changes nothing (so `jotd journal verify` uses it too); `repair` then does what it found to
be needed: zero a torn tail, remove what an interrupted trim left.

How a torn tail is told from damage (I10). Every append is synced before the next one is
written, so at most one frame, the last, can be unsynced at a crash. The scan of the last
segment stops at the first position without a valid frame. There,

1. nothing but zeros up to the end of the file: the regular tail;
2. a valid header anywhere behind, whatever the bad frame's length field claims: damage;
3. else the bytes must look like an interrupted write (`frames.tear`): cut, with a warning.
   Anything else, such as a flipped bit in the last frame, is damage;
4. a tear where none can be is damage too: in the first frame of a segment (synced before the
   segment got its name), below the control file's known tail, and after a proper close.

What this cannot see: that the very last frame was acknowledged and then lost as whole sectors
(or as all of its end), in a process that did not get to close the journal or, within about a
second, to note the tail in the control file. That looks exactly like a crash in the middle of
the write.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from journal.contract import Corrupt, JournalError
from journal.file import control as control_file
from journal.file import lock as lock_file
from journal.file.blocks import RESTORE
from journal.file.control import Control, load_control
from journal.file.disk import Disk, first_nonzero, zero
from journal.file.frames import ALIGN, BATCH, BadFrame, find_header, header_at, seed_of, tear
from journal.file.segment import Segment, SegmentCursor, load_segment, parse_segment_name

SPARE_NAME = "spare.tmp"
OVERSIZE_NAME = "oversize.tmp"
SNAPSHOT_DIR = "snapshots"
_OURS = {
    control_file.NAME,
    control_file.NAME + ".tmp",
    lock_file.NAME,
    SPARE_NAME,
    OVERSIZE_NAME,
    SNAPSHOT_DIR,
}
_STEP_ENTRIES = 1024
_STEP_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Cut:
    """A torn frame at the end of the journal."""

    path: Path
    offset: int
    end: int
    """Offset behind the last byte that is not zero."""
    sequence: int
    """The sequence that the frame would have had."""


@dataclass(frozen=True, slots=True)
class Survey:
    """What is there."""

    control: Control
    segments: tuple[Segment, ...]
    tail: int
    chain: int
    """Link of the last frame."""
    end: int
    """Offset in the last segment behind the last frame."""
    cut: Cut | None
    leftovers: tuple[Path, ...]
    """Segments that a trim was about to remove."""


def survey(
    disk: Disk, directory: Path, progress: Callable[[int, int], None] | None = None
) -> Survey | None:
    """Look at a directory; None when there is no journal in it yet.

    Raises Corrupt, IncompatibleVersion, JournalError (not a journal's directory), OSError.
    """
    names = sorted(os.listdir(directory))
    firsts = {first: name for name in names if (first := parse_segment_name(name)) is not None}
    if control_file.NAME not in names:
        if firsts:
            what = "the control file is missing, though there are segments"
            raise Corrupt(directory / control_file.NAME, 0, what, RESTORE)
        strange = [name for name in names if name not in _OURS]
        if strange:
            raise JournalError(
                f"{directory} is not a journal: there is no control file, but {strange[0]!r}"
            )
        return None
    control = load_control(disk, directory)
    leftovers = tuple(directory / firsts.pop(f) for f in sorted(firsts) if f < control.oldest)
    segments = tuple(
        load_segment(disk, directory / firsts[first], control.identity) for first in sorted(firsts)
    )
    _check_row(directory, control, segments)
    if not segments:
        return Survey(control, (), 0, 0, 0, None, leftovers)
    seed = seed_of(control.identity)
    cursor = SegmentCursor(disk, segments[-1], seed)
    try:
        end, cut = _scan_last(disk, cursor, seed, progress)
        found = Survey(control, segments, cursor.sequence - 1, cursor.chain, end, cut, leftovers)
    finally:
        cursor.close()
    _check_tail(found)
    return found


def _check_row(directory: Path, control: Control, segments: tuple[Segment, ...]) -> None:
    """No segment is missing, as far as the headers tell."""
    if not segments:
        if control.known_tail:
            what = f"all segments are missing; the journal reached {control.known_tail}"
            raise Corrupt(directory, 0, what, RESTORE)
        return
    if segments[0].first != control.oldest:
        what = f"the segment that starts with {control.oldest} is missing"
        raise Corrupt(directory, 0, what, RESTORE)
    if control.oldest == 1 and (segments[0].previous, segments[0].chain) != (0, 0):
        raise Corrupt(segments[0].path, 0, "not the first segment of a journal", RESTORE)
    for before, after in pairwise(segments):
        if after.previous != before.first:
            what = f"the segment that starts with {after.previous} is missing before this one"
            raise Corrupt(after.path, 0, what, RESTORE)


def _scan_last(
    disk: Disk,
    cursor: SegmentCursor,
    seed: int,
    progress: Callable[[int, int], None] | None,
) -> tuple[int, Cut | None]:
    """Move the cursor to the tail of the last segment; (its offset, what is torn behind it)."""
    segment = cursor.segment
    problem: BadFrame | None = None
    while cursor.position < segment.size:
        try:
            cursor.step(_STEP_ENTRIES, _STEP_BYTES)
        except BadFrame as bad:
            problem = bad
            break
        if progress is not None:
            progress(cursor.position, segment.size)
    offset = cursor.position
    fd = disk.open(segment.path, os.O_RDONLY)
    try:
        start = first_nonzero(disk, fd, offset, segment.size)
        if start is None and cursor.sequence > segment.first:
            return offset, None
        what = problem.what if problem is not None else "no frame"
        if start is None or cursor.sequence == segment.first:
            # Synced before the segment was named: nothing can be torn here.
            raise Corrupt(segment.path, offset, f"the first frame is bad: {what}", RESTORE)
        data = disk.read(fd, segment.size - offset, offset)
        frame = header_at(seed, data, 0, offset)
        if frame is not None and (frame.sequence, frame.chain, frame.kind) != (
            cursor.sequence,
            cursor.chain,
            BATCH,
        ):
            raise Corrupt(segment.path, offset, what, RESTORE)
        later = find_header(
            # Even inside of what a good header claims: its length may be what is wrong.
            lambda size, at: data[at - offset : at - offset + size],
            offset + ALIGN,
            segment.size,
            seed,
            cursor.sequence,
        )
        if later is not None:
            what = f"{what}, and frame {later.sequence} follows at {later.offset}"
            raise Corrupt(segment.path, offset, what, RESTORE)
        if not tear(data, offset, frame):
            what = f"{what}, and not as an interrupted write leaves it"
            raise Corrupt(segment.path, offset, what, RESTORE)
        end = offset + len(data.rstrip(b"\0"))
        return offset, Cut(segment.path, offset, end, cursor.sequence)
    finally:
        disk.close(fd)


def _check_tail(found: Survey) -> None:
    """The journal reaches as far as the control file knows it did."""
    control = found.control
    path = found.segments[-1].path
    if control.clean and found.cut is not None:
        what = f"frame {found.cut.sequence} is damaged, though the journal was closed properly"
        raise Corrupt(path, found.end, what, RESTORE)
    if found.tail < control.known_tail or (control.clean and found.tail != control.known_tail):
        how = "was closed at" if control.clean else "had reached"
        what = f"the journal ends with frame {found.tail}, but it {how} {control.known_tail}"
        raise Corrupt(path, found.end, what, RESTORE)


def repair(disk: Disk, found: Survey) -> None:
    """Zero what is torn and remove leftovers, durably. OSError."""
    if found.cut is not None:
        fd = disk.open(found.cut.path, os.O_RDWR)
        try:
            zero(disk, fd, found.cut.offset, found.cut.end)
        finally:
            disk.close(fd)
    for path in found.leftovers:
        disk.unlink(path)
        disk.sync_dir(path.parent)
