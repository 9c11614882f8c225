"""Appending: one task takes batches to the journal and back.

While one append is under way the next batch fills, so a sync is shared by everything that
arrived meanwhile (group commit; `gathering` tells when to wait for more). The expected tail makes
each append conditional: that is the fence (I6).
"""

from __future__ import annotations

import asyncio
import logging
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
        self._task: asyncio.Task[None] | None = None
        self.tail = 0
        self.committing = False
        self.among_others = False
        """Whether another node goes on when this one is fenced."""
        self._halting = False
        self.appends = 0
        self.observe_append: Callable[[float, int, int], None] = lambda *_: None

    def wake(self) -> None:
        """There is something to append."""
        self._ready.set()

    def start(self, proposer: Proposer, committer: Committer, tail: int) -> None:
        """Begin to append after sequence `tail`."""
        self.tail = tail
        self._halting = False
        self._task = asyncio.get_running_loop().create_task(self._run(proposer, committer))

    async def stop(self) -> None:
        """End the task. The caller has waited until nothing is in flight, or given up on it."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def halt(self) -> None:
        """End the task behind the append that is under way, however that ends."""
        self._halting = True
        self.wake()
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def _run(self, proposer: Proposer, committer: Committer) -> None:
        """Until the journal fails, or applying does: then nothing more is served (I10)."""
        loop = asyncio.get_running_loop()
        try:
            while not self._halting:
                wanted = self._gathering.wanted(loop.time())
                if proposer.is_short_of(wanted):
                    await self._gather(proposer, wanted)
                batch = proposer.take()
                if batch is None:
                    self._ready.clear()
                    # A node that was told to halt meanwhile has woken this already.
                    if not self._halting:
                        await self._ready.wait()
                else:
                    await self._take_through(batch, proposer, committer)
        except Exception as failure:
            if not isinstance(failure, JournalError):
                log.exception("appending or applying failed")
            if self.among_others and isinstance(failure, Conflict | Unknown):
                proposer.stop(errors.LeaderChanged())
                proposer.refused(errors.LeaderFailed())
            else:
                proposer.stop(errors.Stopped())
                proposer.refused(errors.Stopped())
            self._on_failure(failure)

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

    async def _take_through(self, batch: Batch, proposer: Proposer, committer: Committer) -> None:
        loop = asyncio.get_running_loop()
        started = loop.time()
        try:
            self.tail = await self._append(batch)
        except NoSpace:
            log.warning("the journal has no space: writes in flight are refused")
            proposer.refused(errors.NoSpace())
            return
        self.committing = True
        self.appends += 1
        now = loop.time()
        self._gathering.appended(now, proposer.under_way)
        self.observe_append(now - started, batch.nbytes, len(batch.replies))
        await self._slicer.run(committer.commit_steps(batch))
        self.committing = False

    async def _append(self, batch: Batch) -> int:
        """Append until the outcome is known (R5).

        The same bytes at the same expected tail each time: only one of the tries can take
        effect. A conflict after an unknown outcome may be our own success, so it is looked up.
        """
        expected = self.tail
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
