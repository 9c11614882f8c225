"""Appending: batches go to the journal and come back, a few of them at once where it can do that.

While one append is under way the next batch fills, so a sync is shared by everything that
arrived meanwhile (group commit; `gathering` tells when to wait for more). A journal that is far
away takes several appends at a time (`pipeline_depth`); the second one goes when it is worth one.
What comes back is committed in order. The expected tail makes each append conditional: that is the
fence (I6), and when one fails so do all behind it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable

from journal.contract import Conflict, Journal, JournalError, NoSpace, Unknown
from kvstore.node import errors
from kvstore.node.committer import Committer
from kvstore.node.gathering import GATHER_S, Gathering
from kvstore.node.proposer import Batch, Proposer
from kvstore.node.slicer import Slicer

log = logging.getLogger(__name__)

UNKNOWN_TRIES = 5
UNKNOWN_PAUSE_S = 0.2


PIPELINED_REQUESTS = 64
"""So many requests are worth an append of their own while another one is under way."""


class _Flight:
    """One batch on its way through the journal."""

    __slots__ = ("batch", "done", "expected", "previous")

    def __init__(
        self,
        batch: Batch,
        expected: int,
        previous: asyncio.Future[bool] | None,
        done: asyncio.Future[bool],
    ) -> None:
        """`done` says whether it was committed; `previous` is that of the one before it."""
        self.batch = batch
        self.expected = expected
        self.previous = previous
        self.done = done


class Appender:
    """Moves batches from proposer to journal to committer."""

    def __init__(
        self,
        journal: Journal,
        slicer: Slicer,
        gathering: Gathering,
        on_failure: Callable[[BaseException], None],
    ) -> None:
        self._journal = journal
        self._gathering = gathering
        self._slicer = slicer
        self._on_failure = on_failure
        self._ready = asyncio.Event()
        self._turn = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self._flights: deque[_Flight] = deque()
        self._sent = 0
        self._refusing = False
        self._halting = False
        self.tail = 0
        """Of what is committed."""
        self.committing = False
        self.among_others = False
        """Whether another node goes on when this one is fenced."""
        self.appends = 0
        self.observe_append: Callable[[float, int, int], None] = lambda *_: None

    def wake(self) -> None:
        """There is something to append."""
        self._ready.set()

    def start(self, proposer: Proposer, committer: Committer, tail: int) -> None:
        """Begin to append after sequence `tail`."""
        self.tail = self._sent = tail
        self._halting = False
        self._flights.clear()
        self._task = asyncio.get_running_loop().create_task(self._run(proposer, committer))

    async def stop(self) -> None:
        """End the task. The caller has waited until nothing is in flight, or given up on it."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def halt(self) -> None:
        """End the task behind the appends that are under way, however they end."""
        self._halting = True
        self.wake()
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def _run(self, proposer: Proposer, committer: Committer) -> None:
        """Until the journal fails, or applying does: then nothing more is served (I10)."""
        loop = asyncio.get_running_loop()
        workers = [
            loop.create_task(self._work(proposer, committer))
            for _ in range(self._journal.pipeline_depth)
        ]
        try:
            await asyncio.gather(*workers)
        except Exception as failure:
            await _cancel(workers)
            if not isinstance(failure, JournalError):
                log.exception("appending or applying failed")
            if self.among_others and isinstance(failure, Conflict | Unknown):
                proposer.stop(errors.LeaderChanged())
                proposer.refused(errors.LeaderFailed())
            else:
                proposer.stop(errors.Stopped())
                proposer.refused(errors.Stopped())
            self._on_failure(failure)
        finally:
            await _cancel(workers)

    async def _work(self, proposer: Proposer, committer: Committer) -> None:
        while (flight := await self._next(proposer)) is not None:
            await self._take_through(flight, proposer, committer)

    async def _next(self, proposer: Proposer) -> _Flight | None:
        """The next batch, when it should go; None when no more are to."""
        loop = asyncio.get_running_loop()
        async with self._turn:
            while not self._halts():
                flights = self._flights
                go = not self._refusing
                if flights:
                    go = go and proposer.is_worth_another(PIPELINED_REQUESTS)
                else:
                    wanted = self._gathering.wanted(loop.time())
                    if proposer.is_short_of(wanted):
                        await self._gather(proposer, wanted)
                        if self._halts():
                            break
                batch = proposer.take() if go else None
                if batch is not None:
                    flight = _Flight(
                        batch,
                        self._sent,
                        flights[-1].done if flights else None,
                        loop.create_future(),
                    )
                    self._sent += 1
                    flights.append(flight)
                    return flight
                proposer.wake_at = PIPELINED_REQUESTS if flights else 1
                self._ready.clear()
                # A node that was told to halt has woken this already.
                if not self._halts():
                    await self._ready.wait()
                proposer.wake_at = 1
        return None

    def _halts(self) -> bool:
        return self._halting

    async def _gather(self, proposer: Proposer, wanted: int) -> None:
        """Wait until the open batch holds as many as it should, or somebody waits for it."""
        self._ready.clear()
        proposer.wake_at = wanted
        timer = asyncio.get_running_loop().call_later(GATHER_S, self._ready.set)
        try:
            await self._ready.wait()
        finally:
            timer.cancel()
            proposer.wake_at = 1

    async def _take_through(
        self, flight: _Flight, proposer: Proposer, committer: Committer
    ) -> None:
        loop = asyncio.get_running_loop()
        started = loop.time()
        batch = flight.batch
        failure: Exception | None = None
        try:
            sequence = await self._append(batch, flight.expected)
        except Exception as error:
            failure = error
        if flight.previous is not None and not await flight.previous:
            # Nothing behind a batch that failed can have taken effect.
            self._over(flight, committed=False)
            return
        if isinstance(failure, NoSpace):
            log.warning("the journal has no space: writes in flight are refused")
            await self._refuse(flight, proposer)
            return
        if failure is not None:
            raise failure
        self.tail = sequence
        self.committing = True
        self.appends += 1
        now = loop.time()
        self._gathering.appended(now, proposer.under_way)
        self.observe_append(now - started, batch.nbytes, len(batch.replies))
        await self._slicer.run(committer.commit_steps(batch))
        self.committing = False
        self._over(flight, committed=True)

    def _over(self, flight: _Flight, *, committed: bool) -> None:
        self._flights.remove(flight)
        flight.done.set_result(committed)
        self._ready.set()

    async def _refuse(self, flight: _Flight, proposer: Proposer) -> None:
        """Refuse everything in flight: this batch was not written, so none behind it was."""
        self._refusing = True
        self._over(flight, committed=False)
        while self._flights:
            await self._flights[-1].done
        self._refusing = False
        self._sent = self.tail
        proposer.refused(errors.NoSpace())
        self._ready.set()

    async def _append(self, batch: Batch, expected: int) -> int:
        """Append until the outcome is known (R5).

        The same bytes at the same expected tail each time: only one of the tries can take
        effect. A conflict after an unknown outcome may be our own success, so it is looked up.
        """
        unknown = False
        for _ in range(UNKNOWN_TRIES):
            try:
                return await self._journal.append(batch.parts, expected)
            except Unknown:
                unknown = True
                await asyncio.sleep(UNKNOWN_PAUSE_S)
            except (Conflict, NoSpace) as refusal:
                if not unknown:
                    raise
                if await self._is_there(batch, expected):
                    return expected + 1
                if isinstance(refusal, Conflict):
                    raise
                # There was no room for this try, which says nothing of the first one.
                await asyncio.sleep(UNKNOWN_PAUSE_S)
        raise Unknown("an append's outcome could not be found out")

    async def _is_there(self, batch: Batch, expected: int) -> bool:
        async for entries in self._journal.read(expected):
            return entries[0].payload == b"".join(batch.parts)
        return False


async def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
