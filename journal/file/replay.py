"""Reads entries across segments, in order, verifying every link. Synchronous; for a thread."""

from __future__ import annotations

from bisect import bisect_right

from journal.contract import Corrupt, Entry
from journal.file.blocks import RESTORE
from journal.file.disk import Disk
from journal.file.frames import BadFrame
from journal.file.log import View
from journal.file.segment import Segment, SegmentCursor

STEP_ENTRIES = 1024
STEP_BYTES = 1 << 20


class Replay:
    """Entries above `after`, up to the tail of the view it was last given."""

    def __init__(self, disk: Disk, seed: int, after: int, view: View) -> None:
        self._disk = disk
        self._seed = seed
        self._after = after
        self._view = view
        self._cursor: SegmentCursor | None = None
        self.done_bytes = 0
        self._passed = 0
        self.total_bytes = sum(s.size for s in view.segments[self._index(after + 1) :])

    def _index(self, sequence: int) -> int:
        """Which segment holds `sequence`, or would."""
        firsts = [segment.first for segment in self._view.segments]
        return max(bisect_right(firsts, sequence) - 1, 0)

    @property
    def segment(self) -> Segment | None:
        """The segment that the last step's entries came from."""
        return None if self._cursor is None else self._cursor.segment

    @property
    def position(self) -> int:
        """Offset behind the last entry in that segment."""
        return 0 if self._cursor is None else self._cursor.position

    def extend(self, view: View) -> None:
        """Go on up to a later tail."""
        self._view = view

    def step(self) -> list[Entry]:
        """The next entries, [] at the tail. Raises Corrupt, OSError.

        FileNotFoundError: the segment was trimmed (or lost) in the meantime.
        """
        while True:
            cursor = self._cursor
            if cursor is None:
                if self._after >= self._view.tail:
                    self._wait_at_tail()
                    return []
                cursor = self._start(self._index(self._after + 1))
            entries = self._step_in(cursor)
            if entries is None:
                return []
            while entries and entries[0].sequence <= self._after:
                # Only at the start, inside the first segment.
                skip = min(self._after - entries[0].sequence + 1, len(entries))
                entries = entries[skip:]
            if entries:
                self._after = entries[-1].sequence
                return entries

    def _wait_at_tail(self) -> None:
        """Be at the tail without reading what lies before it."""
        view = self._view
        if view.segments:
            cursor = self._start(len(view.segments) - 1)
            cursor.position = view.end
            cursor.sequence = view.tail + 1
            cursor.chain = view.chain

    def _start(self, index: int) -> SegmentCursor:
        segment = self._view.segments[index]
        if self._cursor is not None:
            self._passed += self._cursor.segment.size
            self._cursor.close()
            self._cursor = None
        self._cursor = SegmentCursor(self._disk, segment, self._seed)
        return self._cursor

    def _step_in(self, cursor: SegmentCursor) -> list[Entry] | None:
        """Entries of the current or the next segment; None at the tail."""
        view = self._view
        index = self._index(cursor.segment.first)
        if view.segments[index].first != cursor.segment.first:
            # Trimmed while it was read; it is open, and whole if it was not the last one.
            following = view.segments[0]
            cursor.limit = cursor.segment.size
        elif index + 1 < len(view.segments):
            following = view.segments[index + 1]
            cursor.limit = cursor.segment.size
        else:
            if cursor.sequence > view.tail:
                return None
            # What lies behind may be half written.
            cursor.limit = view.end
            return self._entries(cursor, view.tail)
        if cursor.sequence < following.first:
            return self._entries(cursor, following.first - 1)
        chain = cursor.chain
        cursor = self._start(self._index(following.first))
        if (cursor.sequence, cursor.chain) != (following.first, chain):
            what = "the segment does not continue the one before it"
            raise Corrupt(cursor.segment.path, 0, what, RESTORE)
        return []

    def _entries(self, cursor: SegmentCursor, last: int) -> list[Entry]:
        count = min(last - cursor.sequence + 1, STEP_ENTRIES)
        try:
            entries = cursor.step(count, STEP_BYTES)
        except BadFrame as bad:
            raise Corrupt(cursor.segment.path, bad.offset, bad.what, RESTORE) from None
        if not entries:
            what = f"frame {cursor.sequence} is missing at the end of the segment"
            raise Corrupt(cursor.segment.path, cursor.position, what, RESTORE)
        self.done_bytes = self._passed + cursor.position
        return entries

    def close(self) -> None:
        if self._cursor is not None:
            self._cursor.close()
            self._cursor = None
