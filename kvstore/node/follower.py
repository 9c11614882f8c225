"""Following: the journal is applied as it grows, on a node that does not lead."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from journal.contract import Corrupt, Entry, Journal, JournalError, Trimmed
from kvstore.mvcc.store import Steps
from kvstore.node.replay import entry_steps
from kvstore.node.slicer import Slicer
from kvstore.node.state import State
from kvstore.watch.hub import Hub

OUTAGE_PAUSE_S = 0.2
"""Between two tries to go on reading a journal that does not answer."""


class Follower:
    """Applies the journal as it grows, on a node that does not lead."""

    def __init__(
        self,
        journal: Journal,
        state: State,
        hub: Hub,
        slicer: Slicer,
        now: Callable[[], float],
        applied: int,
        on_applied: Callable[[], None],
        on_failure: Callable[[BaseException], None],
    ) -> None:
        """`applied`: the sequence that the state stands at."""
        self._journal = journal
        self._state = state
        self._hub = hub
        self._slicer = slicer
        self._now = now
        self.applied = applied
        self._on_applied = on_applied
        self._on_failure = on_failure
        self._task: asyncio.Task[None] | None = None
        self._applying: asyncio.Future[None] | None = None

    def start(self) -> None:
        """Follow on from what is applied."""
        assert self._task is None
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """Stop behind an entry, never within one."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        applying, self._applying = self._applying, None
        if applying is not None:
            (failure,) = await asyncio.gather(applying, return_exceptions=True)
            if failure is not None:
                self._on_failure(failure)

    async def catch_up(self) -> None:
        """Apply everything that is there. Raises JournalError."""
        async for entries in self._journal.read(self.applied):
            for entry in entries:
                await self._apply(entry)

    async def _run(self) -> None:
        while True:
            try:
                async for entries in self._journal.follow(self.applied):
                    for entry in entries:
                        await self._apply(entry)
                return
            except (Corrupt, Trimmed) as failure:
                self._on_failure(failure)
                return
            except JournalError:
                # It cannot be reached; the election says so in the log.
                await asyncio.sleep(OUTAGE_PAUSE_S)
            except Exception as failure:
                self._on_failure(failure)
                return

    async def _apply(self, entry: Entry) -> None:
        self._applying = asyncio.ensure_future(self._slicer.run(self._steps(entry)))
        # `stop` waits for what goes on when this is cancelled.
        await asyncio.shield(self._applying)
        self._applying = None

    def _steps(self, entry: Entry) -> Steps[None]:
        yield from entry_steps(self._state, entry, self._now(), self._hub)
        self.applied = entry.sequence
        self._on_applied()
