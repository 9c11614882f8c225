"""From a node's parts to the figures of a scrape."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping

from kvstore.api.service import EtcdService
from kvstore.http.local import alarm_name
from kvstore.metrics.histogram import LATENCY_S, Histogram, exponential
from kvstore.metrics.sources import (
    JournalMetrics,
    LeaseStats,
    ProposalStats,
    ServerStats,
    ShardStats,
    StoreStats,
    WatchStats,
)
from kvstore.node.node import Node
from kvstore.version import ETCD_VERSION

log = logging.getLogger(__name__)

#: What an apply may take before it counts as slow, as in etcd (--warning-apply-duration).
SLOW_APPLY_S = 0.1


class NodeStats:
    """Watches a node's clocks, and reads its numbers when it is called."""

    def __init__(
        self,
        node: Node,
        service: EtcdService,
        slow_apply_s: float = SLOW_APPLY_S,
        forwarded: Mapping[str, int] | None = None,
    ) -> None:
        """`forwarded`: calls that were passed on to the leader, by method."""
        self._forwarded = forwarded or {}
        self._node = node
        self._service = service
        self._slow_apply_s = slow_apply_s
        self._append_s = Histogram(LATENCY_S)
        self._sync_s = Histogram(LATENCY_S)
        self._write_s = Histogram(LATENCY_S)
        self._batch_records = Histogram(exponential(1, 2, 13))
        self._commit_s = ProposalStats().commit_s
        self._ttl_s = LeaseStats().ttl_s
        self._snapshot_s = JournalMetrics().snapshot_s
        store = StoreStats()
        self._hash_s, self._hash_rev_s = store.hash_s, store.hash_rev_s
        self._compaction_total_ms = store.compaction_total_ms
        self._compaction_pause_ms = store.compaction_pause_ms
        self._compacted_at = 0.0
        self._append_took_s = 0.0
        self._durable_at = 0.0
        self._slow = 0
        node.journal.on_sync = self._sync_s.observe
        node.journal.on_write = self._write_s.observe
        self._next_observer = node.appender.observe_append
        node.appender.observe_append = self._appended
        node.committer.on_publish = self._published
        node.observe_compaction = self._compacted
        node.observe_compaction_step = self._compaction_paused
        node.snapshotter.observe_taken = self._snapshot_s.observe
        node.state.lessor.on_grant = self._ttl_s.observe
        service.observe_hash = self._hash_s.observe
        service.observe_hash_kv = self._hash_rev_s.observe

    def _appended(self, seconds: float, nbytes: int, entries: int) -> None:
        self._append_s.observe(seconds)
        self._batch_records.observe(entries)
        self._append_took_s = seconds
        self._durable_at = time.perf_counter()
        self._next_observer(seconds, nbytes, entries)

    def _published(self, requests: int) -> None:
        """The batch that was appended last is visible: they are committed one by one (R1).

        Whether that was slow is counted in requests, as in etcd: all of a batch had to wait.
        """
        took_s = time.perf_counter() - self._durable_at
        self._commit_s.observe(self._append_took_s + took_s)
        if took_s > self._slow_apply_s:
            self._slow += requests
            log.warning(
                "applying took too long",
                extra={
                    "fields": {
                        "apply-seconds": round(took_s, 3),
                        "expected-seconds": self._slow_apply_s,
                        "requests": requests,
                    }
                },
            )

    def _compacted(self, seconds: float) -> None:
        self._compaction_total_ms.observe(seconds * 1000)
        self._compacted_at = time.time()

    def _compaction_paused(self, seconds: float) -> None:
        self._compaction_pause_ms.observe(seconds * 1000)

    def __call__(self) -> ServerStats:
        node = self._node
        state = node.state
        failed = node.failed.done()
        return ServerStats(
            version=ETCD_VERSION,
            member_id=node.member_id,
            has_leader=not failed and bool(node.leader_id),
            is_leader=not failed and node.is_leading,
            # A node that is alone took the lead once, when it started.
            leader_changes_total=1 if node.cluster is None else node.cluster.leader_changes,
            term=state.term,
            lease_valid=node.leads(),
            forwarded_total=self._forwarded,
            alarms=sorted({alarm_name(kind) for _, kind in node.alarms()}),
            store=self._store(),
            watch=WatchStats(
                streams=self._service.watch_streams,
                watchers=node.hub.watchers,
                slow_watchers=node.hub.slow,
                events_total=node.hub.events,
            ),
            lease=LeaseStats(
                granted_total=state.lessor.granted,
                revoked_total=state.lessor.revoked,
                renewed_total=state.lessor.renewed,
                expired_total=node.leases_expired,
                leases=len(state.lessor),
                ttl_s=self._ttl_s,
            ),
            proposals=ProposalStats(
                committed_total=node.committer.committed,
                applied_total=node.committer.applied,
                pending=node.proposer.waiting,
                pending_bytes=node.proposer.waiting_bytes,
                failed_total=node.proposer.failed,
                slow_applies_total=self._slow,
                commit_s=self._commit_s,
            ),
            journal=self._journal(),
        )

    def _store(self) -> StoreStats:
        store = self._node.state.store
        return StoreStats(
            current_revision=store.revision,
            compact_revision=store.compact_revision,
            total_bytes=store.size_bytes,
            in_use_bytes=store.live_size_bytes,
            quota_bytes=self._node.options.quota_bytes,
            puts_total=sum(shard.puts for shard in store.shards),
            deletes_total=sum(shard.deletes for shard in store.shards),
            ranges_total=self._service.tally.ranges,
            txns_total=self._service.tally.txns,
            put_bytes_total=sum(shard.put_bytes for shard in store.shards),
            keys=sum(len(shard.index) for shard in store.shards),
            compacted_keys_total=self._node.versions_compacted,
            compacted_last_unix_s=self._compacted_at,
            compaction_total_ms=self._compaction_total_ms,
            compaction_pause_ms=self._compaction_pause_ms,
            hash_s=self._hash_s,
            hash_rev_s=self._hash_rev_s,
            shards=[
                ShardStats(
                    name=shard.name,
                    keys=len(shard.index),
                    versions=len(shard.history),
                    bytes=shard.size_bytes,
                    budget_bytes=shard.budget_bytes,
                    events_total=shard.puts + shard.deletes,
                    watchers=self._node.hub.watchers_of[shard],
                )
                for shard in store.shards
            ],
        )

    def _journal(self) -> JournalMetrics:
        node = self._node
        found = node.journal.stats()
        return JournalMetrics(
            backend=node.journal.name,
            tail=node.journal_tail,
            lag_entries=node.journal_tail - node.applied,
            bytes_on_disk=found.bytes_on_disk,
            segments=found.segments,
            free_bytes=found.free_bytes,
            appends_total=found.appends,
            append_bytes_total=found.appended_bytes,
            append_s=self._append_s,
            sync_s=self._sync_s,
            write_s=self._write_s,
            batch_records=self._batch_records,
            snapshots=found.snapshots,
            snapshot_bytes=found.snapshot_bytes,
            snapshot_sequence=node.snapshot_sequence,
            snapshots_total=node.snapshotter.taken,
            snapshots_failed_total=node.snapshotter.failed,
            snapshot_s=self._snapshot_s,
        )
