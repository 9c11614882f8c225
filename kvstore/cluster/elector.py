"""The election's hands: reads the control journal, appends to it, and says who leads."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from google.protobuf.message import DecodeError

from journal.contract import Conflict, Corrupt, Journal, JournalError, Trimmed
from kvstore.cluster.election import Election
from kvstore.cluster.errors import NotLeader
from kvstore.pb import control_pb2 as pb

log = logging.getLogger(__name__)

POLL_S = 0.1
"""How often the control journal is read: that much later at most is a change known."""

KEPT_ENTRIES = 256
"""Entries of the past that stay for a person to look at; one of them is enough for a node."""


class Elector:
    """Keeps one node's `Election` true. Everything is done by one task, one step at a time."""

    def __init__(
        self,
        control: Journal,
        election: Election,
        clock: Callable[[], float],
        term: Callable[[], int],
        on_change: Callable[[], None],
    ) -> None:
        """`clock`: see election. `term`: the newest term in the data journal, as known here.
        `on_change` is called after each look at the journal, whether it answered or not."""
        self.election = election
        self.eligible = False
        """Whether this node may lead."""
        self._control = control
        self._clock = clock
        self._term = term
        self._on_change = on_change
        self._renew_at = 0.0
        self._vacating: int | None = None
        self._removals: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._nudged = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._trimmed = 0

    async def open(self) -> None:
        """Read who leads, make this node known, and go on in the background.

        Raises JournalError.
        """
        opened = await self._control.open()
        self.election.sequence = max(opened.tail - 1, opened.oldest - 1, 0)
        await self._look()
        while not self.election.is_known:
            with suppress(Conflict):
                await self._append(self.election.joining())
                break
            await self._look()
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        """End the background task and let go of the journal."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._refuse_removals()
        await self._control.close()

    def nudge(self) -> None:
        """Look and act at once."""
        self._nudged.set()

    def vacate(self, successor: int) -> None:
        """Step down in favour of a member, or (0) of anyone: the lease is void from here on."""
        self.election.release()
        self._vacating = successor
        self.nudge()

    def remove(self, member_id: int) -> asyncio.Future[None]:
        """Take a member off the list: done when that is written. NotLeader where others lead."""
        removed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._removals.append((member_id, removed))
        self.nudge()
        return removed

    @property
    def vacating(self) -> bool:
        """Whether that is still to be said."""
        return self._vacating is not None

    async def _run(self) -> None:
        while True:
            self._nudged.clear()
            again = False
            try:
                await self._look()
                await self._act()
            except Conflict:
                again = True
            except Corrupt:
                log.exception("the control journal is damaged")
                self.election.lost_contact()
            except JournalError as error:
                if self.election.in_contact:
                    log.warning("the control journal does not answer: %s", error)
                self.election.lost_contact()
            self._on_change()
            if not again:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._nudged.wait(), POLL_S)

    async def _look(self) -> None:
        """Take in what is new."""
        asked_at = self._clock()
        try:
            await self._read()
        except Trimmed:
            # The last entry tells everything.
            self.election.sequence = await self._control.tail() - 1
            await self._read()
        now = self._clock()
        self.election.reached(now, now - asked_at)

    async def _read(self) -> None:
        election = self.election
        async for entries in self._control.read(election.sequence):
            for entry in entries:
                election.observe(entry.sequence, _parse(entry.payload), self._clock())

    async def _act(self) -> None:
        """Renew, step down, or claim. Raises Conflict when somebody else was quicker."""
        election = self.election
        if election.holds:
            if self._vacating is not None:
                await self._append(election.vacancy(self._vacating))
                self._vacating = None
            elif self._clock() >= self._renew_at:
                await self._append(election.renewal())
                await self._trim()
            else:
                await self._remove()
            return
        self._vacating = None
        self._refuse_removals()
        if not election.is_known:
            await self._append(election.joining())
        if self.eligible and election.may_claim(self._clock()):
            await self._append(election.claim(self._term()))

    async def _remove(self) -> None:
        """What was asked for: of the leader, as all changes are."""
        while self._removals:
            member_id, removed = self._removals[0]
            # An append that failed may be there all the same; nobody may be waiting any more.
            if self.election.member(member_id) is not None and not removed.done():
                await self._append(self.election.removal(member_id))
            self._removals.popleft()
            if not removed.done():
                removed.set_result(None)

    def _refuse_removals(self) -> None:
        while self._removals:
            _, removed = self._removals.popleft()
            if not removed.done():
                removed.set_exception(NotLeader())

    async def _append(self, entry: pb.Control) -> None:
        sent_at = asked_at = self._clock()
        sequence = await self._control.append([entry.SerializeToString()], self.election.sequence)
        if self._vacating is not None and entry.kind == pb.Control.RENEW:
            # Asked to step down while a renewal was under way: it extends nothing.
            sent_at = float("-inf")
        self.election.committed(sequence, entry, sent_at)
        now = self._clock()
        self.election.reached(now, now - asked_at)
        self._renew_at = sent_at + self.election.timing.renewal_s

    async def _trim(self) -> None:
        sequence = self.election.sequence
        if sequence - self._trimmed > 2 * KEPT_ENTRIES:
            self._trimmed = sequence - KEPT_ENTRIES
            await self._control.trim(self._trimmed)


def _parse(payload: bytes) -> pb.Control:
    try:
        return pb.Control.FromString(payload)
    except DecodeError:
        raise Corrupt(
            "control journal", 0, "an entry is none of ours", "Restore it from a copy"
        ) from None
