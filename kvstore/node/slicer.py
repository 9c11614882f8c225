"""Cooperative work in slices, so that nothing holds the loop (I9).

A job is a generator; each `yield` is a place to let others run. A job starts at once and most
end in their first step; the others take turns, a few milliseconds a round, with everything
else on the loop in between.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

from kvstore.mvcc.store import Steps

log = logging.getLogger(__name__)

T = TypeVar("T")
Done = Callable[[Any, BaseException | None], None]

ROUND_S = 0.002
"""How long one round may take before the loop gets its turn."""


def raise_error(result: Any, error: BaseException | None) -> None:
    """The end of a job that nobody waits for."""
    if error is not None:
        raise error


class Slicer:
    """Runs jobs of one loop in turns."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._jobs: deque[tuple[Steps[Any], Done]] = deque()
        self._scheduled = False
        self.on_round: Callable[[], None] = lambda: None
        """Called after each round that leaves work: a place for the collector's policy."""

    def __len__(self) -> int:
        return len(self._jobs)

    def start(self, job: Steps[Any], done: Done = raise_error) -> None:
        """Run a job; `done` gets its result or its exception, now or later.

        An exception that `done` raises is logged; without a `done` that is the job's own.
        """
        if not self._step(job, done):
            self.later(job, done)

    def later(self, job: Steps[Any], done: Done = raise_error) -> None:
        """Run a job from the next round on."""
        self._jobs.append((job, done))
        self._schedule()

    async def run(self, job: Steps[T]) -> T:
        """Run a job and wait for its result."""
        future: asyncio.Future[T] = self._loop.create_future()

        def done(result: T, error: BaseException | None) -> None:
            if future.done():
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)

        self.start(job, done)
        return await future

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._round)

    def _round(self) -> None:
        self._scheduled = False
        now = time.perf_counter()
        end = now + ROUND_S
        jobs = self._jobs
        while jobs:
            began = now
            job, done = jobs.popleft()
            if not self._step(job, done):
                jobs.append((job, done))
            now = time.perf_counter()
            # Another step like this one would be too long.
            if 2 * now - began >= end:
                break
        if jobs:
            self.on_round()
            self._schedule()

    @staticmethod
    def _step(job: Steps[Any], done: Done) -> bool:
        """One step. True if the job is over."""
        try:
            next(job)
        except StopIteration as stop:
            result, error = stop.value, None
        except Exception as failure:
            result, error = None, failure
        else:
            return False
        try:
            done(result, error)
        except Exception:
            log.exception("the end of a job failed")
        return True
