"""Everything that a journal determines: store, leases, alarms, term.

`State` applies changes that are committed; it neither decides nor journals. Replaying the same
records over the same snapshot always gives the same state (I5).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from heapq import merge

from kvstore.lease.lessor import Lessor
from kvstore.mvcc.index import Node
from kvstore.mvcc.shard import Shard
from kvstore.mvcc.store import SLICE, Steps, Store
from kvstore.mvcc.version import Version, version_from_wire
from kvstore.mvcc.view import WriteView
from kvstore.pb import record_pb2
from partitioner.table import PartitionTable

LEASE_OVERHEAD_BYTES = 512
"""What a lease costs without its keys, roughly: without it a client could grant them for ever."""

Alarm = tuple[int, int]
"""(member id, etcdserverpb.AlarmType)."""


class State:
    """The replicated state of one cluster."""

    def __init__(self, table: PartitionTable) -> None:
        self.store = Store(table)
        self.lessor = Lessor()
        self.alarms: set[Alarm] = set()
        self.term = 0
        self.cluster_id = 0
        self.member_id = 0

    def has_alarm(self, kind: int) -> bool:
        """Whether any member has an alarm of that kind (etcdserverpb.AlarmType)."""
        return any(found == kind for _, found in self.alarms)

    @property
    def size_bytes(self) -> int:
        """What counts against the quota: all kept versions, and the leases."""
        return self.store.size_bytes + LEASE_OVERHEAD_BYTES * len(self.lessor)

    def link(self, shard: Shard, version: Version, node: Node | None = None) -> None:
        """Apply one version: index, history, and the key's place among the leases."""
        replaced = shard.link(version, node)
        lease = version.lease
        if replaced is not None:
            if replaced.lease != lease:
                self.lessor.move(version.key, replaced.lease, lease)
        elif lease:
            self.lessor.move(version.key, 0, lease)

    def change(self, record: record_pb2.Record, now: float) -> None:
        """Apply a record's part that is not a version of a key."""
        match record.WhichOneof("change"):
            case "lease_grant":
                self.lessor.grant(record.lease_grant.id, record.lease_grant.ttl_s, now)
            case "lease_revoke":
                self.lessor.revoke(record.lease_revoke)
            case "compact":
                self.store.compact_revision = max(self.store.compact_revision, record.compact)
            case "term":
                self.term = record.term.term
                self.cluster_id = record.term.cluster_id
                self.member_id = record.term.member_id
            case "alarm":
                alarm = (record.alarm.member_id, record.alarm.type)
                if record.alarm.active:
                    self.alarms.add(alarm)
                else:
                    self.alarms.discard(alarm)
            case _:
                pass

    def replay_steps(
        self,
        record: record_pb2.Record,
        now: float,
        note: Callable[[Sequence[Version]], None],
    ) -> Steps[None]:
        """Apply what a record of the journal has beside versions, without publishing it.

        `note` is told of all versions that this makes, in order.
        """
        store = self.store
        change = record.WhichOneof("change")
        if change == "delete_range":
            key_range = record.delete_range
            high = None if key_range.range_end == b"\x00" else key_range.range_end
            view = WriteView(store, {}, record.revision, now, one_pass=True)
            yield from view.delete_range_steps(key_range.key, high)
            yield from self._link_all(view, note)
        elif change == "lease_revoke":
            lease = self.lessor.get(record.lease_revoke)
            if lease is not None and record.revision:
                view = WriteView(store, {}, record.revision, now, one_pass=True)
                yield from delete_lease_keys_steps(view, lease.keys.parts())
                yield from self._link_all(view, note)
            self.change(record, now)
        elif change is not None:
            self.change(record, now)

    def link_wire(self, framed: bytes, sub: int) -> Version:
        """Apply a version as journal entries hold it, the `sub`th of its transaction."""
        version = version_from_wire(framed, sub)
        shard = self.store.shard_of(version.key)
        node = shard.index.node(version.key)
        if node is not None:
            version.key = node.key
            version.previous = node.head
        self.link(shard, version, node)
        return version

    def _link_all(self, view: WriteView, note: Callable[[Sequence[Version]], None]) -> Steps[None]:
        for part in view.effect_parts:
            for shard, version, node in part:
                self.link(shard, version, node)
            note([version for _, version, _ in part])
            yield


def delete_lease_keys_steps(view: WriteView, parts: Iterator[list[bytes]]) -> Steps[int]:
    """Delete the keys of a lease in key order, as etcd does. Returns how many there were."""
    runs: list[list[bytes]] = []
    for part in parts:
        runs.append(sorted(part))
        if len(part) >= SLICE // 4:
            yield
    deleted = 0
    for key in merge(*runs):
        if view.delete(key) is not None:
            deleted += 1
            if deleted % (SLICE // 2) == 0:
                yield
    return deleted
