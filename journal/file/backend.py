"""The file journal as the event loop sees it: threads, reservations, readers.

Appends run one at a time. Where `jotd_native` is installed, the loop makes the frame and a thread
of that module writes and syncs it: a Python thread that has synced waits for the interpreter
lock behind whatever the loop is at, and that doubled what a write costs. Otherwise, and for what
is large or begins a segment, appends go to one dedicated thread through a `SimpleQueue` and come
back through `call_soon_threadsafe`.

Kinds of threads:

- the writer: recovery, then appends, one write and one sync each;
- the native writer, where there is one: the same for most appends;
- the housekeeper: the spare segment, the control file, trims;
- a small pool for readers and snapshots.
"""

from __future__ import annotations

import asyncio
import logging
import os
import queue
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from journal.contract import (
    Conflict,
    Corrupt,
    Entry,
    Journal,
    JournalError,
    JournalStats,
    Opened,
    Poisoned,
    SnapshotStore,
    Trimmed,
)
from journal.file.disk import Disk
from journal.file.frames import OVERHEAD_BYTES_MAX, frame_bytes
from journal.file.lock import DirectoryLock
from journal.file.log import Appended, Log, Prepared, View
from journal.file.recovery import SNAPSHOT_DIR
from journal.file.replay import Replay
from journal.file.segment import DATA_AT
from journal.file.snapshots import FileSnapshots

if TYPE_CHECKING:
    from jotd_native import SyncWriter

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

DEFAULT_SEGMENT_BYTES = 64 << 20
DEFAULT_HEADROOM_BYTES = 16 << 20
SLOW_SYNC_S = 1.0
"""A sync that takes longer is worth a warning."""
SEGMENT_BYTES_MIN = 4096
DIRECT_BYTES_MAX = 1 << 20
"""A larger batch is joined and checksummed off the loop: a third of a millisecond a MiB."""


class _Worker:
    """A thread that runs what it is given, in order."""

    def __init__(self, name: str, idle: Callable[[], None] | None = None, every_s: float = 1.0):
        """`idle` is run whenever there was nothing to do for `every_s`."""
        self._queue: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._idle = idle
        self._every = every_s
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def put(self, work: Callable[[], object]) -> None:
        """Run `work` later; it must not raise."""
        self._queue.put(work)

    def call(self, work: Callable[[], _T]) -> asyncio.Future[_T]:
        """Run `work` later; its result or exception comes through the future."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[_T] = loop.create_future()

        def resolve(result: _T | None, error: BaseException | None) -> None:
            if future.cancelled():
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)  # type: ignore[arg-type]

        def run() -> None:
            try:
                result, error = work(), None
            except BaseException as raised:
                result, error = None, raised
            notify(loop, resolve, result, error)

        self._queue.put(run)
        return future

    def _run(self) -> None:
        wait = None if self._idle is None else self._every
        while True:
            try:
                work = self._queue.get(timeout=wait)
            except queue.Empty:
                assert self._idle is not None
                work = self._idle
            if work is None:
                return
            work()

    def stop(self) -> None:
        """End after what was put before; blocks."""
        self._queue.put(None)
        self._thread.join()


def notify(loop: asyncio.AbstractEventLoop, call: Callable[..., object], *args: object) -> None:
    """`call_soon_threadsafe`, but a loop that is gone is nobody's problem."""
    try:
        loop.call_soon_threadsafe(call, *args)
    except RuntimeError:
        pass


class _Append:
    """One call of `append`."""

    __slots__ = ("expected_tail", "footprint", "frame", "future", "parts", "size")

    def __init__(
        self, parts: Sequence[bytes], size: int, expected_tail: int, future: asyncio.Future[int]
    ) -> None:
        self.parts = parts
        self.size = size
        self.expected_tail = expected_tail
        self.future = future
        self.footprint = frame_bytes(size)
        self.frame: Prepared | None = None


def _sync_writer() -> SyncWriter | None:
    try:
        from jotd_native import SyncWriter
    except ImportError:
        return None
    try:
        return SyncWriter()
    except OSError as error:
        _log.warning("the journal goes without a native writer: %s", error)
        return None


class FileJournal:
    """`contract.Journal` in a directory."""

    name = "file"
    pipeline_depth = 1

    def __init__(
        self,
        directory: str | Path,
        *,
        segment_bytes: int = DEFAULT_SEGMENT_BYTES,
        headroom_bytes: int | None = None,
        max_batch_bytes: int = 32 << 20,
        tick_s: float = 1.0,
        disk: Disk | None = None,
        native: bool = True,
    ) -> None:
        """`segment_bytes`: preallocated size of a segment file; a larger batch gets its own.
        `headroom_bytes`: what `reserve` keeps for urgent writes (default: 16 MiB, at most a quarter
        of a segment). `tick_s`: how often the housekeeper looks whether a spare segment can be had
        where there was no room, and how far the journal has come.
        `disk`: the system calls, for tests. `native`: let `jotd_native` write, where it is
        installed; not with a `disk` of the caller's.
        """
        if segment_bytes < SEGMENT_BYTES_MIN or segment_bytes % 512:
            raise ValueError(
                f"segment_bytes must be a multiple of 512, at least {SEGMENT_BYTES_MIN}"
            )
        self.directory = Path(directory)
        self.max_batch_bytes = max_batch_bytes
        self.headroom_bytes = (
            min(DEFAULT_HEADROOM_BYTES, segment_bytes // 4)
            if headroom_bytes is None
            else headroom_bytes
        )
        self.on_sync: Callable[[float], None] | None = None
        self.on_write: Callable[[float], None] | None = None
        self.on_progress: Callable[[int, int], None] | None = None
        self._disk = disk if disk is not None else Disk()
        self._wants_native = native and disk is None
        self._native: SyncWriter | None = None
        self._pending: deque[_Append] = deque()
        """Appends, the one under way first."""
        self._idle: asyncio.Future[None] | None = None
        """Set by the last of the appends that `close` waits for."""
        self._log = Log(self._disk, self.directory, segment_bytes)
        self._snapshots = FileSnapshots(
            self._disk, self.directory / SNAPSHOT_DIR, self._snapshot_pool
        )
        self.snapshots: SnapshotStore = self._snapshots
        # The lock keeps everybody else out.
        self.control: Journal | None = None
        self._tick_s = tick_s
        self._state = "new"
        self._lock: DirectoryLock | None = None
        self._followers: set[asyncio.Event] = set()
        self._reserved = 0
        """Set aside since the last call of `append`."""
        self._in_flight = 0
        """Taken by appends that are under way."""
        self._budget = 0
        """What `reserve` may still give away, not urgent, before it has to look again."""
        self._no_room = False
        """The last try for a spare segment found none."""
        self._appends = 0
        self._appended_bytes = 0
        self._conflicts = 0
        self._sync_seconds = 0.0

    # Opening and closing

    async def open(self) -> Opened:
        if self._state != "new":
            raise JournalError("a journal object can be opened once")
        self._state = "opening"
        self._loop = asyncio.get_running_loop()
        self._writer = _Worker("journal-writer")
        try:
            opened = await self._writer.call(self._open)
        except OSError as error:
            self._abandon()
            raise JournalError(f"cannot open the journal in {self.directory}: {error}") from error
        except BaseException:
            self._abandon()
            raise
        self._no_room = not self._log.spare.ready
        self._housekeeper = _Worker("journal-housekeeper", self._keep_house, self._tick_s)
        self._pool = ThreadPoolExecutor(4, thread_name_prefix="journal-reader")
        if self._wants_native and (writer := _sync_writer()) is not None:
            self._native = writer
            self._loop.add_reader(writer.fileno(), self._written)
        self._state = "open"
        return opened

    def _open(self) -> Opened:
        directory = self.directory
        for path in (*reversed(directory.parents), directory):
            if not path.exists():
                path.mkdir(0o750)
                self._disk.sync_dir(path.parent)
        self._lock = DirectoryLock(directory)
        opened = self._log.open(self._progress_in_thread)
        self._snapshots.open(opened.identity)
        return opened

    def _abandon(self) -> None:
        """Undo a failed open. What the writer still does it does before it ends."""
        self._state = "closed"
        self._writer.put(self._release)
        self._writer.stop()

    def _release(self) -> None:
        try:
            self._log.close()
        except JournalError:
            _log.warning("%s: not closed properly", self.directory, exc_info=True)
        finally:
            if self._lock is not None:
                self._lock.release()
                self._lock = None

    async def close(self) -> None:
        if self._state == "new":
            self._state = "closed"
        if self._state != "open":
            return
        self._state = "closing"
        self._budget = 0
        self._wake_followers()
        await asyncio.shield(self._loop.create_task(self._close()))

    async def _close(self) -> None:
        """Appends first, then everything else."""
        loop = self._loop
        if self._pending:
            self._idle = loop.create_future()
            await self._idle
        if self._native is not None:
            loop.remove_reader(self._native.fileno())
        # Each waits for what it was given before. Not on the pool: it may be the reader of a
        # stuck caller.
        finish = threading.Thread(
            target=self._finish_all, args=(loop, done := loop.create_future())
        )
        finish.start()
        await done
        self._state = "closed"

    def _finish_all(self, loop: asyncio.AbstractEventLoop, done: asyncio.Future[None]) -> None:
        try:
            self._writer.stop()
            if self._native is not None:
                self._native.stop()
            self._housekeeper.stop()
            self._pool.shutdown(wait=True)
            self._release()
        finally:
            notify(loop, done.set_result, None)

    def _check(self) -> None:
        if self._state != "open":
            raise JournalError(f"the journal is {self._state}")
        self._log.check()

    def _snapshot_pool(self) -> Executor:
        self._check()
        return self._pool

    # Appending

    async def append(self, parts: Sequence[bytes], expected_tail: int) -> int:
        self._check()
        size = sum(map(len, parts))
        if size > self.max_batch_bytes:
            raise ValueError(f"batch of {size} bytes, at most {self.max_batch_bytes} fit")
        append = _Append(parts, size, expected_tail, self._loop.create_future())
        self._reserved = 0
        self._budget = 0
        self._in_flight += append.footprint
        self._pending.append(append)
        if len(self._pending) == 1:
            self._begin(append)
        return await append.future

    def _begin(self, append: _Append) -> None:
        """Have one append done; `_appended` comes when it is, never before this returns."""
        if self._native is not None and append.size <= DIRECT_BYTES_MAX:
            try:
                frame = self._log.prepare(b"".join(append.parts), append.expected_tail)
            except JournalError as refusal:
                self._loop.call_soon(self._appended, append, None, refusal)
                return
            if frame is not None:
                append.frame = frame
                self._native.submit(frame.path, frame.offset, frame.parts)
                return

        def work() -> None:
            result: Appended | None = None
            error: BaseException | None = None
            try:
                result = self._log.append(b"".join(append.parts), append.expected_tail)
            except BaseException as raised:
                error = raised
            notify(self._loop, self._appended, append, result, error)

        self._writer.put(work)

    def _written(self) -> None:
        """On the loop: the native writer has done something."""
        assert self._native is not None
        for errno, write_seconds, sync_seconds in self._native.take():
            append = self._pending[0]
            frame = append.frame
            assert frame is not None
            if errno:
                failure = self._log.poisoned(OSError(errno, os.strerror(errno)))
                self._appended(append, None, failure)
                continue
            self._log.settle(frame)
            result = Appended(frame.sequence, write_seconds, sync_seconds, False)
            self._appended(append, result, None)

    def _appended(
        self, append: _Append, result: Appended | None, error: BaseException | None
    ) -> None:
        """On the loop: one append has ended, and the next may begin."""
        assert self._pending[0] is append
        self._pending.popleft()
        if self._pending:
            self._begin(self._pending[0])
        elif self._idle is not None and not self._idle.done():
            self._idle.set_result(None)
        future = append.future
        self._in_flight -= append.footprint
        if result is None:
            assert error is not None
            if isinstance(error, Conflict):
                self._conflicts += 1
            elif self._log.failure is not None:
                self._wake_followers()
            if not future.done():
                future.set_exception(error)
            return
        self._appends += 1
        self._appended_bytes += append.size
        self._sync_seconds += result.sync_seconds
        if result.sync_seconds > SLOW_SYNC_S:
            _log.warning("%s: a sync took %.1f s", self.directory, result.sync_seconds)
        if not future.done():
            future.set_result(result.sequence)
        if result.rolled and self._state == "open":
            self._housekeeper.put(self._keep_house)
        if self.on_write is not None:
            self.on_write(result.write_seconds)
        if self.on_sync is not None:
            self.on_sync(result.sync_seconds)
        if self._followers:
            self._wake_followers()

    def _keep_house(self) -> None:
        self._keep(self._prepare_spare)
        self._keep(self._log.note_tail)

    def _prepare_spare(self) -> None:
        self._no_room = not self._log.keep_spare()

    def _keep(self, work: Callable[[], object]) -> None:
        """Do something for the future; a failure of it shows in the calls that follow."""
        if self._log.failure is not None:
            return
        try:
            work()
        except JournalError:
            notify(self._loop, self._wake_followers)

    def reserve(self, nbytes: int, *, urgent: bool = False) -> bool:
        # Asked for every write, so what is left is worked out once an append, not once a call.
        own = nbytes + OVERHEAD_BYTES_MAX
        if own <= self._budget and self._log.failure is None:
            self._budget -= own
            self._reserved += own
            return True
        return self._reserve(own, urgent)

    def _reserve(self, own: int, urgent: bool) -> bool:
        self._check()
        log = self._log
        spare = log.spare
        taken = self._reserved + self._in_flight
        # Whatever does not fit behind the last frame goes to the spare segment, so it is one
        # of the two that has to hold everything; the rest of the other one is a bonus.
        room = max(log.left, spare.size - DATA_AT if spare.ready else 0)
        self._budget = room - self.headroom_bytes - taken
        need = taken + own + (0 if urgent else self.headroom_bytes)
        if need > room and not self._fits_own_segment(need) and not self._spare_comes(need):
            return False
        self._budget -= own
        self._reserved += own
        return True

    def _spare_comes(self, need: int) -> bool:
        """The spare segment is not ready because it is being made: a burst of writes is quicker.

        An append that gets there first makes it itself; should there be no room after all, it
        says NoSpace. To refuse here would tell clients that a disk is full which is not.
        """
        spare = self._log.spare
        if self._no_room or need > spare.size - DATA_AT:
            return False
        # In this order: it is ready before it stops to be coming.
        return spare.coming or spare.ready or spare.has_room()

    def _fits_own_segment(self, need: int) -> bool:
        """More than any segment holds: nothing is allocated for that, so this is an estimate."""
        spare = self._log.spare
        if not spare.ready or need <= spare.size - DATA_AT:
            return False
        try:
            return self._disk.free_bytes(self.directory) >= need + DATA_AT
        except OSError:
            return False

    # Reading

    async def read(self, after: int) -> AsyncIterator[Sequence[Entry]]:
        self._check()
        view = self._log.view
        self._check_range(after, view)
        replay = Replay(self._disk, self._log.seed, after, view)
        try:
            while True:
                entries, after = await self._step(replay, after)
                if self.on_progress is not None:
                    self.on_progress(replay.done_bytes, replay.total_bytes)
                if not entries:
                    return
                yield entries
        finally:
            replay.close()

    async def follow(self, after: int) -> AsyncIterator[Sequence[Entry]]:
        self._check()
        self._check_range(after, self._log.view)
        replay = Replay(self._disk, self._log.seed, after, self._log.view)
        event = asyncio.Event()
        self._followers.add(event)
        try:
            while self._state == "open":
                event.clear()
                self._log.check()
                replay.extend(self._log.view)
                entries, after = await self._step(replay, after)
                if entries:
                    yield entries
                elif self._log.view.tail == after:
                    await event.wait()
        finally:
            self._followers.discard(event)
            replay.close()

    async def _step(self, replay: Replay, after: int) -> tuple[list[Entry], int]:
        """One step of a replay in a thread; (entries, the last sequence now read)."""
        self._check()
        step = self._loop.run_in_executor(self._pool, replay.step)
        try:
            entries = await asyncio.shield(step)
        except asyncio.CancelledError:
            # The thread uses the file that the caller is about to close.
            await asyncio.wait([step])
            step.exception()
            raise
        except (Corrupt, FileNotFoundError) as error:
            oldest = self._log.view.oldest
            if after + 1 < oldest:
                raise Trimmed(after, oldest) from None
            if isinstance(error, Corrupt):
                raise
            what = "the segment has disappeared"
            raise Corrupt(error.filename or self.directory, 0, what, "Restore it") from error
        except OSError as error:
            raise JournalError(f"cannot read the journal: {error}") from error
        if entries:
            after = entries[-1].sequence
        return entries, after

    @staticmethod
    def _check_range(after: int, view: View) -> None:
        if after > view.tail:
            raise ValueError(f"entries after {after} were asked for, the tail is {view.tail}")
        if after + 1 < view.oldest:
            raise Trimmed(after, view.oldest)

    def _wake_followers(self) -> None:
        for event in self._followers:
            event.set()

    def _progress_in_thread(self, done: int, total: int) -> None:
        notify(self._loop, self._progress, done, total)

    def _progress(self, done: int, total: int) -> None:
        if self.on_progress is not None:
            self.on_progress(done, total)

    # The rest

    async def tail(self) -> int:
        self._check()
        return self._log.view.tail

    async def trim(self, before: int) -> None:
        self._check()
        try:
            await asyncio.shield(self._housekeeper.call(lambda: self._log.trim(before)))
        except Poisoned:
            self._wake_followers()
            raise

    def stats(self) -> JournalStats:
        log = self._log
        view = log.view
        spare = log.spare.size if log.spare.ready else 0
        return JournalStats(
            bytes_on_disk=sum(segment.size for segment in view.segments) + spare,
            segments=len(view.segments),
            entries=view.tail - view.oldest + 1,
            appends=self._appends,
            appended_bytes=self._appended_bytes,
            conflicts=self._conflicts,
            syncs=self._appends,
            sync_seconds=self._sync_seconds,
            free_bytes=max(log.left, spare),
            snapshots=len(self._snapshots.sizes),
            snapshot_bytes=sum(self._snapshots.sizes.values()),
        )
