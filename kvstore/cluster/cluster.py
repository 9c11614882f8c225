"""A node among others: turns what the election says into leading and following.

One task changes the role, one step at a time, so that a node never leads and follows at once.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import time
from collections.abc import Callable
from typing import Protocol

from journal.contract import Journal, JournalError
from kvstore.cluster.election import Election, Member, Timing
from kvstore.cluster.elector import POLL_S, Elector
from kvstore.cluster.errors import (
    BadTransferee,
    MemberChangeTimeout,
    MemberIsLive,
    MemberNotFound,
    NotLeader,
    Superseded,
    TransferTimeout,
)

log = logging.getLogger(__name__)

DELAY_S_MAX = 0.2
"""Nodes claim a random part of this later than they could: seldom two at once."""

HAND_OVER_S = 5.0
"""What writes in flight may take before leadership is handed over without them, and what the
successor may take."""

NO_LEADER_S = 3.0
"""So long nobody leads before clients that asked are told; etcd waits three election timeouts."""

REMOVE_S = 5.0
"""What a removal of a member may take to be written."""

COMEBACK_S = 10 * POLL_S
"""A member that lives sees at its next look at the journal that it was removed, and is back."""

RETRY_S = 1.0
"""A node that could not take the lead lets others try for so long."""


class Roles(Protocol):
    """What a node does when it leads and when it follows; see `kvstore.node.node.Node`."""

    is_leading: bool

    @property
    def term(self) -> int: ...

    async def take_lead(self, term: int) -> None: ...

    async def step_down(self) -> None: ...

    async def follow(self) -> None: ...

    async def drain_writes(self, within_s: float) -> None: ...


def boottime() -> float:
    """Seconds that go on while the machine sleeps (R6)."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Cluster:
    """One node's part in the cluster."""

    def __init__(
        self,
        node: Roles,
        control: Journal,
        me: Member,
        timing: Timing,
        clock: Callable[[], float] = boottime,
    ) -> None:
        self.clock = clock
        self._node = node
        self.election = Election(
            me, os.urandom(16), timing, random.SystemRandom().uniform(0, DELAY_S_MAX)
        )
        self._elector = Elector(control, self.election, self.clock, lambda: node.term, self._look)
        self._leaving = False
        self._left = False
        self._lost = False
        self._wanted = asyncio.Event()
        self._changed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._task: asyncio.Task[None] | None = None
        self._seen: tuple[Member | None, bool, bool] = (None, False, False)
        self._timer: asyncio.TimerHandle | None = None
        self.leader_changes = 0
        self.on_no_leader: Callable[[], None] = lambda: None
        """Called when there has been no leader for NO_LEADER_S, as far as this node can tell."""
        self.is_leaderless = False
        """Whether that is so: longer than any change of leader takes."""
        self._led_at = 0.0

    # -- what others ask -------------------------------------------------------------------

    def leads(self) -> bool:
        """Whether the lease holds (R6)."""
        return not self._leaving and self.election.leads(self.clock())

    @property
    def leader(self) -> Member | None:
        """Who leads, as far as this node can tell."""
        return self.election.leader(self.clock())

    def members(self) -> list[Member]:
        """Everybody who has joined and was not removed."""
        return self.election.members()

    def changed(self) -> asyncio.Future[None]:
        """Done at the next change of anything that says who leads; "next" is from this call on.

        No coroutine: `wait_for` may run one later than it is called, and miss a change.
        """
        return asyncio.shield(self._changed)

    # -- life ------------------------------------------------------------------------------

    async def open(self) -> None:
        """Make this node known, and take part. Raises JournalError."""
        self._elector.eligible = True
        await self._elector.open()
        self._task = asyncio.get_running_loop().create_task(self._run())
        self._led_at = self.clock()
        self._look()
        self._tick()

    async def close(self) -> None:
        """Hand the lead to anyone, and leave."""
        await self.step_aside()
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._elector.close()

    async def step_aside(self) -> None:
        """Lead no more, nor again: this node is about to end."""
        self._elector.eligible = False
        if self._node.is_leading or self.election.holds:
            await self._hand_over(0)

    async def hand_over(self, successor: int) -> None:
        """Have another member lead (MoveLeader).

        Raises NotLeader, BadTransferee, TransferTimeout.
        """
        if not self.leads():
            raise NotLeader
        if self.election.member(successor) is None:
            raise BadTransferee
        if successor == self.election.me.id:
            return
        await self._hand_over(successor)
        deadline = self.clock() + HAND_OVER_S
        while self.election.control.leader != successor:
            if self.clock() > deadline:
                raise TransferTimeout
            await asyncio.sleep(0.01)

    async def remove(self, member_id: int) -> None:
        """Take a member that is gone off the list (MemberRemove).

        Whether it is gone shows when it was removed: members make themselves known whenever they
        are not. Raises NotLeader, MemberNotFound, MemberIsLive, MemberChangeTimeout.
        """
        if not self.leads():
            raise NotLeader
        if self.election.member(member_id) is None:
            raise MemberNotFound
        if member_id == self.election.me.id:
            raise MemberIsLive
        try:
            await asyncio.wait_for(self._elector.remove(member_id), REMOVE_S)
        except TimeoutError:
            raise MemberChangeTimeout from None
        deadline = self.clock() + COMEBACK_S
        while self.clock() < deadline:
            if self.election.member(member_id) is not None:
                raise MemberIsLive
            await asyncio.sleep(POLL_S / 2)
        log.info("member removed", extra={"fields": {"member": f"{member_id:x}"}})

    async def _hand_over(self, successor: int) -> None:
        """Finish what is in flight, give up the lease, then say so: in this order (R6)."""
        self._leaving = True
        try:
            await self._node.drain_writes(HAND_OVER_S)
            self._left = True
            self._elector.vacate(successor)
            self._wanted.set()
            deadline = self.clock() + HAND_OVER_S
            while (self.election.holds or self._node.is_leading) and self.clock() < deadline:
                await asyncio.sleep(0.005)
        finally:
            self._leaving = self._left = False

    def lead_lost(self) -> None:
        """The data journal refused this leader, or does not answer."""
        self._lost = True
        self._wanted.set()

    # -- roles -----------------------------------------------------------------------------

    def _look(self) -> None:
        """The control journal was looked at, whether something was new or not."""
        self._wanted.set()
        self._notice()

    def _tick(self) -> None:
        """Time alone changes who leads too, and a journal that does not answer may take long to
        say so."""
        self._timer = asyncio.get_running_loop().call_later(POLL_S, self._tick)
        self._notice()
        now = self.clock()
        if self.leader is not None:
            self._led_at = now
        elif not self.is_leaderless and now - self._led_at >= NO_LEADER_S:
            self.is_leaderless = True
            self.on_no_leader()

    def _notice(self) -> None:
        """Tell who waits for it of a change, if there is one."""
        seen = self.leader, self.election.holds, self.leads()
        if seen == self._seen:
            return
        before, self._seen = self._seen[0], seen
        leader = seen[0]
        if leader is not None:
            self.is_leaderless = False
            if leader != before:
                self.leader_changes += 1
                log.info(
                    "leader changed",
                    extra={"fields": {"leader": leader.name, "term": self.election.control.term}},
                )
        self._tell()

    def _tell(self) -> None:
        changed, self._changed = self._changed, asyncio.get_running_loop().create_future()
        changed.set_result(None)

    async def _run(self) -> None:
        node, election = self._node, self.election
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            if node.is_leading and (self._lost or self._left or not election.holds):
                lost = self._lost
                await node.step_down()
                if lost and election.holds:
                    self._elector.vacate(0)
                self._tell()
            elif not node.is_leading and election.holds and not self._elector.vacating:
                await self._take_lead(election.control.term)
                self._tell()
            self._lost = False

    async def _take_lead(self, term: int) -> None:
        try:
            await self._node.take_lead(term)
        except (Superseded, JournalError) as error:
            log.warning("the lead of term %d could not be taken: %s", term, error)
            await self._node.follow()
            self._elector.eligible = False
            self._elector.vacate(0)
            await asyncio.sleep(RETRY_S)
            self._elector.eligible = True
            return
        log.info("leading", extra={"fields": {"term": term}})
