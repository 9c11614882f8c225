"""What a scrape shows is what was counted, in a form that Prometheus reads, under etcd's names."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import pytest
from prometheus_client.parser import text_string_to_metric_families

from kvstore.metrics.collector import Metrics, render
from kvstore.metrics.histogram import Histogram, exponential
from kvstore.metrics.rpc import CountingService, RpcCounters
from kvstore.metrics.sources import (
    HealthCounts,
    JournalMetrics,
    ServerStats,
    ShardStats,
    StoreStats,
)
from kvstore.metrics.stalls import LoopStalls
from kvstore.transport.seam import Call, Code, Kind, Peer, Stream

#: Metrics that dashboards and alerts for etcd ask for, with etcd's types.
WANTED = {
    "etcd_server_has_leader": "gauge",
    "etcd_server_is_leader": "gauge",
    "etcd_server_leader_changes_seen": "counter",
    "etcd_server_proposals_committed_total": "gauge",
    "etcd_server_proposals_applied_total": "gauge",
    "etcd_server_proposals_pending": "gauge",
    "etcd_server_proposals_failed": "counter",
    "etcd_server_slow_apply": "counter",
    "etcd_server_version": "gauge",
    "etcd_server_id": "gauge",
    "etcd_server_quota_backend_bytes": "gauge",
    "etcd_mvcc_db_total_size_in_bytes": "gauge",
    "etcd_mvcc_db_total_size_in_use_in_bytes": "gauge",
    "etcd_mvcc_put": "counter",
    "etcd_mvcc_delete": "counter",
    "etcd_mvcc_range": "counter",
    "etcd_mvcc_txn": "counter",
    "etcd_debugging_mvcc_keys_total": "gauge",
    "etcd_debugging_mvcc_current_revision": "gauge",
    "etcd_debugging_mvcc_compact_revision": "gauge",
    "etcd_debugging_mvcc_watcher_total": "gauge",
    "etcd_debugging_mvcc_watch_stream_total": "gauge",
    "etcd_debugging_mvcc_slow_watcher_total": "gauge",
    "etcd_debugging_mvcc_events": "counter",
    "etcd_debugging_mvcc_db_compaction_keys": "counter",
    "etcd_debugging_lease_granted": "counter",
    "etcd_debugging_lease_revoked": "counter",
    "etcd_debugging_lease_renewed": "counter",
    "etcd_disk_wal_fsync_duration_seconds": "histogram",
    "etcd_disk_wal_write_bytes_total": "gauge",
    "etcd_disk_backend_commit_duration_seconds": "histogram",
    "etcd_network_client_grpc_received_bytes": "counter",
    "etcd_network_client_grpc_sent_bytes": "counter",
    "grpc_server_started": "counter",
    "grpc_server_handled": "counter",
    "grpc_server_msg_received": "counter",
    "grpc_server_msg_sent": "counter",
    "process_resident_memory_bytes": "gauge",
    "process_cpu_seconds": "counter",
    "os_fd_used": "gauge",
}


class FakeCall:
    method = "/etcdserverpb.KV/Put"
    request = b"12345"
    cancelled = False
    peer: Peer

    def __init__(self) -> None:
        self.peer = None  # type: ignore[assignment]
        self.answers: list[object] = []

    def write(self, parts: list[bytes]) -> None:
        self.answers.extend(parts)

    def finish(self, response: bytes) -> None:
        self.answers.append(response)

    def fail(self, code: Code, message: str) -> None:
        self.answers.append((code, message))


class FakeStream:
    method = "/etcdserverpb.Watch/Watch"
    room = 10
    peer: Peer

    def __init__(self) -> None:
        self.peer = None  # type: ignore[assignment]
        self.sent: list[bytes] = []
        self.ended: list[tuple[Code, str]] = []

    def send(self, message: bytes) -> None:
        self.sent.append(message)

    def close(self, code: Code = Code.OK, message: str = "") -> None:
        self.ended.append((code, message))


class Inner:
    """Fails every second call; its streams echo."""

    max_request_bytes = 77

    def __init__(self) -> None:
        self.log: list[str] = []

    def kind(self, method: str) -> Kind | None:
        return Kind.BIDI_STREAM

    def unimplemented(self, method: str) -> str:
        return "unknown " + method

    def on_calls(self, calls: Sequence[Call]) -> None:
        for n, call in enumerate(calls):
            if n % 2:
                call.fail(Code.NOT_FOUND, "no")
            else:
                call.finish(call.request + b"6")

    def on_stream(self, stream: Stream) -> Inner:
        self.stream = stream
        return self

    def on_messages(self, messages: Sequence[bytes]) -> None:
        for message in messages:
            self.stream.send(message)

    def on_half_close(self) -> None:
        self.log.append("half")

    def on_room(self) -> None:
        self.log.append("room")

    def on_closed(self) -> None:
        self.log.append("closed")


def test_calls_and_streams_are_counted_and_passed_on() -> None:
    counters = RpcCounters(timed=True)
    inner = Inner()
    service = CountingService(inner, counters)
    assert service.max_request_bytes == 77
    assert service.unimplemented("/x") == "unknown /x"

    calls = [FakeCall() for _ in range(5)]
    service.on_calls(calls)
    assert [call.answers for call in calls] == [
        [b"123456"] if n % 2 == 0 else [(Code.NOT_FOUND, "no")] for n in range(5)
    ]
    put = counters.methods["/etcdserverpb.KV/Put"]
    assert (put.started, put.received, put.received_bytes) == (5, 5, 25)
    assert (put.sent, put.sent_bytes) == (3, 18)
    assert (put.codes[Code.OK], put.codes[Code.NOT_FOUND]) == (3, 2)
    assert put.handling_s is not None and put.handling_s.count == 5

    streams = [FakeStream(), FakeStream()]
    for stream in streams:
        handler = service.on_stream(stream)
        handler.on_messages([b"a", b"bc"])
        handler.on_half_close()
        handler.on_room()
        if stream is streams[0]:
            inner.stream.close(Code.ABORTED, "enough")
        handler.on_closed()
    assert streams[0].sent == [b"a", b"bc"]
    assert streams[0].ended == [(Code.ABORTED, "enough")]
    assert inner.log == ["half", "room", "closed"] * 2
    watch = counters.methods["/etcdserverpb.Watch/Watch"]
    assert (watch.received, watch.received_bytes, watch.sent, watch.sent_bytes) == (4, 6, 4, 6)
    assert (watch.codes[Code.ABORTED], watch.codes[Code.CANCELLED]) == (1, 1)


def scrape(stats: ServerStats, rpc: RpcCounters, health: HealthCounts) -> dict[str, object]:
    loop = asyncio.new_event_loop()
    try:
        text = render(
            Metrics(lambda: stats, rpc, health, LoopStalls(loop), Histogram()).freeze()
        ).decode()
    finally:
        loop.close()
    return {family.name: family for family in text_string_to_metric_families(text)}


def value(families: dict[str, object], name: str, /, **labels: str) -> float:
    found = [
        sample.value
        for family in families.values()
        for sample in family.samples  # type: ignore[attr-defined]
        if sample.name == name and sample.labels == labels
    ]
    assert len(found) == 1, (name, labels, found)
    return float(found[0])


def test_a_scrape_has_etcds_names_and_types() -> None:
    sync = Histogram()
    for seconds in (0.0005, 0.001, 0.0011, 100.0):
        sync.observe(seconds)
    stats = ServerStats(
        version="3.7.0",
        member_id=0xABC,
        has_leader=True,
        alarms=["NOSPACE"],
        store=StoreStats(keys=7, shards=[ShardStats("pods", keys=4), ShardStats("rest", keys=3)]),
        journal=JournalMetrics(backend="file", sync_s=sync),
    )
    rpc = RpcCounters()
    CountingService(Inner(), rpc).on_calls([FakeCall(), FakeCall()])
    health = HealthCounts(successes=2, last={("livez", "serializable_read"): True})
    families = scrape(stats, rpc, health)

    types = {name: families[name].type for name in WANTED if name in families}  # type: ignore[attr-defined]
    assert types == WANTED
    assert value(families, "etcd_server_has_leader") == 1
    assert value(families, "etcd_server_id", server_id="abc") == 1
    assert value(families, "etcd_debugging_mvcc_keys_total") == 7
    assert value(families, "jotd_shard_keys", shard="pods") == 4
    assert value(families, "etcd_server_health_success") == 2
    assert value(families, "etcd_server_healthcheck", type="livez", name="serializable_read") == 1
    fsync = "etcd_disk_wal_fsync_duration_seconds"
    assert value(families, f"{fsync}_bucket", le="0.001") == 2
    assert value(families, f"{fsync}_bucket", le="0.002") == 3
    assert value(families, f"{fsync}_bucket", le="8.192") == 3
    assert value(families, f"{fsync}_bucket", le="+Inf") == 4
    assert value(families, f"{fsync}_count") == 4
    put = {
        "grpc_type": "unary",
        "grpc_service": "etcdserverpb.KV",
        "grpc_method": "Put",
    }
    assert value(families, "grpc_server_handled_total", **put, grpc_code="OK") == 1
    assert value(families, "grpc_server_handled_total", **put, grpc_code="NotFound") == 1
    assert value(families, "grpc_server_handled_total", **put, grpc_code="Aborted") == 0
    assert value(families, "etcd_network_client_grpc_received_bytes_total") == 10
    assert value(families, "etcd_network_client_grpc_sent_bytes_total") == 6


def test_what_is_frozen_does_not_change() -> None:
    rpc = RpcCounters()
    stats = ServerStats()
    loop = asyncio.new_event_loop()
    frozen = Metrics(lambda: stats, rpc, HealthCounts(), LoopStalls(loop), Histogram()).freeze()
    loop.close()
    stats.store.keys = 5
    stats.journal.sync_s.observe(1.0)
    CountingService(Inner(), rpc).on_calls([FakeCall()])
    assert frozen.server.store.keys == 0
    assert frozen.server.journal.sync_s.count == 0
    assert not frozen.rpc.methods


def test_bounds_are_those_of_exponential_buckets() -> None:
    assert exponential(0.001, 2, 14)[-1] == pytest.approx(8.192)
    histogram = Histogram((1, 2))
    for seen in (0, 1, 1.5, 2, 3):
        histogram.observe(seen)
    assert histogram.counts == [2, 2, 1]
    assert (histogram.sum, histogram.count) == (7.5, 5)


def test_a_held_loop_is_seen() -> None:
    async def main() -> LoopStalls:
        stalls = LoopStalls(asyncio.get_running_loop())
        stalls.start()
        await asyncio.sleep(0.05)
        time.sleep(0.2)
        await asyncio.sleep(0.05)
        stalls.stop()
        return stalls

    stalls = asyncio.run(main())
    assert stalls.late_max_s > 0.15
    assert stalls.held_max_s > 0.1
    assert sum(stalls.late_s.counts[-4:]) >= 1
    assert sum(stalls.held_s.counts[-4:]) >= 1


def test_waiting_for_a_processor_is_not_being_held() -> None:
    async def main() -> LoopStalls:
        waited = 5.0
        stalls = LoopStalls(asyncio.get_running_loop(), waited_s=lambda: waited)
        stalls.start()
        await asyncio.sleep(0.05)
        time.sleep(0.5)
        waited += 0.45
        await asyncio.sleep(0.05)
        stalls.stop()
        return stalls

    stalls = asyncio.run(main())
    assert stalls.late_max_s > 0.4
    assert stalls.held_max_s < stalls.late_max_s - 0.2
