"""A node: the parts that make a write's life, put together, and their clocks."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from journal.contract import Conflict, Journal, JournalError, Unknown
from kvstore.cluster.cluster import Cluster, boottime
from kvstore.cluster.election import Member, Timing
from kvstore.cluster.errors import BadTransferee, LastMember, MemberNotFound, Superseded
from kvstore.mvcc.store import Steps
from kvstore.node import records
from kvstore.node.appender import Appender
from kvstore.node.autocompact import AutoCompaction, Never
from kvstore.node.commands import (
    AlarmChange,
    Compaction,
    LeaseExpiry,
    nobody,
    nothing,
)
from kvstore.node.committer import Committer
from kvstore.node.errors import LeaderChanged, LeaderFailed, Stopped
from kvstore.node.follower import Follower
from kvstore.node.gathering import Gathering
from kvstore.node.proposer import Proposer
from kvstore.node.recovery import Recovery
from kvstore.node.slicer import Slicer
from kvstore.node.snapshotter import Snapshotter
from kvstore.node.state import Alarm
from kvstore.pb import rpc_pb2 as pb
from kvstore.watch.hub import Hub
from partitioner.table import PartitionTable

log = logging.getLogger(__name__)

TICK_S = 0.1
EXPIRY_PERIOD_S = 0.5
TAIL_PERIOD_S = 1.0
REVOKES_UNDER_WAY_MAX = 16
"""Leases that end at once, as in etcd: each takes an append of its own, and a client's write that
comes then waits for no more of them."""
DRAIN_S = 10.0
SLOW_APPEND_S = 1.0


@dataclass(frozen=True, slots=True)
class NodeOptions:
    """What a node can be told."""

    name: str = "default"
    client_urls: tuple[str, ...] = ()
    """Where clients and other nodes reach this one."""
    timing: Timing = field(default_factory=Timing)
    quota_bytes: int = 2 << 30
    """Below 0: no limit."""
    snapshot_entries: int = 0
    """Take a snapshot after this many write requests; 0: when the journal has grown by as much
    as the last snapshot has, and by 256 MiB. So all snapshots together write at most twice what the
    journal does; with half of that growth it was three times, a fifth of a busy server's time."""
    snapshot_bytes_min: int = 256 << 20
    snapshot_entries_min: int = 10_000
    auto_compaction: Callable[[float], AutoCompaction] = field(default=lambda now: Never())


class Node:
    """One server's state and the way into it. Everything runs on one loop's thread."""

    def __init__(
        self,
        journal: Journal,
        table: PartitionTable,
        options: NodeOptions,
        loop: asyncio.AbstractEventLoop,
        cpu_s: Callable[[], float] = time.thread_time,
        clock: Callable[[], float] = boottime,
    ) -> None:
        """`cpu_s` is the processor time of the loop's thread, `clock` that of the lead (R6)."""
        self._cpu_s = cpu_s
        self._clock = clock
        self.options = options
        self.journal = journal
        self.table = table
        self.failed: asyncio.Future[BaseException] = loop.create_future()
        self.slicer = Slicer(loop)
        self.now = loop.time
        self.call_later = loop.call_later
        self._loop = loop
        self._ticker: asyncio.TimerHandle | None = None
        self._snapshot_task: asyncio.Task[None] | None = None
        self._next_expiry = 0.0
        self._expiring = False
        self._revoking = 0
        self._lapsed = False
        """The lead was lost for a while, and nobody could keep a lease alive."""
        self._compacting = False
        self._compaction_waiters: list[tuple[int, Callable[[], None]]] = []
        self._snapshot_bytes = 0
        self._entries_at_snapshot = 0
        self._bytes_at_snapshot = 0
        self._journaled_bytes = 0
        self._alarm_pending = False
        self._term_seen = 0
        self._tail_seen = 0
        self._tail_task: asyncio.Task[None] | None = None
        self._next_look = 0.0
        self._changing: set[asyncio.Task[None]] = set()
        self.is_leading = False
        self.cluster: Cluster | None = None
        """None: this node is alone, and leads."""
        self.on_term: Callable[[], None] = lambda: None
        """Called when a new term has begun."""
        self.on_load: Callable[[int, int], None] = lambda done, total: None
        """Called with (bytes done, bytes in total) while `open` loads a snapshot, often."""
        self.observe_compaction: Callable[[float], None] = lambda seconds: None
        """Told how long a physical compaction took."""
        self.observe_compaction_step: Callable[[float], None] = lambda seconds: None
        """Told how long one step of it held the loop."""
        self.versions_compacted = 0
        self.leases_expired = 0
        self.is_open = False

    # -- start and end ---------------------------------------------------------------------

    async def open(self) -> None:
        """Recover the state; then lead, or follow where several nodes share the journal.

        Raises JournalError when the journal cannot be used.
        """
        opened = await self.journal.open()
        recovery = Recovery(self.journal, self.table, self.now, self.on_load)
        self.state = await recovery.run(opened)
        self.snapshot_sequence = recovery.snapshot_sequence
        self._snapshot_bytes = recovery.snapshot_bytes
        self.cluster_id = _id(opened.identity[:8])
        self.hub = Hub(self.state.store)
        self.appender = Appender(self.journal, self.slicer, Gathering(self._cpu_s), self._fail)
        self.proposer = Proposer(
            self.state, self.journal, self.slicer, self.now, self.appender.wake
        )
        self.proposer.stop(LeaderChanged())
        self.proposer.quota_bytes = self.options.quota_bytes
        self.proposer.on_no_space = self._raise_no_space
        self.proposer.on_failure = self._fail
        self.committer = Committer(self.state, self.hub, self.proposer, self.now)
        self.committer.on_compact = self._compact_physically
        self.follower = Follower(
            self.journal,
            self.state,
            self.hub,
            self.slicer,
            self.now,
            recovery.tail,
            self._applied,
            self._lost,
        )
        self.snapshotter = Snapshotter(self.journal, self.state, self.now, recovery.damaged)
        self.appender.observe_append = self._appended
        control = self.journal.control
        if control is None:
            self.member_id = _id(opened.identity[8:16])
            await self.take_lead(self.state.term + 1)
        else:
            digest = hashlib.blake2b(self.options.name.encode(), key=opened.identity)
            self.member_id = _id(digest.digest()[:8])
            me = Member(self.member_id, self.options.name, self.options.client_urls)
            self.appender.among_others = True
            self.cluster = Cluster(self, control, me, self.options.timing, self._clock)
            self.follower.start()
            await self.cluster.open()
        self._compact_physically()
        self.is_open = True
        self._tick()

    async def close(self) -> None:
        """Answer what is in flight, sync, and let go of the journal (SIGTERM)."""
        if self._ticker is not None:
            self._ticker.cancel()
        if self.is_open:
            self.is_open = False
            if self.cluster is not None:
                await self.cluster.close()
            self.proposer.stop(Stopped())
            await self.drain_writes(DRAIN_S)
            await self.appender.stop()
            await self.follower.stop()
        for task in (self._snapshot_task, self._tail_task):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        await self.journal.close()

    def move_leader(self, successor: int, done: Callable[[Exception | None], None]) -> None:
        """Have another member lead; `done` is told how it ended."""

        async def move() -> None:
            if self.cluster is not None:
                await self.cluster.hand_over(successor)
            elif successor != self.member_id:
                raise BadTransferee

        self._change(move(), done)

    def remove_member(self, member_id: int, done: Callable[[Exception | None], None]) -> None:
        """Take a member off the list, where there are several; `done` is told how it ended."""
        if self.cluster is None:
            done(LastMember() if member_id == self.member_id else MemberNotFound())
            return
        self._change(self.cluster.remove(member_id), done)

    def _change(
        self, work: Coroutine[Any, Any, None], done: Callable[[Exception | None], None]
    ) -> None:
        """Something about the cluster that takes its time."""

        async def change() -> None:
            try:
                await work
            except Exception as error:
                done(error)
            else:
                done(None)

        task = self._loop.create_task(change())
        self._changing.add(task)
        task.add_done_callback(self._changing.discard)

    async def drain_writes(self, within_s: float) -> None:
        """Wait until nothing is in flight, for so long at most."""
        deadline = self.now() + within_s
        while not self.proposer.idle and not self.failed.done() and self.now() < deadline:
            await asyncio.sleep(0.005)

    def _fail(self, error: BaseException) -> None:
        """The journal is lost, or the lead: stop serving writes at once (I10)."""
        if self.cluster is not None and isinstance(error, Conflict | Unknown):
            log.warning("the lead is lost: %s", error)
            self.cluster.lead_lost()
            return
        self._lost(error)

    def _lost(self, error: BaseException) -> None:
        log.critical("the node stops: %s", error)
        if not self.failed.done():
            self.failed.set_result(error)

    # -- leading and following -------------------------------------------------------------

    async def take_lead(self, term: int) -> None:
        """Begin a new term: apply all that is there, then append the fence (I6).

        Raises Superseded when a later term has begun, and JournalError.
        """
        await self.follower.stop()
        record = records.term(term, self.member_id, self.cluster_id)
        part = records.record_part(record)
        while True:
            if self.cluster is not None:
                await self.follower.catch_up()
            if self.state.term >= term:
                raise Superseded
            self.journal.reserve(len(part), urgent=True)
            try:
                tail = await self.journal.append([part], self.follower.applied)
            except Conflict:
                # The leader before may append until then, and no longer.
                if self.cluster is None:
                    raise
                continue
            break
        now = self.now()
        self.state.change(record, now)
        self.follower.applied = tail
        self.state.lessor.renew_all(now)
        self._auto_compaction = self.options.auto_compaction(now)
        self.proposer.resume()
        self.appender.start(self.proposer, self.committer, tail)
        self.is_leading = True
        self.on_term()

    async def step_down(self) -> None:
        """Lead no more, and follow from where this node's own writes ended.

        An append that is under way is waited for: the journal decides whether it counts (I6).
        """
        self.is_leading = False
        self.proposer.stop(LeaderChanged())
        await self.appender.halt()
        self.proposer.refused(LeaderFailed())
        while not self.proposer.idle:
            await asyncio.sleep(0.005)
        self.follower.applied = self.appender.tail
        self.follower.start()

    async def follow(self) -> None:
        """Go on following when the lead could not be taken."""
        self.follower.start()

    def leads(self) -> bool:
        """Whether linearizable requests may be served by this node, now (R6)."""
        return self.is_leading and (self.cluster is None or self.cluster.leads())

    @property
    def term(self) -> int:
        """The newest term that the state has seen."""
        return self.state.term

    @property
    def leader_id(self) -> int:
        """The leader's member id; 0 if there is none as far as this node can tell."""
        if self.cluster is None:
            return self.member_id
        leader = self.cluster.leader
        return leader.id if leader is not None else 0

    def members(self) -> list[Member]:
        """The nodes that share the journal."""
        if self.cluster is None:
            return [Member(self.member_id, self.options.name, self.options.client_urls)]
        return self.cluster.members()

    @property
    def applied(self) -> int:
        """The sequence that the state stands at."""
        return self.appender.tail if self.is_leading else self.follower.applied

    @property
    def journal_tail(self) -> int:
        """The journal's last sequence, as of a second ago at most."""
        return max(self.applied, self._tail_seen)

    async def _look_at_tail(self) -> None:
        try:
            self._tail_seen = await self.journal.tail()
        except JournalError:
            pass  # It stays what it was; the election says that the journal is away.
        finally:
            self._tail_task = None

    def _applied(self) -> None:
        """The follower has applied an entry."""
        if self.state.term != self._term_seen:
            self._term_seen = self.state.term
            self.on_term()

    # -- writes ----------------------------------------------------------------------------

    def _appended(self, seconds: float, nbytes: int, entries: int) -> None:
        self._journaled_bytes += nbytes
        if seconds > SLOW_APPEND_S:
            log.warning(
                "the journal is slow",
                extra={"fields": {"append-seconds": round(seconds, 3), "bytes": nbytes}},
            )

    def alarms(self) -> list[Alarm]:
        """The active alarms, in order.

        NOSPACE for a used-up quota is journaled and stays until it is disarmed, as in etcd. For
        a full disk, and for a shard that has used up its budget, it is there as long as there is no
        room, and goes by itself.
        """
        active = set(self.state.alarms)
        if self.proposer.disk_is_full or self.proposer.full_shards:
            active.add((self.member_id, pb.NOSPACE))
        return sorted(active)

    def _raise_no_space(self) -> None:
        """The quota is used up: raise the alarm, once, as etcd's quotaAlarmer does."""
        if self._alarm_pending:
            return
        self._alarm_pending = True

        def done(response: bytes | None, error: Exception | None) -> None:
            self._alarm_pending = False

        state = self.state
        self.proposer.submit(AlarmChange(state, self.member_id, pb.NOSPACE, True, nothing, done))

    # -- time ------------------------------------------------------------------------------

    def _tick(self) -> None:
        self._ticker = self._loop.call_later(TICK_S, self._tick)
        now = self.now()
        if self.state.store.compacted_through < self.state.store.compact_revision:
            self._compact_physically()
        if not self.is_leading:
            if self._tail_task is None and now >= self._next_look:
                self._next_look = now + TAIL_PERIOD_S
                self._tail_task = self._loop.create_task(self._look_at_tail())
            return
        self.proposer.expire(now)
        self.proposer.look_for_room()
        if not self.leads():
            self._lapsed = True
        elif self._lapsed:
            self._lapsed = False
            # In etcd there would be a new leader now.
            self.state.lessor.renew_all(now)
        if now >= self._next_expiry:
            self._next_expiry = now + EXPIRY_PERIOD_S
            self._expire_leases()
        target = self._auto_compaction.due(now, self.state.store.revision)
        if target is not None and target > self.state.store.compact_revision:
            self.proposer.submit(Compaction(self.state, target, nothing, nobody))
        if self._snapshot_is_due():
            self.start_snapshot()

    def _expire_leases(self) -> None:
        """Revoke leases whose time is up, as many as may be under way."""
        room = REVOKES_UNDER_WAY_MAX - self._revoking
        # While there is a CORRUPT alarm each would be refused.
        if room > 0 and not self._expiring and not self.state.has_alarm(pb.CORRUPT):
            self._expiring = True
            self.slicer.start(self._expiry_steps(room), self._expired)

    def _expiry_steps(self, limit: int) -> Steps[None]:
        """Revoke so many leases; after a take-over all of them may be looked at (I9)."""
        for part in self.state.lessor.due(self.now(), limit):
            if not self.leads() or self._lapsed:
                return
            for lease_id in part:
                self._revoking += 1
                done = partial(self._revoked, lease_id)
                self.proposer.submit(LeaseExpiry(self.state, lease_id, nothing, done))
            yield

    def _revoked(self, lease_id: int, response: bytes | None, error: Exception | None) -> None:
        self._revoking -= 1
        if error is None and lease_id not in self.state.lessor:
            self.leases_expired += 1
            if self._revoking <= REVOKES_UNDER_WAY_MAX // 2:
                self._expire_leases()

    def _expired(self, result: None, error: BaseException | None) -> None:
        self._expiring = False
        if error is not None:
            log.error("leases could not be ended", exc_info=error)

    # -- compaction ------------------------------------------------------------------------

    def when_compacted(self, revision: int, done: Callable[[], None]) -> None:
        """Call `done` once physical compaction has reached `revision`."""
        if self.state.store.compacted_through >= revision:
            done()
        else:
            self._compaction_waiters.append((revision, done))
            self._compact_physically()

    def _compact_physically(self) -> None:
        store, now = self.state.store, self.now()
        if self._compacting or store.compaction_target(now) <= store.compacted_through:
            return
        self._compacting = True
        self.slicer.start(self._compact_steps(store.compact_steps(now)), self._compacted)

    def _compact_steps(self, job: Steps[int]) -> Steps[int]:
        """The same steps, and what they took."""
        started = began = time.perf_counter()
        while True:
            try:
                next(job)
            except StopIteration as stop:
                ended = time.perf_counter()
                self.observe_compaction_step(ended - began)
                self.observe_compaction(ended - started)
                dropped: int = stop.value
                return dropped
            self.observe_compaction_step(time.perf_counter() - began)
            yield
            began = time.perf_counter()

    def _compacted(self, dropped: int | None, error: BaseException | None) -> None:
        self._compacting = False
        if error is not None:
            log.error("compaction failed", exc_info=error)
            return
        self.versions_compacted += dropped or 0
        reached = self.state.store.compacted_through
        waiting, self._compaction_waiters = self._compaction_waiters, []
        for revision, done in waiting:
            if reached >= revision:
                done()
            else:
                self._compaction_waiters.append((revision, done))

    # -- snapshots -------------------------------------------------------------------------

    def _snapshot_is_due(self) -> bool:
        if self._snapshot_task is not None:
            return False
        entries = self.committer.committed - self._entries_at_snapshot
        if self.options.snapshot_entries:
            return entries >= self.options.snapshot_entries
        nbytes = self._journaled_bytes - self._bytes_at_snapshot
        return entries >= self.options.snapshot_entries_min and nbytes >= max(
            self.options.snapshot_bytes_min, self._snapshot_bytes
        )

    def start_snapshot(self) -> None:
        """Take a snapshot in the background, of a moment soon."""
        assert self._snapshot_task is None
        self._snapshot_task = self._loop.create_task(self._snapshot())

    async def _snapshot(self) -> None:
        try:
            while self.appender.committing:
                await asyncio.sleep(0.01)
            if not self.is_leading:
                # What the state stands at is no longer the appender's tail.
                return
            # Between two commits the state is the journal's up to the tail, and `take` looks at
            # it before it first waits (R9).
            sequence = self.appender.tail
            self._entries_at_snapshot = self.committer.committed
            self._bytes_at_snapshot = self._journaled_bytes
            size = await self.snapshotter.take(sequence)
            if size:
                self._snapshot_bytes = size
                self.snapshot_sequence = sequence
        except Exception:
            log.exception("snapshot failed")
        finally:
            self._snapshot_task = None


def _id(raw: bytes) -> int:
    """A cluster's or a member's id: 63 bits, not 0."""
    return int.from_bytes(raw) >> 1 or 1
