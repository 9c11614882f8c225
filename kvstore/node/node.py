"""A node: the parts that make a write's life, put together, and their clocks."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from journal.contract import Journal
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
from kvstore.node.gathering import Gathering
from kvstore.node.operation import Operation
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
REVOKES_PER_PERIOD = 500
DRAIN_S = 10.0
SLOW_APPEND_S = 1.0


@dataclass(frozen=True, slots=True)
class NodeOptions:
    """What a node can be told."""

    name: str = "default"
    quota_bytes: int = 2 << 30
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
    ) -> None:
        """`cpu_s` is the processor time of the loop's thread."""
        self._cpu_s = cpu_s
        self.options = options
        self.journal = journal
        self.table = table
        self.failed: asyncio.Future[BaseException] = loop.create_future()
        self.slicer = Slicer(loop)
        self.now = loop.time
        self._loop = loop
        self._ticker: asyncio.TimerHandle | None = None
        self._snapshot_task: asyncio.Task[None] | None = None
        self._next_expiry = 0.0
        self._compacting = False
        self._compaction_waiters: list[tuple[int, Callable[[], None]]] = []
        self._snapshot_bytes = 0
        self._entries_at_snapshot = 0
        self._bytes_at_snapshot = 0
        self._journaled_bytes = 0
        self._alarm_pending = False
        self.versions_compacted = 0
        self.leases_expired = 0
        self.is_open = False

    # -- start and end ---------------------------------------------------------------------

    async def open(self) -> None:
        """Recover the state, take the lead with a fence in the journal, and serve.

        Raises JournalError when the journal cannot be used.
        """
        opened = await self.journal.open()
        recovery = Recovery(self.journal, self.table, self.now)
        self.state = await recovery.run(opened)
        self.snapshot_sequence = recovery.snapshot_sequence
        self._snapshot_bytes = recovery.snapshot_bytes
        tail = await self._fence(opened.identity, opened.tail)
        self.state.lessor.renew_all(self.now())
        self.hub = Hub(self.state.store)
        self.appender = Appender(self.journal, self.slicer, Gathering(self._cpu_s), self._fail)
        self.proposer = Proposer(
            self.state, self.journal, self.slicer, self.now, self.appender.wake
        )
        self.proposer.quota_bytes = self.options.quota_bytes
        self.proposer.on_no_space = self._raise_no_space
        self.proposer.is_capped = self._is_capped
        self.proposer.on_failure = self._fail
        self.committer = Committer(self.state, self.hub, self.proposer, self.now)
        self.committer.on_compact = self._compact_physically
        self.snapshotter = Snapshotter(self.journal, self.state, self.now, recovery.damaged)
        self._auto_compaction = self.options.auto_compaction(self.now())
        self.appender.observe_append = self._appended
        self.appender.start(self.proposer, self.committer, tail)
        self._compact_physically()
        self.is_open = True
        self._tick()

    async def _fence(self, identity: bytes, tail: int) -> int:
        """Begin a new term: the first append of a leader (I6)."""
        state = self.state
        cluster_id = int.from_bytes(identity[:8]) >> 1 or 1
        member_id = int.from_bytes(identity[8:16]) >> 1 or 1
        record = records.term(state.term + 1, member_id, cluster_id)
        part = records.record_part(record)
        self.journal.reserve(len(part), urgent=True)
        tail = await self.journal.append([part], tail)
        state.change(record, self.now())
        return tail

    async def close(self) -> None:
        """Answer what is in flight, sync, and let go of the journal (SIGTERM)."""
        if self._ticker is not None:
            self._ticker.cancel()
        if self.is_open:
            self.is_open = False
            self.proposer.stop()
            deadline = self.now() + DRAIN_S
            while not self.proposer.idle and not self.failed.done() and self.now() < deadline:
                await asyncio.sleep(0.005)
            await self.appender.stop()
        if self._snapshot_task is not None:
            self._snapshot_task.cancel()
            await asyncio.gather(self._snapshot_task, return_exceptions=True)
        await self.journal.close()

    def _fail(self, error: BaseException) -> None:
        """The journal is lost: stop serving writes at once (I10)."""
        log.critical("the node stops: %s", error)
        if not self.failed.done():
            self.failed.set_result(error)

    # -- writes ----------------------------------------------------------------------------

    def submit(self, operation: Operation) -> None:
        """Take a write request in; it is answered now or later, once."""
        self.proposer.submit(operation)

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
        a full disk it is there as long as the journal has no room, and goes by itself.
        """
        active = set(self.state.alarms)
        if self.proposer.disk_is_full:
            active.add((self.state.member_id, pb.NOSPACE))
        return sorted(active)

    def _is_capped(self) -> bool:
        return any(kind == pb.NOSPACE for _, kind in self.state.alarms)

    def _raise_no_space(self) -> None:
        """The quota is used up: raise the alarm, once, as etcd's quotaAlarmer does."""
        if self._alarm_pending:
            return
        self._alarm_pending = True

        def done(response: bytes | None, error: Exception | None) -> None:
            self._alarm_pending = False

        state = self.state
        self.submit(AlarmChange(state, state.member_id, pb.NOSPACE, True, nothing, done))

    # -- time ------------------------------------------------------------------------------

    def _tick(self) -> None:
        self._ticker = self._loop.call_later(TICK_S, self._tick)
        now = self.now()
        self.proposer.expire(now)
        self.proposer.look_for_room()
        if now >= self._next_expiry:
            self._next_expiry = now + EXPIRY_PERIOD_S
            for lease_id in self.state.lessor.due(now, REVOKES_PER_PERIOD):
                self.leases_expired += 1
                self.submit(LeaseExpiry(self.state, lease_id, nothing, nobody))
        target = self._auto_compaction.due(now, self.state.store.revision)
        if target is not None and target > self.state.store.compact_revision:
            self.submit(Compaction(self.state, target, nothing, nobody))
        if self.state.store.compacted_through < self.state.store.compact_revision:
            self._compact_physically()
        if self._snapshot_is_due():
            self.start_snapshot()

    # -- compaction ------------------------------------------------------------------------

    def when_compacted(self, revision: int, done: Callable[[], None]) -> None:
        """Call `done` once physical compaction has reached `revision`."""
        if self.state.store.compacted_through >= revision:
            done()
        else:
            self._compaction_waiters.append((revision, done))
            self._compact_physically()

    def _compact_physically(self) -> None:
        if self._compacting:
            return
        self._compacting = True
        self.slicer.start(self.state.store.compact_steps(self.now()), self._compacted)

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
