"""The log itself, synchronous: segments, the tail, appends, trims. `backend` adds the event loop.

Two threads use it. The *writer* calls `append`, alone. The *housekeeper* calls `keep_spare`,
`note_tail` and `trim`, alone. In place of the writer, and never beside it, the loop may call
`prepare` and `settle`, and have a thread without the interpreter lock write and sync in between.
Whatever they share is a `View`, replaced under a lock and never changed in place, so that the loop
and the readers see one state.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from journal.contract import Conflict, NoSpace, Opened, Poisoned
from journal.file.control import Control, create_control, store_control
from journal.file.disk import Disk
from journal.file.frames import BATCH, encode, frame_bytes, seed_of
from journal.file.recovery import OVERSIZE_NAME, Survey, repair, survey
from journal.file.segment import Segment, bytes_for, pack_segment, segment_name
from journal.file.spare import Spare, no_space

_log = logging.getLogger(__name__)


class View(NamedTuple):
    """The durable journal at one moment."""

    segments: tuple[Segment, ...]
    tail: int
    chain: int
    """Link of the last frame."""
    end: int
    """Offset in the last segment behind the last frame."""
    oldest: int


class Appended(NamedTuple):
    sequence: int
    write_seconds: float
    sync_seconds: float
    rolled: bool
    """A new segment was begun: the housekeeper has work."""


class Prepared(NamedTuple):
    """A frame that fits behind the last one, and where it goes."""

    sequence: int
    path: Path
    offset: int
    parts: tuple[bytes, bytes, bytes]
    link: int
    """The next frame's chain value."""
    end: int


class Log:
    """See the module. Poisoned by the first failed write or sync (I10)."""

    def __init__(self, disk: Disk, directory: Path, segment_bytes: int) -> None:
        self._disk = disk
        self._directory = directory
        self._lock = threading.Lock()
        self._fd: int | None = None
        self._control: Control | None = None
        self._identity = b""
        self.spare = Spare(disk, directory, segment_bytes)
        self.seed = 0
        self.view = View((), 0, 0, 0, 1)
        self.failure: BaseException | None = None
        """What poisoned the journal."""

    def open(self, progress: Callable[[int, int], None] | None) -> Opened:
        """Recover, or create. Raises what `survey` raises, Poisoned, OSError."""
        disk = self._disk
        found = survey(disk, self._directory, progress)
        if found is None:
            control = create_control(disk, self._directory, os.urandom(16), time.time_ns())
            found = Survey(control, (), 0, 0, 0, None, ())
        if found.cut is not None:
            _log.warning(
                "%s: offset %d: the last append (%d) was interrupted before it was acknowledged; "
                "cutting %d bytes",
                found.cut.path,
                found.cut.offset,
                found.cut.sequence,
                found.cut.end - found.cut.offset,
            )
        repair(disk, found)
        # From here on the tail may move, so the mark of a proper close has to go first.
        control = store_control(
            disk,
            self._directory,
            found.control,
            oldest=found.control.oldest,
            known_tail=found.tail,
            clean=False,
        )
        identity = self._identity = control.identity
        self.seed = seed_of(identity)
        if found.segments:
            self._fd = disk.open(found.segments[-1].path, os.O_RDWR)
        self.view = View(found.segments, found.tail, found.chain, found.end, control.oldest)
        try:
            disk.unlink(self._directory / OVERSIZE_NAME)
        except FileNotFoundError:
            pass
        try:
            self.spare.prepare()
        except NoSpace as error:
            _log.warning("%s", error)
        # Last of all: `close` writes where the journal ends only if that is known.
        self._control = control
        return Opened(identity, found.tail, control.oldest)

    @property
    def left(self) -> int:
        """Bytes behind the last frame in the last segment."""
        view = self.view
        return view.segments[-1].size - view.end if view.segments else 0

    # The writer's

    def append(self, payload: bytes, expected_tail: int) -> Appended:
        """Write and sync one frame. Conflict, NoSpace, Poisoned."""
        frame = self.prepare(payload, expected_tail)
        if frame is None:
            return self._roll(self.view, payload)
        assert self._fd is not None
        try:
            begin = time.perf_counter()
            self._disk.write(self._fd, frame.parts, frame.offset)
            written = time.perf_counter()
            self._disk.datasync(self._fd)
            synced = time.perf_counter()
        except BaseException as error:
            raise self.poisoned(error) from error
        self.settle(frame)
        return Appended(frame.sequence, written - begin, synced - written, False)

    def prepare(self, payload: bytes, expected_tail: int) -> Prepared | None:
        """The frame of a batch; None if it needs a new segment. Conflict, Poisoned."""
        self.check()
        view = self.view
        if expected_tail != view.tail:
            raise Conflict(expected_tail, view.tail)
        size = frame_bytes(len(payload))
        if self._fd is None or size > view.segments[-1].size - view.end:
            return None
        sequence = view.tail + 1
        head, close, link = encode(self.seed, BATCH, sequence, view.chain, payload)
        path = view.segments[-1].path
        return Prepared(sequence, path, view.end, (head, payload, close), link, view.end + size)

    def settle(self, frame: Prepared) -> None:
        """A prepared frame is durable."""
        self._advance(None, frame.link, frame.end)

    def _roll(self, view: View, payload: bytes) -> Appended:
        """Append as the first frame of a new segment.

        The file gets its name only when header and frame are durable, so a segment is there as
        a whole or not at all.
        """
        disk = self._disk
        size = bytes_for(len(payload))
        if size <= self.spare.size:
            size = self.spare.size
            temporary = self.spare.path
            try:
                fd = self.spare.take()
            except OSError as error:
                raise self.poisoned(error) from error
        else:
            temporary = self._directory / OVERSIZE_NAME
            fd = self._allocate(temporary, size)
        sequence = view.tail + 1
        previous = view.segments[-1].first if view.segments else 0
        path = self._directory / segment_name(sequence)
        identity = self._identity
        now = time.time_ns()
        segment = Segment(path, identity, sequence, view.chain, previous, size, now)
        head, close, link = encode(self.seed, BATCH, sequence, view.chain, payload)
        try:
            begin = time.perf_counter()
            disk.write(fd, (pack_segment(segment), head, payload, close), 0)
            written = time.perf_counter()
            disk.sync(fd)
            disk.rename(temporary, path)
            disk.sync_dir(self._directory)
            synced = time.perf_counter()
        except BaseException as error:
            raise self.poisoned(error) from error
        if temporary == self.spare.path:
            self.spare.placed()
        if self._fd is not None:
            disk.close(self._fd)
        self._fd = fd
        self._advance(segment, link, bytes_for(len(payload)))
        return Appended(sequence, written - begin, synced - written, True)

    def _allocate(self, path: Path, size: int) -> int:
        """A file for one batch that is larger than a segment."""
        fd = None
        try:
            fd = self._disk.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            self._disk.allocate(fd, size)
            return fd
        except OSError as error:
            if fd is not None:
                self._disk.close(fd)
            if not no_space(error):
                raise self.poisoned(error) from error
            try:
                self._disk.unlink(path)
            except OSError:
                pass
            raise NoSpace(f"no room for a segment of {size} bytes: {error}") from error

    def _advance(self, segment: Segment | None, link: int, end: int) -> None:
        with self._lock:
            view = self.view
            segments = view.segments if segment is None else (*view.segments, segment)
            self.view = View(segments, view.tail + 1, link, end, view.oldest)

    def poisoned(self, error: BaseException) -> Poisoned:
        """Take the journal out of service because of `error`; what to raise."""
        if self.failure is None:
            _log.critical("%s: write or sync failed: %s", self._directory, error)
            self.failure = error
        return Poisoned(self.failure)

    def check(self) -> None:
        """Raise Poisoned if the journal is."""
        if self.failure is not None:
            raise Poisoned(self.failure)

    # The housekeeper's

    def keep_spare(self) -> bool:
        """Have a spare segment ready; False when there is no room for one. Poisoned."""
        try:
            self.spare.prepare()
        except NoSpace:
            return False
        except OSError as error:
            raise self.poisoned(error) from error
        return True

    def note_tail(self) -> None:
        """Let the control file know how far the journal reaches. Poisoned."""
        view = self.view
        assert self._control is not None
        if view.tail != self._control.known_tail:
            self._store_control(view.oldest, view.tail, clean=False)

    def trim(self, before: int) -> None:
        """Remove the segments that have only entries below `before`. Poisoned."""
        self.check()
        segments = self.view.segments
        count = 0
        while count + 1 < len(segments) and segments[count + 1].first <= before:
            count += 1
        if not count:
            return
        oldest = segments[count].first
        self._store_control(oldest, self.view.tail, clean=False)
        with self._lock:
            self.view = self.view._replace(segments=self.view.segments[count:], oldest=oldest)
        try:
            for segment in segments[:count]:
                self._disk.unlink(segment.path)
                # One by one: a crash must leave a row without a hole.
                self._disk.sync_dir(self._directory)
        except OSError as error:
            raise self.poisoned(error) from error

    def _store_control(self, oldest: int, known_tail: int, *, clean: bool) -> None:
        assert self._control is not None
        try:
            self._control = store_control(
                self._disk,
                self._directory,
                self._control,
                oldest=oldest,
                known_tail=known_tail,
                clean=clean,
            )
        except OSError as error:
            raise self.poisoned(error) from error

    def close(self) -> None:
        """Mark a proper close (unless poisoned), let go of the files. The threads have ended."""
        if self.failure is None and self._control is not None:
            view = self.view
            self._store_control(view.oldest, view.tail, clean=True)
        self.spare.close()
        if self._fd is not None:
            self._disk.close(self._fd)
            self._fd = None
