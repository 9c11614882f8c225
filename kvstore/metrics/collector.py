"""The one collector: everything that is counted, as Prometheus text, at scrape time only.

Names, types and bucket bounds are etcd's wherever etcd has the metric, so that its dashboards
and alerts work; what only jotd has is called ``jotd_...``. Work is split in two because a scrape
takes longer than the loop may be held (I9): `Metrics.freeze` copies numbers on the loop, `render`
makes text of them on any thread.

Where etcd's choice of a type is odd (a "total" that is a gauge), it is kept. Two of its counters,
health_success and health_failures, have no ``_total`` in their names, which the client library
cannot write; they are untyped here, which Prometheus does not mind.
"""

from __future__ import annotations

import copy
import os
import resource
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client import (
    CollectorRegistry,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.metrics_core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from kvstore.metrics.histogram import Histogram
from kvstore.metrics.rpc import TYPES, RpcCounters
from kvstore.metrics.sources import HealthCounts, ServerStats, ShardStats, StatsSource
from kvstore.metrics.stalls import LoopStalls
from kvstore.transport.seam import Code

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4

#: grpc_code labels, as grpc-go spells the codes.
CODES = {
    Code.OK: "OK",
    Code.CANCELLED: "Canceled",
    Code.UNKNOWN: "Unknown",
    Code.INVALID_ARGUMENT: "InvalidArgument",
    Code.DEADLINE_EXCEEDED: "DeadlineExceeded",
    Code.NOT_FOUND: "NotFound",
    Code.ALREADY_EXISTS: "AlreadyExists",
    Code.PERMISSION_DENIED: "PermissionDenied",
    Code.RESOURCE_EXHAUSTED: "ResourceExhausted",
    Code.FAILED_PRECONDITION: "FailedPrecondition",
    Code.ABORTED: "Aborted",
    Code.OUT_OF_RANGE: "OutOfRange",
    Code.UNIMPLEMENTED: "Unimplemented",
    Code.INTERNAL: "Internal",
    Code.UNAVAILABLE: "Unavailable",
    Code.DATA_LOSS: "DataLoss",
    Code.UNAUTHENTICATED: "Unauthenticated",
}


@dataclass(frozen=True)
class Frozen:
    """Everything that a scrape shows, as of one moment."""

    server: ServerStats
    rpc: RpcCounters
    health: HealthCounts
    late_s: Histogram
    late_max_s: float
    held_s: Histogram
    held_max_s: float
    gc_pause_s: Histogram
    door: Mapping[str, int]


class Metrics:
    """Where the numbers are kept, and how a scrape gets them."""

    def __init__(
        self,
        source: StatsSource,
        rpc: RpcCounters,
        health: HealthCounts,
        stalls: LoopStalls,
        gc_pause_s: Histogram,
        door: Callable[[], Mapping[str, int]] = dict,
    ) -> None:
        self._source = source
        self._rpc = rpc
        self._health = health
        self._stalls = stalls
        self._gc_pause_s = gc_pause_s
        self._door = door

    def freeze(self) -> Frozen:
        """Copies what changes. On the event loop."""
        self._rpc.refresh()
        return Frozen(
            server=copy.deepcopy(self._source()),
            rpc=copy.deepcopy(self._rpc),
            health=copy.deepcopy(self._health),
            late_s=self._stalls.late_s.copy(),
            late_max_s=self._stalls.late_max_s,
            held_s=self._stalls.held_s.copy(),
            held_max_s=self._stalls.held_max_s,
            gc_pause_s=self._gc_pause_s.copy(),
            door=self._door(),
        )


def render(frozen: Frozen) -> bytes:
    """The text of a scrape (format 0.0.4). On any thread; takes some milliseconds."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Scrape(frozen))
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    return generate_latest(registry)


class _Scrape(Collector):
    def __init__(self, frozen: Frozen) -> None:
        self._frozen = frozen

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        frozen = self._frozen
        yield from _server(frozen.server)
        yield from _store(frozen.server)
        yield from _watch_and_lease(frozen.server)
        yield from _journal(frozen.server)
        yield from _shards(frozen.server)
        yield from _rpc(frozen.rpc)
        yield from _door(frozen.door)
        yield from _health(frozen.health)
        yield from _process(frozen)


def _gauge(name: str, help: str, value: float) -> Metric:
    metric = Metric(name, help, "gauge")
    metric.add_sample(name, {}, value)
    return metric


def _counter(name: str, help: str, value: float) -> Metric:
    # The library puts "_total" behind a counter's name by itself.
    metric = Metric(name.removesuffix("_total"), help, "counter")
    metric.add_sample(name, {}, value)
    return metric


def _info(name: str, help: str, label: str, value: str) -> Metric:
    metric = Metric(name, help, "gauge")
    metric.add_sample(name, {label: value}, 1)
    return metric


def _histogram(name: str, help: str, values: Histogram) -> Metric:
    metric = Metric(name, help, "histogram")
    _add_buckets(metric, {}, values)
    return metric


def _add_buckets(metric: Metric, labels: dict[str, str], values: Histogram) -> None:
    below = 0
    for bound, count in zip((*values.bounds, None), values.counts, strict=True):
        below += count
        le = "+Inf" if bound is None else _number(bound)
        metric.add_sample(f"{metric.name}_bucket", {**labels, "le": le}, below)
    metric.add_sample(f"{metric.name}_sum", labels, values.sum)
    metric.add_sample(f"{metric.name}_count", labels, below)


def _number(bound: float) -> str:
    """As Go prints a bound: without a trailing ``.0``."""
    return format(bound, ".15g")


def _server(s: ServerStats) -> Iterator[Metric]:
    yield _gauge(
        "etcd_server_has_leader",
        "Whether or not a leader exists. 1 is existence, 0 is not.",
        s.has_leader,
    )
    yield _gauge("etcd_server_is_leader", "Whether or not this member leads.", s.is_leader)
    yield _gauge("etcd_server_is_learner", "Whether or not this member is a learner.", s.is_learner)
    yield _counter(
        "etcd_server_leader_changes_seen_total",
        "The number of leader changes seen.",
        s.leader_changes_total,
    )
    yield _gauge("jotd_term", "The term of the last leader that this member knows of.", s.term)
    yield _gauge(
        "jotd_lease_valid",
        "Whether this member leads and its lease holds, so that it serves consistent reads.",
        s.lease_valid,
    )
    forwarded = CounterMetricFamily(
        "jotd_forwarded_total", "Calls that were passed on to the leader.", labels=["method"]
    )
    for method, count in s.forwarded_total.items():
        forwarded.add_metric([method], count)
    yield forwarded
    yield _info("etcd_server_version", "Which version is running.", "server_version", s.version)
    minor = ".".join(s.version.split(".")[:2])
    yield _info(
        "etcd_cluster_version", "Which cluster version is running.", "cluster_version", minor
    )
    yield _info(
        "etcd_server_id", "Member ID in hexadecimal.", "server_id", format(s.member_id, "x")
    )
    yield _gauge(
        "etcd_server_quota_backend_bytes", "Current storage quota in bytes.", s.store.quota_bytes
    )
    p = s.proposals
    yield _gauge(
        "etcd_server_proposals_committed_total",
        "The total number of write requests that this member, leading, knows to be durable.",
        p.committed_total,
    )
    yield _gauge(
        "etcd_server_proposals_applied_total",
        "The total number of those whose effects are visible in the store.",
        p.applied_total,
    )
    yield _gauge(
        "etcd_server_proposals_pending", "Write requests on their way to the journal.", p.pending
    )
    yield _counter(
        "etcd_server_proposals_failed_total",
        "The total number of write requests that the journal did not take.",
        p.failed_total,
    )
    yield _counter(
        "etcd_server_slow_apply_total",
        "The total number of write requests that became visible more than"
        " --warning-apply-duration after they were durable. Reads are not counted.",
        p.slow_applies_total,
    )
    yield _gauge(
        "jotd_proposals_pending_bytes",
        "Bytes of requests that wait and of records on their way to the journal.",
        p.pending_bytes,
    )
    # There are no peers to lose, but alerts divide by these and compare with them.
    yield _counter("etcd_server_heartbeat_send_failures_total", "Always 0: there are no peers.", 0)
    yield _counter("etcd_server_read_indexes_failed_total", "Always 0: reads need none.", 0)
    yield _counter("etcd_server_slow_read_indexes_total", "Always 0: reads need none.", 0)
    alarms = Metric("etcd_debugging_server_alarms", "Active alarms.", "gauge")
    for alarm in s.alarms:
        labels = {"server_id": format(s.member_id, "x"), "alarm_type": alarm}
        alarms.add_sample(alarms.name, labels, 1)
    yield alarms


def _store(s: ServerStats) -> Iterator[Metric]:
    store = s.store
    yield _gauge(
        "etcd_mvcc_db_total_size_in_bytes", "Size of the data in bytes.", store.total_bytes
    )
    yield _gauge(
        "etcd_mvcc_db_total_size_in_use_in_bytes",
        "Size of the data in bytes, less what compaction will free.",
        store.in_use_bytes,
    )
    for name, help, value in (
        ("put", "Total number of puts seen by this member.", store.puts_total),
        (
            "delete",
            "Total number of keys deleted, as seen by this member; etcd counts requests to delete.",
            store.deletes_total,
        ),
        (
            "range",
            "Total number of ranges evaluated by this member; those of transactions count too,"
            " and so does each compare.",
            store.ranges_total,
        ),
        (
            "txn",
            "Total number of transactions of more than one operation evaluated by this member.",
            store.txns_total,
        ),
    ):
        yield _counter(f"etcd_mvcc_{name}_total", help, value)
    yield _histogram("etcd_mvcc_hash_duration_seconds", "How long Hash took.", store.hash_s)
    yield _histogram(
        "etcd_mvcc_hash_rev_duration_seconds", "How long HashKV took.", store.hash_rev_s
    )
    debugging = "etcd_debugging_mvcc_"
    yield _gauge(f"{debugging}keys_total", "Total number of keys.", store.keys)
    yield _gauge(
        f"{debugging}current_revision", "The current revision of store.", store.current_revision
    )
    yield _gauge(
        f"{debugging}compact_revision",
        "The revision of the last compaction in store.",
        store.compact_revision,
    )
    yield _gauge(
        f"{debugging}total_put_size_in_bytes",
        "The total size of put kv pairs seen by this member, as they are stored:"
        " with some 20 bytes of revisions each.",
        store.put_bytes_total,
    )
    yield _counter(
        f"{debugging}db_compaction_keys_total",
        "Total number of versions compacted.",
        store.compacted_keys_total,
    )
    yield _gauge(
        f"{debugging}db_compaction_last",
        "The unix time of the last compaction, 0 if there was none since the start.",
        store.compacted_last_unix_s,
    )
    yield _histogram(
        f"{debugging}db_compaction_total_duration_milliseconds",
        "How long compactions took, what was done between their steps included.",
        store.compaction_total_ms,
    )
    yield _histogram(
        f"{debugging}db_compaction_pause_duration_milliseconds",
        "How long single steps of compactions held the loop.",
        store.compaction_pause_ms,
    )


def _watch_and_lease(s: ServerStats) -> Iterator[Metric]:
    watch, lease = s.watch, s.lease
    debugging = "etcd_debugging_mvcc_"
    yield _gauge(f"{debugging}watch_stream_total", "Number of watch streams.", watch.streams)
    yield _gauge(f"{debugging}watcher_total", "Number of watchers.", watch.watchers)
    yield _gauge(
        f"{debugging}slow_watcher_total", "Number of unsynced watchers.", watch.slow_watchers
    )
    yield _counter(
        f"{debugging}events_total",
        "Total number of events sent by this member.",
        watch.events_total,
    )
    debugging = "etcd_debugging_lease_"
    yield _counter(
        f"{debugging}granted_total", "The total number of granted leases.", lease.granted_total
    )
    yield _counter(
        f"{debugging}revoked_total", "The total number of revoked leases.", lease.revoked_total
    )
    yield _counter(
        f"{debugging}renewed_total", "The total number of lease renewals.", lease.renewed_total
    )
    yield _counter(
        "etcd_debugging_server_lease_expired_total",
        "The total number of expired leases.",
        lease.expired_total,
    )
    yield _histogram(f"{debugging}ttl_total", "Bucketed histogram of lease TTLs.", lease.ttl_s)
    yield _gauge("jotd_leases", "Leases that are held.", lease.leases)


def _journal(s: ServerStats) -> Iterator[Metric]:
    j = s.journal
    yield _histogram(
        "etcd_disk_wal_fsync_duration_seconds", "How long syncs of the journal took.", j.sync_s
    )
    yield _histogram(
        "etcd_disk_wal_write_duration_seconds", "How long writes of the journal took.", j.write_s
    )
    yield _gauge(
        "etcd_disk_wal_write_bytes_total",
        "Total number of bytes written to the journal.",
        j.append_bytes_total,
    )
    # What makes a write visible in etcd is the backend's commit; here it is the journal's answer
    # and the application of the batch.
    yield _histogram(
        "etcd_disk_backend_commit_duration_seconds",
        "From the append of a batch to its effects in the store.",
        s.proposals.commit_s,
    )
    yield _histogram(
        "etcd_debugging_snap_save_total_duration_seconds",
        "How long snapshots took, their verification included.",
        j.snapshot_s,
    )
    yield _info("jotd_journal_info", "Which journal is in use.", "backend", j.backend)
    yield _histogram(
        "jotd_journal_append_duration_seconds", "How long appends took their caller.", j.append_s
    )
    yield _counter("jotd_journal_appends_total", "Batches appended.", j.appends_total)
    yield _counter(
        "jotd_journal_append_bytes_total", "Payload bytes appended.", j.append_bytes_total
    )
    yield _histogram("jotd_journal_batch_records", "Write requests in one batch.", j.batch_records)
    yield _gauge("jotd_journal_tail", "Sequence of the last batch.", j.tail)
    yield _gauge(
        "jotd_journal_lag_entries", "Batches that this node has yet to apply.", j.lag_entries
    )
    yield _gauge("jotd_journal_segments", "Segments kept.", j.segments)
    yield _gauge("jotd_journal_bytes", "What the segments occupy.", j.bytes_on_disk)
    yield _gauge("jotd_journal_free_bytes", "Room that is left.", j.free_bytes)
    yield _gauge("jotd_journal_snapshots", "Snapshots kept.", j.snapshots)
    yield _gauge("jotd_journal_snapshot_bytes", "What the snapshots occupy.", j.snapshot_bytes)
    yield _gauge(
        "jotd_journal_snapshot_sequence",
        "Up to which batch the newest snapshot goes.",
        j.snapshot_sequence,
    )
    yield _counter("jotd_journal_snapshots_total", "Snapshots taken.", j.snapshots_total)
    yield _counter(
        "jotd_journal_snapshots_failed_total", "Snapshots that failed.", j.snapshots_failed_total
    )


def _shards(s: ServerStats) -> Iterator[Metric]:
    families: tuple[tuple[str, str, str, Callable[[ShardStats], int]], ...] = (
        ("jotd_shard_keys", "gauge", "Keys of a shard.", lambda shard: shard.keys),
        ("jotd_shard_versions", "gauge", "Versions kept.", lambda shard: shard.versions),
        ("jotd_shard_bytes", "gauge", "Bytes of those.", lambda shard: shard.bytes),
        ("jotd_shard_events_total", "counter", "Changes.", lambda shard: shard.events_total),
        (
            "jotd_shard_watchers",
            "gauge",
            "Watchers; those of a range that crosses shards count in each.",
            lambda shard: shard.watchers,
        ),
    )
    for name, kind, help, value in families:
        metric = Metric(name.removesuffix("_total"), help, kind)
        for shard in s.store.shards:
            metric.add_sample(name, {"shard": shard.name}, value(shard))
        yield metric
    budget = Metric("jotd_shard_budget_bytes", "What a shard may hold, if it has a limit.", "gauge")
    for shard in s.store.shards:
        if shard.budget_bytes:
            budget.add_sample(budget.name, {"shard": shard.name}, shard.budget_bytes)
    yield budget


def _rpc(rpc: RpcCounters) -> Iterator[Metric]:
    received_bytes = sent_bytes = 0
    started = Metric("grpc_server_started", "Calls started on the server.", "counter")
    handled = Metric("grpc_server_handled", "Calls ended on the server, by code.", "counter")
    received = Metric("grpc_server_msg_received", "Messages received.", "counter")
    sent = Metric("grpc_server_msg_sent", "Messages sent.", "counter")
    handling = Metric("grpc_server_handling_seconds", "How long calls took.", "histogram")
    for path, method in rpc.methods.items():
        _, service, name = path.split("/", 2)
        labels = {
            "grpc_type": TYPES[method.kind],
            "grpc_service": service,
            "grpc_method": name,
        }
        received_bytes += method.received_bytes
        sent_bytes += method.sent_bytes
        started.add_sample("grpc_server_started_total", labels, method.started)
        received.add_sample("grpc_server_msg_received_total", labels, method.received)
        sent.add_sample("grpc_server_msg_sent_total", labels, method.sent)
        for code, spelling in CODES.items():
            handled.add_sample(
                "grpc_server_handled_total",
                {**labels, "grpc_code": spelling},
                method.codes[code],
            )
        if method.handling_s is not None:
            _add_buckets(handling, labels, method.handling_s)
    yield from (started, handled, received, sent)
    if rpc.timed:
        yield handling
    yield _counter(
        "etcd_network_client_grpc_received_bytes_total",
        "The total number of bytes received from grpc clients.",
        received_bytes,
    )
    yield _counter(
        "etcd_network_client_grpc_sent_bytes_total",
        "The total number of bytes sent to grpc clients.",
        sent_bytes,
    )


def _door(door: Mapping[str, int]) -> Iterator[Metric]:
    """The native front door's own figures: connections, traffic, and limits that were met."""
    for name, value in door.items():
        help = f"The front door's {name.removesuffix('_total').replace('_', ' ')}."
        kind = _counter if name.endswith("_total") else _gauge
        yield kind(f"jotd_door_{name}", help, value)


def _health(health: HealthCounts) -> Iterator[Metric]:
    for name, help, count in (
        ("etcd_server_health_success", "Successful health checks.", health.successes),
        ("etcd_server_health_failures", "Failed health checks.", health.failures),
    ):
        untyped = Metric(name, help, "unknown")
        untyped.add_sample(name, {}, count)
        yield untyped
    last = Metric("etcd_server_healthcheck", "The result of each kind of healthcheck.", "gauge")
    total = Metric("etcd_server_healthchecks", "Healthchecks by kind and result.", "counter")
    for (kind, name), good in health.last.items():
        last.add_sample(last.name, {"type": kind, "name": name}, good)
    for (kind, name, status), count in health.checks.items():
        labels = {"type": kind, "name": name, "status": status}
        total.add_sample("etcd_server_healthchecks_total", labels, count)
    yield from (last, total)


def _process(frozen: Frozen) -> Iterator[Metric]:
    yield _histogram(
        "jotd_loop_stall_seconds",
        "How late a timer came that is due every 10 ms: how long the event loop was away.",
        frozen.late_s,
    )
    yield _gauge("jotd_loop_stall_max_seconds", "The worst since the start.", frozen.late_max_s)
    yield _histogram(
        "jotd_loop_held_seconds",
        "The same without what the loop's thread waited for a processor: how long it was held.",
        frozen.held_s,
    )
    yield _gauge("jotd_loop_held_max_seconds", "The worst since the start.", frozen.held_max_s)
    yield _histogram(
        "jotd_gc_pause_seconds", "How long steps of the garbage collector took.", frozen.gc_pause_s
    )
    if (used := _open_files()) is not None:
        yield _gauge("os_fd_used", "The number of used file descriptors.", used)
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield _gauge("os_fd_limit", "The file descriptor limit.", limit)


def _open_files() -> int | None:
    try:
        return len(os.listdir("/proc/self/fd"))
    except OSError:
        return None
