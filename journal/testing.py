"""Test tools for whoever codes against a journal: hold appends, and make them fail.

`FaultyJournal` wraps any journal and adds faults at the boundary of the contract, so the code
above can be driven through every answer that the contract allows, on any backend.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

from journal.contract import (
    Entry,
    Journal,
    JournalStats,
    NoSpace,
    Opened,
    Poisoned,
    SnapshotStore,
    Unknown,
)

__all__ = ["FaultyJournal", "NoSpace", "Poisoned", "Unknown"]


@dataclass(slots=True)
class _Fault:
    error: Exception
    applied: bool


class FaultyJournal:
    """A journal whose appends can be held, failed or made ambiguous. Otherwise the inner one.

    - `hold()`: appends called from now on wait *before* they are written. `release(n)` lets the
      first n of them go on (all, and later ones too, without n). `await in_flight(n)` waits
      until n appends are under way.
    - `answer_late()`: as `hold`, but they wait *after* they are written: durable, unanswered.
    - `fail_next(error, applied=False)`: the next append that gets its turn raises `error`, and
      with `applied` is written all the same (the ambiguity of `Unknown`). Queues up.
      `Poisoned` also poisons: every later call raises it.
    - `full = True`: `reserve` says no (`full_urgent = True`: even when urgent).
    """

    def __init__(self, inner: Journal) -> None:
        self.inner = inner
        self.name = inner.name
        self.max_batch_bytes = inner.max_batch_bytes
        self.pipeline_depth = inner.pipeline_depth
        self.full = False
        self.full_urgent = False
        self._order = asyncio.Lock()
        self._faults: deque[_Fault] = deque()
        self._poison: Poisoned | None = None
        self._holding: str | None = None
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._permits = 0
        self._in_flight = 0
        self._changed = asyncio.Event()

    # Faults

    def hold(self) -> None:
        self._holding = "before"
        self._permits = 0

    def answer_late(self) -> None:
        self._holding = "after"
        self._permits = 0

    def release(self, count: int | None = None) -> None:
        if count is None:
            self._holding = None
            count = len(self._waiting)
            self._permits = 0
        for _ in range(count):
            if self._waiting:
                self._waiting.popleft().set_result(None)
            elif self._holding is not None:
                self._permits += 1

    def fail_next(self, error: Exception, *, applied: bool = False) -> None:
        self._faults.append(_Fault(error, applied))

    async def in_flight(self, count: int) -> None:
        """Wait until `count` appends (or more) were called and not answered."""
        while self._in_flight < count:
            self._changed.clear()
            await self._changed.wait()

    async def _pass(self, point: str) -> None:
        if self._holding != point:
            return
        if self._permits:
            self._permits -= 1
            return
        future = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        try:
            await future
        finally:
            if future in self._waiting:
                self._waiting.remove(future)

    def _check(self) -> None:
        if self._poison is not None:
            raise self._poison

    # The contract

    @property
    def snapshots(self) -> SnapshotStore:
        return self.inner.snapshots

    @snapshots.setter
    def snapshots(self, store: SnapshotStore) -> None:
        self.inner.snapshots = store

    @property
    def control(self) -> Journal | None:
        return self.inner.control

    @control.setter
    def control(self, journal: Journal | None) -> None:
        self.inner.control = journal

    @property
    def on_sync(self) -> Callable[[float], None] | None:
        return self.inner.on_sync

    @on_sync.setter
    def on_sync(self, hook: Callable[[float], None] | None) -> None:
        self.inner.on_sync = hook

    @property
    def on_write(self) -> Callable[[float], None] | None:
        return self.inner.on_write

    @on_write.setter
    def on_write(self, hook: Callable[[float], None] | None) -> None:
        self.inner.on_write = hook

    @property
    def on_progress(self) -> Callable[[int, int], None] | None:
        return self.inner.on_progress

    @on_progress.setter
    def on_progress(self, hook: Callable[[int, int], None] | None) -> None:
        self.inner.on_progress = hook

    async def open(self) -> Opened:
        return await self.inner.open()

    async def append(self, parts: Sequence[bytes], expected_tail: int) -> int:
        self._in_flight += 1
        self._changed.set()
        try:
            async with self._order:
                self._check()
                await self._pass("before")
                self._check()
                fault = self._faults.popleft() if self._faults else None
                if fault is None:
                    sequence = await self.inner.append(parts, expected_tail)
                else:
                    if fault.applied:
                        await self.inner.append(parts, expected_tail)
                    if isinstance(fault.error, Poisoned):
                        self._poison = fault.error
                    raise fault.error
                await self._pass("after")
                return sequence
        finally:
            self._in_flight -= 1
            self._changed.set()

    async def read(self, after: int) -> AsyncIterator[Sequence[Entry]]:
        self._check()
        async for entries in self.inner.read(after):
            yield entries

    async def follow(self, after: int) -> AsyncIterator[Sequence[Entry]]:
        self._check()
        async for entries in self.inner.follow(after):
            yield entries

    async def tail(self) -> int:
        self._check()
        return await self.inner.tail()

    async def trim(self, before: int) -> None:
        self._check()
        await self.inner.trim(before)

    def reserve(self, nbytes: int, *, urgent: bool = False) -> bool:
        self._check()
        if self.full_urgent or (self.full and not urgent):
            return False
        return self.inner.reserve(nbytes, urgent=urgent)

    def stats(self) -> JournalStats:
        return self.inner.stats()

    async def close(self) -> None:
        self.release()
        await self.inner.close()
