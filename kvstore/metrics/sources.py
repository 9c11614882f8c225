"""What the parts of a server tell about themselves when somebody asks.

A part keeps plain numbers and `Histogram`s of its own and hands them out as these values. The
collector asks on the event loop, copies what is mutable, and does the slow rest elsewhere.
Totals count from the start of the process. Sizes are in bytes, times in seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from kvstore.metrics.histogram import LATENCY_S, Histogram, exponential


def _latency() -> Histogram:
    return Histogram(LATENCY_S)


@dataclass
class ShardStats:
    """One shard of the partition table."""

    name: str
    keys: int = 0
    versions: int = 0
    bytes: int = 0
    budget_bytes: int = 0
    """0: it has none."""
    events_total: int = 0
    watchers: int = 0


@dataclass
class StoreStats:
    """The store over all shards; what etcd calls mvcc."""

    current_revision: int = 0
    compact_revision: int = 0
    keys: int = 0
    total_bytes: int = 0
    """What the quota is compared with."""
    in_use_bytes: int = 0
    """`total_bytes` less what a physical compaction that is due will free."""
    quota_bytes: int = 0
    """0 stands for none."""
    puts_total: int = 0
    deletes_total: int = 0
    ranges_total: int = 0
    txns_total: int = 0
    put_bytes_total: int = 0
    """Of the versions that puts made, as they are stored."""
    compacted_keys_total: int = 0
    compacted_last_unix_s: float = 0.0
    """0: there was none yet."""
    compaction_total_ms: Histogram = field(
        default_factory=lambda: Histogram(exponential(100, 2, 14))
    )
    compaction_pause_ms: Histogram = field(default_factory=lambda: Histogram(exponential(1, 2, 13)))
    hash_s: Histogram = field(default_factory=lambda: Histogram(exponential(0.01, 2, 15)))
    hash_rev_s: Histogram = field(default_factory=lambda: Histogram(exponential(0.01, 2, 15)))
    shards: Sequence[ShardStats] = ()


@dataclass
class WatchStats:
    streams: int = 0
    watchers: int = 0
    slow_watchers: int = 0
    """Watchers that are behind the watermark."""
    events_total: int = 0
    """Events sent, each once for every watcher that got it."""


@dataclass
class LeaseStats:
    granted_total: int = 0
    revoked_total: int = 0
    renewed_total: int = 0
    expired_total: int = 0
    leases: int = 0
    ttl_s: Histogram = field(default_factory=lambda: Histogram(exponential(1, 2, 24)))


@dataclass
class ProposalStats:
    """Write requests on their way through the journal; etcd calls them consensus proposals."""

    committed_total: int = 0
    """Known to be durable."""
    applied_total: int = 0
    """Visible in the store; behind `committed_total` while a batch is being applied."""
    pending: int = 0
    pending_bytes: int = 0
    failed_total: int = 0
    slow_applies_total: int = 0
    """Those of batches that took long from durable to visible."""
    commit_s: Histogram = field(default_factory=_latency)
    """From a batch's append to its effects in the store."""


@dataclass
class JournalMetrics:
    backend: str = ""
    tail: int = 0
    lag_entries: int = 0
    """Entries that are there and not applied yet, on a node that follows."""
    bytes_on_disk: int = 0
    segments: int = 0
    free_bytes: int = 0
    appends_total: int = 0
    append_bytes_total: int = 0
    append_s: Histogram = field(default_factory=_latency)
    """One append, as its caller sees it."""
    sync_s: Histogram = field(default_factory=_latency)
    write_s: Histogram = field(default_factory=_latency)
    batch_records: Histogram = field(default_factory=lambda: Histogram(exponential(1, 2, 13)))
    """Write requests that one batch carried: how well group commit does."""
    snapshots: int = 0
    snapshot_bytes: int = 0
    snapshot_sequence: int = 0
    """Up to where the newest snapshot covers the journal."""
    snapshots_total: int = 0
    snapshots_failed_total: int = 0
    snapshot_s: Histogram = field(default_factory=lambda: Histogram(exponential(0.001, 2, 18)))
    """etcd's bounds and four above: its snapshot is a few kilobytes, ours is all data."""


@dataclass
class ServerStats:
    """All of a node. The defaults are those of one that has just started."""

    version: str = ""
    """etcd's version whose behaviour this is, such as 3.7.0."""
    member_id: int = 0
    has_leader: bool = False
    is_leader: bool = False
    is_learner: bool = False
    leader_changes_total: int = 0
    term: int = 0
    lease_valid: bool = False
    """Whether linearizable requests are served here, now (R6)."""
    forwarded_total: Mapping[str, int] = field(default_factory=dict)
    """Calls and streams that were passed on to the leader, by method."""
    alarms: Sequence[str] = ()
    """Names of the active ones, such as NOSPACE."""
    store: StoreStats = field(default_factory=StoreStats)
    watch: WatchStats = field(default_factory=WatchStats)
    lease: LeaseStats = field(default_factory=LeaseStats)
    proposals: ProposalStats = field(default_factory=ProposalStats)
    journal: JournalMetrics = field(default_factory=JournalMetrics)


StatsSource = Callable[[], ServerStats]
"""Current figures; cheap (well under a millisecond), called on the event loop."""


@dataclass
class HealthCounts:
    """What the health endpoints answered."""

    successes: int = 0
    failures: int = 0
    last: dict[tuple[str, str], bool] = field(default_factory=dict)
    """By (livez or readyz, name of the check): did it pass the last time?"""
    checks: dict[tuple[str, str, str], int] = field(default_factory=dict)
    """By (livez or readyz, name of the check, success or error): how often."""
