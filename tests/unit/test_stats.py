"""Every figure that a node is asked for moves when it should, as /metrics tells it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from journal.file import FileJournal
from journal.memory import MemoryJournal
from journal.testing import FaultyJournal, NoSpace
from kvstore.api.service import EtcdService, ServiceOptions
from kvstore.http.endpoints import Endpoints
from kvstore.http.local import LocalClient
from kvstore.http.message import Request
from kvstore.metrics.collector import Metrics
from kvstore.metrics.histogram import Histogram
from kvstore.metrics.rpc import RpcCounters
from kvstore.metrics.sources import HealthCounts
from kvstore.metrics.stalls import LoopStalls
from kvstore.node import slicer
from kvstore.node.node import Node, NodeOptions
from kvstore.pb import rpc_pb2 as pb
from kvstore.stats import NodeStats
from kvstore.transport.seam import Code
from partitioner.table import parse
from tests.unit.node.world import MAINTENANCE, TABLE, World, delete_op, get_op, mod_is, put_op, run

#: Not of the node but of the process, the transport and the health checks: tested with those.
ELSEWHERE = ("jotd_loop_", "jotd_gc_", "jotd_door_", "etcd_network_", "etcd_server_health")

#: What one node by itself cannot move, and what has no other value.
STILL = {
    "etcd_server_is_learner",
    "etcd_server_heartbeat_send_failures_total",
    "etcd_server_read_indexes_failed_total",
    "etcd_server_slow_read_indexes_total",
    # These take a journal that others write to, or one that fails.
    "jotd_journal_lag_entries",
    "jotd_journal_snapshots_failed_total",
    "jotd_forwarded",
}

COMMITTED = "etcd_server_proposals_committed_total"
APPLIED = "etcd_server_proposals_applied_total"
SLOW = "etcd_server_slow_apply_total"
COMMIT_COUNT = "etcd_disk_backend_commit_duration_seconds_count"

Figures = dict[str, float]


class Server(World):
    """A node and its service, with the HTTP side of a real server."""

    def __init__(
        self, node: Node, journal: FaultyJournal, service: EtcdService, slow_apply_s: float
    ) -> None:
        super().__init__(node, journal, service)
        self.stats = NodeStats(node, service, slow_apply_s)
        health = HealthCounts()
        metrics = Metrics(
            self.stats,
            RpcCounters(),
            health,
            LoopStalls(asyncio.get_running_loop()),
            Histogram(),
        )
        self._endpoints = Endpoints(LocalClient(service), health, metrics)

    async def scrape(self) -> Figures:
        """By name; where there are labels, the sum of what is not a bucket."""
        answer = await self._endpoints.handle(Request("GET", "/metrics"))
        assert answer.status == 200
        found: Figures = {}
        for family in text_string_to_metric_families(answer.body.decode()):
            if not family.samples:
                found[family.name] = 0.0
            for sample in family.samples:
                if not sample.name.endswith("_bucket"):
                    found[sample.name] = found.get(sample.name, 0.0) + sample.value
        return {
            name: value
            for name, value in found.items()
            if name.startswith(("etcd_", "jotd_")) and not name.startswith(ELSEWHERE)
        }


@asynccontextmanager
async def serving(data: Path | None = None, slow_apply_s: float = 0.0) -> AsyncIterator[Server]:
    """On a file journal where there is a directory. Every apply is slow unless told otherwise."""
    journal = FaultyJournal(MemoryJournal() if data is None else FileJournal(data))
    split = parse(TABLE.replace('name = "a"', 'name = "a"\nbudget-bytes = 1000000'))
    node = Node(journal, split, NodeOptions(quota_bytes=1 << 30), asyncio.get_running_loop())
    await node.open()
    server = Server(node, journal, EtcdService(node, ServiceOptions()), slow_apply_s)
    try:
        yield server
    finally:
        journal.release()
        await node.close()


async def until(happened: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not happened():
            await asyncio.sleep(0.01)


async def work(server: Server) -> AsyncIterator[None]:
    """Something of everything; stops where a level is up that goes down again."""
    watching, slow = server.watch_stream(), server.watch_stream(room=0)
    for stream, key in ((watching, b"a/"), (slow, b"b/")):
        range_end = key[:-1] + b"0"
        stream.say(
            pb.WatchRequest(
                create_request=pb.WatchCreateRequest(key=key, range_end=range_end, start_revision=1)
            )
        )
    everything = pb.WatchCreateRequest(key=b"\0", range_end=b"\0")
    watching.say(pb.WatchRequest(create_request=everything))
    await server.grant(7, ttl_s=60)
    await server.grant(8, ttl_s=2)
    keep_alive = server.keep_alive()
    keep_alive.say(pb.LeaseKeepAliveRequest(ID=7))
    for n in range(3):
        for key in (b"a/x", b"b/x", b"c"):
            await server.put(key, b"%d" % n, lease=7)
    await server.txn([mod_is(b"a/none", 0)], [put_op(b"a/none"), put_op(b"a/other")])
    await server.get(b"a/x")
    await server.delete(b"a/none")
    yield
    server.journal.hold()
    held = server.put(b"a/held", b"x" * 100)
    await server.journal.in_flight(1)
    yield
    server.journal.release()
    await held
    await server.call(MAINTENANCE + "Hash", pb.HashRequest())
    await server.hash_kv()
    await server.compact(server.revision - 1, physical=True)
    await server.revoke(7)
    await until(lambda: server.node.leases_expired > 0)
    server.node.start_snapshot()
    await until(lambda: server.node.snapshotter.taken > 0)
    server.journal.fail_next(NoSpace())
    assert (await server.put(b"a/refused")).code == Code.RESOURCE_EXHAUSTED
    alarm = pb.AlarmRequest(
        action=pb.AlarmRequest.ACTIVATE, memberID=server.node.member_id, alarm=pb.NOSPACE
    )
    await server.call(MAINTENANCE + "Alarm", alarm)
    yield


@pytest.mark.slow
def test_every_figure_moves(tmp_path: Path) -> None:
    """A figure that nobody fills is none. What is up for a moment is looked at then."""

    async def scenario() -> list[Figures]:
        async with asyncio.timeout(60), serving(tmp_path) as server:
            return [await server.scrape() async for _ in work(server)]

    started = time.time()
    seen = asyncio.run(scenario())
    names = set().union(*seen)
    assert len(names) > 60
    assert {name for name in names if not any(figures.get(name) for figures in seen)} == STILL
    last = seen[-1]
    assert started - 1 < last["etcd_debugging_mvcc_db_compaction_last"] < time.time() + 1
    for counted, times in {
        "etcd_mvcc_hash_duration_seconds": 1,
        "etcd_mvcc_hash_rev_duration_seconds": 1,
        "etcd_debugging_mvcc_db_compaction_total_duration_milliseconds": 1,
        "etcd_debugging_snap_save_total_duration_seconds": 1,
        "etcd_debugging_lease_ttl_total": 2,
    }.items():
        assert last[f"{counted}_count"] == times, counted
    assert last["etcd_debugging_lease_ttl_total_sum"] == 62
    batches = last["jotd_journal_appends_total"] - 1  # The fence of the term is none.
    assert last["etcd_disk_backend_commit_duration_seconds_count"] == batches


def test_watchers_count_in_each_shard_that_they_watch() -> None:
    async def scenario() -> None:
        async with serving() as server:
            stream = server.watch_stream()
            for key, range_end in ((b"a/", b"a0"), (b"a/x", b""), (b"b/", b"b0"), (b"\0", b"\0")):
                stream.say(
                    pb.WatchRequest(
                        create_request=pb.WatchCreateRequest(key=key, range_end=range_end)
                    )
                )
            hub, (a, b, rest) = server.node.hub, server.node.state.store.shards
            assert [hub.watchers_of[shard] for shard in (a, b, rest)] == [3, 2, 1]
            figures = await server.scrape()
            assert figures["jotd_shard_watchers"] == 6
            assert figures["etcd_debugging_mvcc_watcher_total"] == 4
            stream.say(pb.WatchRequest(cancel_request=pb.WatchCancelRequest(watch_id=0)))
            assert hub.watchers_of[a] == 2
            stream.close()
            await until(lambda: not hub.watchers)
            assert (await server.scrape())["jotd_shard_watchers"] == 0

    asyncio.run(scenario())


def test_what_waits_is_weighed_until_it_is_committed() -> None:
    async def scenario() -> None:
        async with serving() as server:
            server.journal.hold()
            calls = [server.put(b"k%d" % n, b"x" * 1000) for n in range(3)]
            # It waits for what is in flight, and those behind it wait for it.
            calls += [server.delete(b"none", b"nonf"), server.put(b"k", b"x" * 1000)]
            await server.journal.in_flight(1)
            assert (await server.scrape())["jotd_proposals_pending_bytes"] > 4000
            server.journal.release()
            for call in calls:
                await call
            assert (await server.scrape())["jotd_proposals_pending_bytes"] == 0

    asyncio.run(scenario())


def test_a_huge_batch_is_committed_before_it_is_applied(monkeypatch: pytest.MonkeyPatch) -> None:
    """And takes as long as it does to be seen."""
    monkeypatch.setattr(slicer, "ROUND_S", 0.0)

    async def scenario() -> None:
        async with serving() as server:
            for at in range(0, 3000, 100):
                await server.txn(success=[put_op(b"a/%05d" % n) for n in range(at, at + 100)])
            await server.put(b"b/x")
            before = await server.scrape()
            call = server.delete(b"a/", b"a0")
            lagged = 0
            while not call.done:
                await asyncio.sleep(0)
                stats = server.stats()
                proposals = stats.proposals
                if proposals.committed_total > proposals.applied_total:
                    # Nobody sees any of it yet.
                    assert stats.store.current_revision == server.revision == 32
                    assert proposals.applied_total == before[APPLIED]
                    assert proposals.commit_s.count == before[COMMIT_COUNT]
                    lagged += 1
            assert lagged
            after = await server.scrape()
            assert after[COMMITTED] == after[APPLIED] == before[APPLIED] + 1
            assert after[COMMIT_COUNT] == before[COMMIT_COUNT] + 1
            assert after[SLOW] == before[SLOW] + 1
            assert after["etcd_debugging_mvcc_current_revision"] == 33

    asyncio.run(scenario())


def test_a_slow_journal_is_not_a_slow_apply(caplog: pytest.LogCaptureFixture) -> None:
    """In virtual time: the journal's seconds are the loop's, those of an apply are real."""

    async def scenario() -> None:
        async with serving(slow_apply_s=4.9) as server:
            server.journal.hold()
            call = server.put(b"k")
            await server.journal.in_flight(1)
            await asyncio.sleep(5)
            server.journal.release()
            await call
            proposals = server.stats().proposals
            assert proposals.slow_applies_total == 0
            assert proposals.commit_s.sum > 4.9

    run(scenario)
    assert "the journal is slow" in caplog.text
    assert "applying took too long" not in caplog.text


def test_what_is_counted_of_reads_and_transactions() -> None:
    """What a RangeStream reads; tests/differential/test_metrics.py has what etcd counts too."""

    async def scenario() -> None:
        async with serving() as server:
            for n in range(25):
                await server.put(b"a/%02d" % n)
            stream = server.range_stream()
            stream.say(pb.RangeRequest(key=b"a/", range_end=b"a0"))
            await until(lambda: stream.closed is not None)
            chunks = len(stream.messages)
            assert chunks > 1
            figures = await server.scrape()
            assert figures["etcd_mvcc_range_total"] == chunks
            assert figures["etcd_mvcc_txn_total"] == 0
            assert figures["etcd_mvcc_put_total"] == 25
            await server.txn([mod_is(b"a/00", 1)], [], [get_op(b"a/00"), delete_op(b"a/00")])
            figures = await server.scrape()
            assert figures["etcd_mvcc_range_total"] == chunks + 2
            assert figures["etcd_mvcc_txn_total"] == 1
            assert figures["etcd_mvcc_delete_total"] == 1

    asyncio.run(scenario())
