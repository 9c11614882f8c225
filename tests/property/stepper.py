"""A server whose every step is taken by hand.

The state machine's real parts: service, proposer, committer, hub, snapshotter, recovery. In place
of an event loop there is a list of what could go on, and a test that chooses.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Generator
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import pytest

from journal.contract import SnapshotWriter
from journal.memory import MemoryJournal, MemorySnapshots, MemoryStorage
from kvstore.api.service import EtcdService, ServiceOptions
from kvstore.node import records
from kvstore.node.committer import Committer
from kvstore.node.errors import NoSpace
from kvstore.node.node import NodeOptions
from kvstore.node.proposer import Batch, Proposer
from kvstore.node.recovery import Recovery
from kvstore.node.slicer import raise_error
from kvstore.node.snapshotter import Snapshotter
from kvstore.node.state import State
from kvstore.watch.hub import Hub
from tests.unit.node.world import table

T = TypeVar("T")

Job = tuple[Generator[Any, Any, Any], Callable[[Any, BaseException | None], None]]

SLICES = {
    "kvstore.mvcc.store.SLICE": 3,
    "kvstore.mvcc.store.COMPACT_SLICE": 2,
    "kvstore.mvcc.view.SLICE": 3,
    "kvstore.mvcc.hashing.SLICE": 3,
    "kvstore.mvcc.history.CHUNK": 4,
    "kvstore.node.state.SLICE": 3,
    "kvstore.node.committer.SLICE": 3,
    "kvstore.node.proposer.ANSWERS": 2,
    "kvstore.node.snapshotter.CHUNK_VERSIONS": 5,
    "kvstore.node.snapshotter.CHUNK_BYTES": 30,
    "kvstore.watch.hub.SLICE": 3,
    "kvstore.watch.hub.WAKES": 2,
    "kvstore.watch.hub.MATCHES": 2,
    "kvstore.watch.hub.PART_BYTES": 50,
    "kvstore.api.watch.JOIN_BYTES": 100,
    "kvstore.api.watch.STEP_BYTES": 50,
    "kvstore.watch.hub._RECENT": 2,
    "kvstore.api.ranges.SLICE": 3,
    "kvstore.api.ranges.GATHER_BYTES": 40,
    "kvstore.api.ranges.JOIN_BYTES": 40,
    "kvstore.api.range_stream.SLICE": 3,
    "kvstore.api.range_stream.FIRST_CHUNK_KEYS": 2,
    "kvstore.api.writes.STAND_IN_KEYS": 2,
    "kvstore.api.watch.RESPONSE_BYTES": 300,
    "kvstore.api.watch.WATCHERS_PER_STEP": 2,
    "kvstore.api.watch.LOOKS_PER_STEP": 2,
}


def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make everything that is sliced take many steps over a handful of keys."""
    for name, size in SLICES.items():
        monkeypatch.setattr(name, size)


class Jobs:
    """The slicer's place: a job starts at once, and goes on when the test says so."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []

    def start(self, job: Generator[Any, Any, Any], done: Callable[..., None] = raise_error) -> None:
        if not self._over((job, done)):
            self.later(job, done)

    def later(self, job: Generator[Any, Any, Any], done: Callable[..., None] = raise_error) -> None:
        self.jobs.append((job, done))

    def step(self, choice: int) -> bool:
        """One step of one job. False if there is none."""
        if not self.jobs:
            return False
        job = self.jobs.pop(choice % len(self.jobs))
        if not self._over(job):
            self.jobs.insert(choice % (len(self.jobs) + 1), job)
        return True

    @staticmethod
    def _over(job: Job) -> bool:
        steps, done = job
        try:
            next(steps)
        except StopIteration as stop:
            done(stop.value, None)
        except Exception as error:
            done(None, error)
        else:
            return False
        return True


def in_hand(coroutine: Coroutine[Any, Any, T]) -> Generator[None, None, T]:
    """A coroutine that only ever awaits `sleep(0)`, as steps."""
    return (yield from coroutine.__await__())


def at_once(coroutine: Coroutine[Any, Any, T]) -> T:
    """The same, to its end."""
    steps = in_hand(coroutine)
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            result: T = stop.value
            return result


class _SlowWriter:
    """Waits in each write, as a disk does."""

    def __init__(self, writer: SnapshotWriter) -> None:
        self._writer = writer

    async def write(self, chunk: bytes) -> None:
        await asyncio.sleep(0)
        await self._writer.write(chunk)


class _SlowSnapshots(MemorySnapshots):
    @asynccontextmanager
    async def _writing(self, name: str) -> AsyncIterator[SnapshotWriter]:
        async with super()._writing(name) as writer:
            yield _SlowWriter(writer)


class Timer:
    """A timer whose time comes when the test says so."""

    def __init__(self, call: Callable[[], None]) -> None:
        self.call = call
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True


class Stepper:
    """The node's place, for the service and for the test."""

    def __init__(self, storage: MemoryStorage | None = None) -> None:
        self.options = NodeOptions()
        self.cluster = None
        self.slicer = Jobs()
        self.journal = MemoryJournal(storage)
        self.journal.snapshots = _SlowSnapshots(self.journal.storage, self.journal._check)
        opened = at_once(self.journal.open())
        self.state: State = at_once(Recovery(self.journal, table(), self.now).run(opened))
        self.storage = self.journal.storage
        self.tail = opened.tail
        if not self.state.cluster_id:
            # One term for all lives, so that states can be compared.
            record = records.term(1, 1, 1)
            self.tail = at_once(self.journal.append([records.record_part(record)], self.tail))
            self.state.change(record, self.now())
        self.cluster_id, self.member_id = self.state.cluster_id, self.state.member_id
        self.on_term: Callable[[], None] = lambda: None
        self.hub = Hub(self.state.store)
        self.proposer = Proposer(self.state, self.journal, self.slicer, self.now, lambda: None)  # type: ignore[arg-type]
        self.committer = Committer(self.state, self.hub, self.proposer, self.now)
        self.committer.on_compact = self._compact_physically
        self.snapshotter = Snapshotter(self.journal, self.state, self.now)
        self.service = EtcdService(self, ServiceOptions())  # type: ignore[arg-type]
        self.errors: list[BaseException] = []
        self._waiting: list[tuple[int, Callable[[], None]]] = []
        self._in_flight: Batch | None = None
        self._committing = False
        self._compacting = False
        self.snapshots = 0
        self.timers: list[Timer] = []

    def now(self) -> float:
        return 1.0

    def call_later(self, delay_s: float, call: Callable[[], None]) -> Timer:
        self.timers.append(Timer(call))
        return self.timers[-1]

    def ring(self) -> None:
        """Every timer's time has come."""
        timers, self.timers = self.timers, []
        for timer in timers:
            if not timer.is_cancelled:
                timer.call()

    @property
    def at_boundary(self) -> bool:
        """State and tail fit together (R9)."""
        return not self._committing

    def append(self) -> bool:
        """Send the next batch to the journal, or if one is there, have it taken and apply it.

        False if neither can be now.
        """
        if self._committing:
            return False
        if self._in_flight is None:
            self._in_flight = self.proposer.take()
            return self._in_flight is not None
        batch, self._in_flight = self._in_flight, None
        self.tail = at_once(self.journal.append(batch.parts, self.tail))
        self._committing = True
        self.slicer.start(self.committer.commit_steps(batch), self._committed)
        return True

    def refuse(self) -> bool:
        """The journal has no room for the batch that is in flight."""
        if self._in_flight is None:
            return False
        self._in_flight = None
        self.proposer.refused(NoSpace())
        return True

    def _committed(self, result: None, error: BaseException | None) -> None:
        self._committing = False
        self._note(error)

    def _note(self, error: BaseException | None) -> None:
        if error is not None:
            self.errors.append(error)

    def _compact_physically(self) -> None:
        if not self._compacting:
            self._compacting = True
            self.slicer.start(self.state.store.compact_steps(self.now()), self._compacted)

    def _compacted(self, dropped: int | None, error: BaseException | None) -> None:
        self._compacting = False
        self._note(error)
        store = self.state.store
        waiting, self._waiting = self._waiting, []
        for revision, done in waiting:
            if store.compacted_through >= revision:
                done()
            else:
                self._waiting.append((revision, done))

    def tick(self) -> None:
        """What the node's clock does."""
        store = self.state.store
        if store.compacted_through < store.compact_revision:
            self._compact_physically()

    def when_compacted(self, revision: int, done: Callable[[], None]) -> None:
        if self.state.store.compacted_through >= revision:
            done()
        else:
            self._waiting.append((revision, done))
            self._compact_physically()

    def snapshot(self) -> bool:
        """Begin a snapshot of this moment."""
        if self._committing or self.snapshotter.running:
            return False

        def done(size: int | None, error: BaseException | None) -> None:
            self._note(error)
            self.snapshots += 1

        self.slicer.start(in_hand(self.snapshotter.take(self.tail)), done)
        return True

    def settle(self) -> None:
        """Take every step that is left."""
        for _ in range(100_000):
            self.tick()
            if not (self.slicer.step(0) or self.append()):
                break
        else:
            raise AssertionError("it never ends")
        assert self.proposer.idle
        assert not self.errors, self.errors
        assert self.state.store.compacted_through >= self.state.store.compact_revision
