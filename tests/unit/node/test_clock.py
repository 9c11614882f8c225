"""What the node does by itself, in virtual time: leases expire, history is compacted."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from kvstore.node.autocompact import ByRevision, Never, Periodic
from kvstore.node.node import NodeOptions
from kvstore.pb import rpc_pb2 as pb
from kvstore.transport.seam import Code
from tests.unit.node.world import MAINTENANCE, FakeCall, World, run, world

HOUR = 3600.0


# -- leases ----------------------------------------------------------------------------------


def test_a_lease_expires_and_its_keys_go_in_one_revision() -> None:
    async def main() -> None:
        async with world() as w:
            await w.grant(5, 10)
            for key in (b"b/1", b"a/2", b"a/1", b"zz"):
                await w.put(key, key, lease=5)
            await w.put(b"kept")
            revision = w.revision
            stream = w.watch_stream()
            create = pb.WatchCreateRequest(key=b"\x00", range_end=b"\x00", prev_kv=True)
            stream.say(pb.WatchRequest(create_request=create))
            stream.take()
            await asyncio.sleep(9.9)
            assert w.revision == revision
            await asyncio.sleep(2)
            assert w.revision == revision + 1
            assert w.time_to_live(5).response.TTL == -1
            (message,) = stream.take()
            assert [e.kv.key for e in message.events] == [b"a/1", b"a/2", b"b/1", b"zz"]
            assert {e.kv.mod_revision for e in message.events} == {revision + 1}
            assert [e.prev_kv.value for e in message.events] == [e.kv.key for e in message.events]
            assert [kv.key for kv in w.get(b"\x00", b"\x00").response.kvs] == [b"kept"]

    run(main)


def test_a_lease_that_is_kept_alive_stays() -> None:
    async def main() -> None:
        async with world() as w:
            await w.grant(5, 10)
            await w.put(b"k", lease=5)
            stream = w.keep_alive()
            for _ in range(5):
                await asyncio.sleep(8)
                stream.say(pb.LeaseKeepAliveRequest(ID=5), pb.LeaseKeepAliveRequest(ID=6))
            assert [(m.ID, m.TTL) for m in stream.messages] == [(5, 10), (6, 0)] * 5
            assert w.get(b"k").response.count == 1
            await asyncio.sleep(12)
            assert w.get(b"k").response.count == 0

    run(main)


def test_a_lease_does_not_expire_twice_and_a_detached_key_stays() -> None:
    async def main() -> None:
        async with world() as w:
            await w.grant(5, 5)
            await w.put(b"moved", lease=5)
            await w.put(b"moved")
            await w.put(b"k", lease=5)
            w.journal.hold()
            await asyncio.sleep(6.5)  # the revoke is in flight, and named again
            w.journal.release()
            revision = w.revision
            await asyncio.sleep(5)
            assert w.revision == revision + 1
            assert w.get(b"moved").response.count == 1
            assert w.node.leases_expired == 1

    run(main)


def test_a_put_on_a_lease_whose_revoke_comes_first_fails() -> None:
    async def main() -> None:
        async with world() as w:
            await w.grant(5)
            w.journal.hold()
            revoke = w.revoke(5)
            put = w.put(b"k", lease=5)
            again = w.grant(5)
            w.journal.release()
            await revoke
            assert (await put).error == (
                Code.NOT_FOUND,
                "etcdserver: requested lease not found",
            )
            assert (await again).code == Code.OK

    run(main)


# -- auto-compaction -------------------------------------------------------------------------


def play(policy: Any, revisions: Any, until_s: float) -> list[tuple[float, int]]:
    """(time, target) of each compaction, asked every ten seconds."""
    found = []
    for now in range(0, int(until_s), 10):
        target = policy.due(float(now), revisions(now))
        if target is not None:
            found.append((now, target))
    return found


def test_periodic_keeps_what_is_younger_than_its_retention() -> None:
    """One revision a second: an hour's retention keeps the last 3600, looking hourly."""
    found = play(Periodic(HOUR, 0.0), lambda now: now + 1, 5 * HOUR)
    assert [now for now, _ in found] == [3600, 7200, 10800, 14400]
    for now, target in found:
        assert now - HOUR - 360 <= target <= now - HOUR + 1


def test_periodic_with_a_short_retention_looks_as_often() -> None:
    found = play(Periodic(300.0, 0.0), lambda now: now + 1, HOUR)
    assert [now for now, _ in found] == list(range(300, 3600, 300))
    for now, target in found:
        assert now - 300 - 40 <= target <= now - 300 + 1


def test_periodic_with_a_long_retention_looks_hourly() -> None:
    found = play(Periodic(10 * HOUR, 0.0), lambda now: now + 1, 14 * HOUR)
    assert [now / HOUR for now, _ in found] == [10, 11, 12, 13]
    for now, target in found:
        assert now - 10 * HOUR - 360 <= target <= now - 10 * HOUR + 1


def test_nothing_new_is_no_reason_to_compact() -> None:
    assert len(play(Periodic(300.0, 0.0), lambda now: 50, HOUR)) == 1
    assert len(play(ByRevision(10, 0.0), lambda now: 50, HOUR)) == 1
    assert play(ByRevision(100, 0.0), lambda now: 50, HOUR) == []
    assert play(Never(), lambda now: now + 1, HOUR) == []


def test_by_revision_keeps_the_last_ones_looking_every_five_minutes() -> None:
    found = play(ByRevision(1000, 0.0), lambda now: 10 * now, 1000.0)
    assert found == [(300, 2000), (600, 5000), (900, 8000)]


def test_the_node_compacts_by_its_policy() -> None:
    options = NodeOptions(auto_compaction=lambda now: ByRevision(5, now))

    async def main() -> None:
        async with world(options=options) as w:
            for n in range(20):
                await w.put(b"k", b"%d" % n)
            await asyncio.sleep(301)
            store = w.node.state.store
            assert store.compact_revision == w.revision - 5
            assert store.compacted_through == store.compact_revision
            assert (await w.get(b"k", revision=w.revision - 6)).code == Code.OUT_OF_RANGE
            assert w.get(b"k", revision=w.revision - 5).response.count == 1
            assert w.node.versions_compacted > 10

    run(main)


# -- compaction ------------------------------------------------------------------------------


def test_physical_compaction_is_waited_for_and_held_back_by_a_read() -> None:
    async def main() -> None:
        async with world() as w:
            for n in range(50):
                await w.put(b"k%d" % (n % 5), b"%d" % n)
            store = w.node.state.store
            pin = store.pins.take(10, w.node.now())
            compact = w.compact(w.revision, physical=True)
            await asyncio.sleep(1)
            assert not compact.done
            assert store.compact_revision == w.revision, "logically at once (R8)"
            assert store.compacted_through == 10
            store.pins.release(pin)
            assert (await compact).code == Code.OK
            assert sum(len(shard.history) for shard in store.shards) <= 6

    run(main)


def test_a_read_that_never_ends_holds_compaction_back_for_a_bounded_time() -> None:
    async def main() -> None:
        async with world() as w:
            for n in range(50):
                await w.put(b"k", b"%d" % n)
            store = w.node.state.store
            store.pins.take(10, w.node.now())
            compact = w.compact(w.revision, physical=True)
            await asyncio.sleep(59)
            assert not compact.done
            await asyncio.sleep(2)
            assert compact.code == Code.OK

    run(main)


def test_deleted_keys_leave_the_index_when_they_are_compacted() -> None:
    async def main() -> None:
        async with world() as w:
            for n in range(20):
                await w.put(b"a/%02d" % n)
                await w.put(b"b/%02d" % n)
            await w.delete(b"a/", b"a0")
            store = w.node.state.store
            kept = [shard.index.kept(b"", None) for shard in store.shards]
            assert sum(kept) == 40
            await w.put(b"a/05")
            await w.compact(w.revision, physical=True)
            assert sum(shard.index.kept(b"", None) for shard in store.shards) == 21
            await w.put(b"a/06", prev_kv=True)
            assert [kv.key for kv in w.get(b"a/", b"a0").response.kvs] == [b"a/05", b"a/06"]
            assert store.size_bytes == store.live_size_bytes

    run(main)


def test_a_watch_from_the_compacted_revision_has_its_previous_values() -> None:
    """R8: events at C and what they replaced stay, deletions at C included (etcd#19179, #18089)."""

    async def main() -> None:
        async with world() as w:
            await w.put(b"k", b"1")
            await w.put(b"gone", b"x")
            await w.put(b"k", b"2")
            await w.delete(b"gone")
            compacted = w.revision
            await w.compact(compacted, physical=True)
            stream = w.watch_stream()
            for start in (compacted, compacted - 1):
                create = pb.WatchCreateRequest(
                    key=b"\x00", range_end=b"\x00", start_revision=start, prev_kv=True
                )
                stream.say(pb.WatchRequest(create_request=create))
            await asyncio.sleep(1)
            created, _, events, cancelled = stream.take()
            assert created.created
            (event,) = events.events
            assert (event.kv.key, event.prev_kv.value) == (b"gone", b"x")
            assert (cancelled.canceled, cancelled.compact_revision) == (True, compacted)

    run(main)


# -- alarms ----------------------------------------------------------------------------------


def alarm(w: World, action: int, kind: int = pb.NOSPACE) -> FakeCall:
    request = pb.AlarmRequest(action=action, memberID=3, alarm=kind)  # type: ignore[arg-type]
    return w.call(MAINTENANCE + "Alarm", request)


@pytest.mark.parametrize("actions", [[1, 2], [1, 2, 1], [1, 1, 2, 2]])
def test_alarms_change_in_the_order_of_their_requests(actions: list[int]) -> None:
    """Also while earlier changes are in flight."""

    async def main() -> None:
        async with world() as w:
            await alarm(w, pb.AlarmRequest.ACTIVATE)
            w.journal.hold()
            w.put(b"k")
            calls = [alarm(w, 3 - action) for action in actions]
            w.journal.release()
            for call in calls:
                await call
            active = alarm(w, pb.AlarmRequest.GET, pb.NONE).response.alarms
            assert bool(active) == (actions[-1] == 2)

    run(main)


def test_leases_that_end_together_leave_room_for_writes() -> None:
    """Each takes an append of its own: few are under way at once, and each is named once."""

    async def main() -> None:
        async with world() as w:
            for number in range(1, 301):
                await w.grant(number, 2)
            await w.put(b"k", lease=300)
            held = []
            for _ in range(60):
                w.journal.hold()
                put = w.put(b"other")
                held.append(w.node.proposer.waiting)
                # A journal that takes 50 ms for an append.
                while not put.done:
                    await asyncio.sleep(0.05)
                    w.journal.release(1)
            assert 1 < max(held) <= 20
            w.journal.release()
            await asyncio.sleep(20)
            assert not len(w.node.state.lessor)
            assert w.get(b"k").response.count == 0
            assert w.node.leases_expired == 300

    run(main)


def test_a_full_quota_raises_an_alarm_that_stays() -> None:
    async def main() -> None:
        async with world(options=NodeOptions(quota_bytes=20_000)) as w:
            calls = [await w.put(b"k%d" % n, b"x" * 500) for n in range(60)]
            refused = [call for call in calls if call.code != Code.OK]
            assert refused
            assert {call.error for call in refused} == {
                (Code.RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded")
            }
            for n in range(60):
                assert (await w.delete(b"k%d" % n)).code == Code.OK
            await w.compact(w.revision, physical=True)
            assert (await w.put(b"small")).code == Code.RESOURCE_EXHAUSTED
            member = w.node.state.member_id
            request = pb.AlarmRequest(action=2, memberID=member, alarm=pb.NOSPACE)  # type: ignore[arg-type]
            await w.call(MAINTENANCE + "Alarm", request)
            assert (await w.put(b"small")).code == Code.OK

    run(main)


def test_leases_alone_fill_a_quota() -> None:
    """They cost memory as keys do, and nothing else bounds them (I8)."""

    async def main() -> None:
        async with world(options=NodeOptions(quota_bytes=20_000)) as w:
            calls = [await w.grant(n + 1) for n in range(60)]
            assert calls[30].code == Code.OK
            assert calls[-1].error == (
                Code.RESOURCE_EXHAUSTED,
                "etcdserver: mvcc: database space exceeded",
            )
            assert (await w.revoke(5)).code == Code.OK

    run(main)
