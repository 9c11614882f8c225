"""Three whole nodes on one memory journal, in virtual time: who leads, and what clients see."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from kvstore.api.routing import FORWARDED
from kvstore.cluster.cluster import NO_LEADER_S
from kvstore.pb import rpc_pb2 as pb
from kvstore.transport.seam import Code, RemoteError
from kvstore.watch import hub
from tests.unit.cluster.nodes import CutJournal, Many, One, cluster, range_request
from tests.unit.node.world import KV, MAINTENANCE, FakeCall, mod_is, put_op, run

REMOVE = "/etcdserverpb.Cluster/MemberRemove"
LEADER_FAILED = "etcdserver: request timed out, possibly due to previous leader failure"


def now() -> float:
    return asyncio.get_running_loop().time()


def test_one_leads_and_all_serve() -> None:
    async def main() -> None:
        async with cluster() as many:
            leader = await many.leader()
            for number, one in enumerate(many.nodes.values()):
                put = await one.put(b"k%d" % number, b"v")
                assert put.response.header.revision == number + 2
                got = (await one.get(b"k%d" % number)).response
                assert got.kvs[0].value == b"v" and got.header.revision == number + 2
            assert len(await many.hashes()) == 1
            for one in many.nodes.values():
                local = await one.call(KV + "Range", range_request(b"k0", serializable=True))
                assert local.response.kvs[0].value == b"v"
                assert local.response.header.member_id == one.node.member_id
                assert local.response.header.raft_term == leader.node.state.term
                status = await one.call(MAINTENANCE + "Status", pb.StatusRequest())
                answer = pb.StatusResponse.FromString(status.raw or b"")
                assert answer.leader == leader.node.member_id
                assert answer.header.member_id == one.node.member_id
                assert (answer.raftTerm, answer.raftIndex) == (1, many.storage.tail)
            forwarded = sum(sum(one.routing.forwarded.values()) for one in many.others(leader))
            assert forwarded == 4 and not leader.routing.forwarded

    run(main)


def test_everybody_knows_the_members() -> None:
    async def main() -> None:
        async with cluster() as many:
            await many.leader()
            await asyncio.sleep(1)
            lists = set()
            for one in many.nodes.values():
                call = await one.call("/etcdserverpb.Cluster/MemberList", pb.MemberListRequest())
                members = pb.MemberListResponse.FromString(call.raw or b"").members
                lists.add(tuple((m.ID, m.name, *m.clientURLs) for m in members))
            (found,) = lists
            assert sorted(name for _, name, _ in found) == ["a", "b", "c"]

    run(main)


def test_a_member_that_is_gone_can_be_removed_from_any_node() -> None:
    async def main() -> None:
        async with cluster() as many:
            first = await many.leader()
            gone, other = many.others(first)
            many.kill(gone)
            await asyncio.sleep(3)
            removed = await other.call(REMOVE, pb.MemberRemoveRequest(ID=gone.node.member_id))
            assert removed.code is Code.OK
            answer = pb.MemberRemoveResponse.FromString(removed.raw or b"")
            assert answer.header.member_id == first.node.member_id
            left = sorted((m.ID, m.name, *m.clientURLs) for m in answer.members)
            assert left == sorted((o.node.member_id, o.node.options.name, o.url) for o in
                                  (first, other))  # fmt: skip
            await asyncio.sleep(1)
            for one in many.nodes.values():
                assert sorted((m.id, m.name, *m.client_urls) for m in one.node.members()) == left
            again = await first.call(REMOVE, pb.MemberRemoveRequest(ID=gone.node.member_id))
            assert again.error == (Code.NOT_FOUND, "etcdserver: member not found")

            # Whoever was removed is a member again when it comes back, under the same id.
            back = await many.start(gone.node.options.name)
            assert back.node.member_id == gone.node.member_id
            await asyncio.sleep(1)
            assert len(first.node.members()) == 3
            assert (await back.put(b"k", b"v")).code is Code.OK

    run(main)


def test_a_member_that_lives_is_not_removed() -> None:
    async def main() -> None:
        async with cluster() as many:
            first = await many.leader()
            await asyncio.sleep(1)
            members = first.node.members()
            assert len(members) == 3
            for one in many.nodes.values():
                for asked in many.nodes.values():
                    request = pb.MemberRemoveRequest(ID=one.node.member_id)
                    code, text = (await asked.call(REMOVE, request)).error
                    assert code is Code.FAILED_PRECONDITION and "the member is live" in text
            assert await many.leader() is first
            assert first.node.members() == members
            unknown = await first.call(REMOVE, pb.MemberRemoveRequest(ID=99))
            assert unknown.error == (Code.NOT_FOUND, "etcdserver: member not found")
            assert (await first.put(b"k", b"v")).code is Code.OK

    run(main)


def test_a_removal_is_refused_when_the_journal_is_away_and_the_lead_goes_on() -> None:
    async def main() -> None:
        async with cluster() as many:
            first = await many.leader()
            gone, _ = many.others(first)
            many.kill(gone)
            await asyncio.sleep(1)
            request = pb.MemberRemoveRequest(ID=gone.node.member_id)
            assert first.node.leads()
            call = first.call(REMOVE, request)
            for one in many.nodes.values():
                one.cut()
            assert (await call).error == (Code.UNAVAILABLE, "etcdserver: request timed out")
            for one in many.nodes.values():
                one.cut(False)
            await asyncio.sleep(5)
            # Given up: nobody was told that it is done.
            leader = await many.leader()
            assert len(leader.node.members()) == 3
            assert (await leader.call(REMOVE, request)).code is Code.OK
            assert len(leader.node.members()) == 2

    run(main)


def test_another_takes_over_from_a_leader_that_died() -> None:
    async def main() -> None:
        async with cluster() as many:
            first = await many.leader()
            await first.put(b"k", b"1")
            began = now()
            many.kill(first)
            second = await many.leader()
            assert now() - began < 2.0 + 0.2 + 0.2 + 0.5
            assert second.node.state.term == first.node.state.term + 1
            assert (await second.put(b"k", b"2")).response.header.revision == 3
            (third,) = many.others(second)
            assert (await third.get(b"k")).response.kvs[0].value == b"2"
            assert len(await many.hashes()) == 1

    run(main)


def test_calls_wait_for_the_next_leader() -> None:
    async def main() -> None:
        async with cluster() as many:
            first = await many.leader()
            await first.put(b"k", b"1")
            many.kill(first)
            survivors = list(many.nodes.values())
            calls = [one.get(b"k") for one in survivors] + [one.put(b"x") for one in survivors]
            for call in calls:
                assert (await call).code is Code.OK

    run(main)


def test_a_leader_that_is_cut_off_stops_to_serve_before_another_starts() -> None:
    """I6, R6."""

    async def main() -> None:
        async with cluster() as many:
            first = await many.leader()
            await first.put(b"k", b"old")
            first.cut()
            lost = first.put(b"k", b"lost")
            while first.node.leads():
                assert many.leaders() == [first]
                await asyncio.sleep(0.001)
            second = await many.leader()
            assert second is not first
            await second.put(b"k", b"new")
            first.cut(False)
            assert (await lost).error == (Code.UNAVAILABLE, LEADER_FAILED)
            await asyncio.sleep(3)
            assert many.leaders() == [second]
            got = (await first.get(b"k")).response
            assert got.kvs[0].value == b"new"
            assert len(await many.hashes()) == 1

    run(main)


def test_what_was_asked_when_the_lease_had_lapsed_is_not_answered_from_old_state() -> None:
    """I2: the read waits, and then sees what the next leader has acknowledged."""

    async def main() -> None:
        async with cluster() as many:
            first = await many.leader()
            await first.put(b"k", b"old")
            first.cut()
            while first.node.leads():
                await asyncio.sleep(0.01)
            second = await many.leader()
            await second.put(b"k", b"new")
            read = first.get(b"k")
            await asyncio.sleep(0.5)
            assert not read.done
            first.cut(False)
            assert (await read).response.kvs[0].value == b"new"

    run(main)


def test_an_outage_of_the_journal_changes_no_leader() -> None:
    async def main() -> None:
        async with cluster() as many:
            first = await many.leader()
            for one in many.nodes.values():
                one.cut()
            put = first.put(b"k", b"v")
            await asyncio.sleep(4)
            assert not many.leaders() and not put.done
            for one in many.nodes.values():
                one.cut(False)
            assert (await many.leader()) is first
            assert (await put).code is Code.OK
            assert first.node.state.term == 1

    run(main)


def test_a_planned_hand_over() -> None:
    async def main() -> None:
        async with cluster() as many:
            first = await many.leader()
            chosen, other = many.others(first)
            await asyncio.sleep(1)
            calls: list[FakeCall] = []
            stop = asyncio.Event()

            async def write() -> None:
                while not stop.is_set():
                    for one in many.nodes.values():
                        calls.append(one.put(b"k", b"%d" % len(calls)))
                    await asyncio.sleep(0.01)

            writer = asyncio.ensure_future(write())
            began = now()
            request = pb.MoveLeaderRequest(targetID=chosen.node.member_id)
            refused = await other.call(MAINTENANCE + "MoveLeader", request)
            assert refused.error == (Code.FAILED_PRECONDITION, "etcdserver: not leader")
            bad = await first.call(MAINTENANCE + "MoveLeader", pb.MoveLeaderRequest(targetID=99))
            assert bad.error == (Code.FAILED_PRECONDITION, "etcdserver: bad leader transferee")
            moved = await first.call(MAINTENANCE + "MoveLeader", request)
            assert moved.code is Code.OK
            assert (await many.leader()) is chosen
            assert now() - began < 1.0
            stop.set()
            await writer
            revisions = [(await call).response.header.revision for call in calls]
            assert len(set(revisions)) == len(revisions)
            assert len(await many.hashes()) == 1

    run(main)


def test_a_rolling_restart_fails_no_call() -> None:
    async def main() -> None:
        async with cluster() as many:
            await many.leader()
            client_calls: list[FakeCall] = []
            stop = asyncio.Event()

            async def write() -> None:
                while not stop.is_set():
                    for one in many.nodes.values():
                        if one.node.is_open:
                            client_calls.append(one.put(b"k", b"v"))
                    await asyncio.sleep(0.02)

            writer = asyncio.ensure_future(write())
            for name in ("a", "b", "c"):
                one = many.nodes[name]
                assert one.node.cluster is not None
                await asyncio.sleep(0.5)
                await one.node.cluster.step_aside()
                await many.leader(1.0)
                del many.nodes[name]
                await asyncio.sleep(0.5)
                await one.routing.close()
                await one.node.close()
                await many.start(name)
            stop.set()
            await writer
            codes = [(await call).code for call in client_calls]
            assert set(codes) == {Code.OK} and len(codes) > 100
            assert len(await many.hashes()) == 1

    run(main)


@pytest.mark.parametrize("matches", [hub.MATCHES, 1])
def test_a_watch_of_a_follower_goes_on_over_a_change_of_leader(
    matches: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I4: complete, ordered, unique, also if matching takes steps.

    And consistent reads through it come out right.
    """
    monkeypatch.setattr(hub, "MATCHES", matches)

    async def main() -> None:
        async with cluster() as many:
            first = await many.leader()
            follower, _ = many.others(first)
            stream = follower.watch_stream()
            stream.say(
                pb.WatchRequest(create_request=pb.WatchCreateRequest(key=b"k", range_end=b"l"))
            )
            await asyncio.sleep(0.1)
            for number in range(5):
                await first.put(b"k", b"%d" % number)
            many.kill(first)
            second = await many.leader()
            for number in range(5, 10):
                await second.put(b"k", b"%d" % number)
            await many.caught_up()
            await asyncio.sleep(0.1)
            events = [event for message in stream.messages for event in message.events]
            assert [event.kv.value for event in events] == [b"%d" % n for n in range(10)]
            assert [event.kv.mod_revision for event in events] == list(range(2, 12))

    run(main)


def test_clients_that_want_a_leader_are_told_that_there_is_none() -> None:
    async def main() -> None:
        async with cluster(2) as many:
            first = await many.leader()
            (other,) = many.others(first)
            await asyncio.sleep(1)
            other.cut()
            await asyncio.sleep(8)
            call = other.call(KV + "Range", range_request(b"k"), [("hasleader", "true")])
            assert call.error == (Code.UNAVAILABLE, "etcdserver: no leader")
            local = other.call(KV + "Range", range_request(b"k", serializable=True))
            assert local.code is Code.OK
            status = other.call(MAINTENANCE + "Status", pb.StatusRequest())
            answer = pb.StatusResponse.FromString(status.raw or b"")
            assert answer.leader == 0 and answer.errors == ["etcdserver: no leader"]

    run(main)


def test_watches_that_want_a_leader_last_over_a_change_and_end_when_nobody_leads() -> None:
    """As etcd's do, which ends them after three election timeouts without a leader."""

    async def main() -> None:
        async with cluster() as many:
            first = await many.leader()
            streams = []
            for one in many.nodes.values():
                stream = one.demanding_watch_stream()
                stream.say(pb.WatchRequest(create_request=pb.WatchCreateRequest(key=b"k")))
                streams.append(stream)
            await asyncio.sleep(1)
            third = many.others(first)[0]
            await move(first, third)
            await asyncio.sleep(1)
            assert [stream.closed for stream in streams] == [None, None, None]
            died = [*many.nodes.values()].index(third)
            many.kill(third)
            await many.leader()
            await asyncio.sleep(1)
            left = [stream for n, stream in enumerate(streams) if n != died]
            assert [stream.closed for stream in left] == [None, None]
            for one in many.nodes.values():
                one.cut()
            await asyncio.sleep(10)
            no_leader = (Code.UNAVAILABLE, "etcdserver: no leader")
            assert [stream.closed for stream in left] == [no_leader, no_leader]

    run(main)


def test_a_watch_that_wants_a_leader_may_begin_between_two() -> None:
    """A client comes from the node that ends, before another one leads."""

    async def main() -> None:
        async with cluster() as many:
            first = await many.leader()
            await asyncio.sleep(1)
            assert first.node.cluster is not None
            leaving = asyncio.ensure_future(first.node.cluster.step_aside())
            streams = []
            for _ in range(1000):
                for other in many.others(first):
                    if other.node.leader_id == 0:
                        stream = other.demanding_watch_stream()
                        create = pb.WatchCreateRequest(key=b"k")
                        stream.say(pb.WatchRequest(create_request=create))
                        streams.append(stream)
                await asyncio.sleep(0.001)
            await leaving
            assert streams
            for stream in streams:
                assert stream.closed is None and stream.messages[0].created

    run(main)


async def move(leader: One, heir: One) -> None:
    call = leader.call(
        MAINTENANCE + "MoveLeader", pb.MoveLeaderRequest(targetID=heir.node.member_id)
    )
    await call
    assert call.code is Code.OK


def test_who_begins_to_wait_for_a_change_misses_none() -> None:
    async def main() -> None:
        async with cluster(1) as many:
            one = await many.leader()
            found = one.node.cluster
            assert found is not None

            async def wait() -> None:
                await asyncio.wait_for(found.changed(), 5)

            waiting = asyncio.ensure_future(wait())
            await asyncio.sleep(0)
            found._tell()
            await waiting

    run(main)


def test_a_read_turns_to_the_next_leader_when_the_one_that_it_asked_freezes() -> None:
    async def main() -> None:
        async with cluster() as many:
            first = await many.leader()
            await first.put(b"k", b"v")
            other = many.others(first)[0]
            await asyncio.sleep(1)

            class Frozen:
                async def unary(self, url: str, *call: Any) -> bytes:
                    if url == first.url:
                        await asyncio.sleep(1000)
                    return await many.unary(url, *call)

            other.routing._remote = Frozen()  # type: ignore[assignment]
            read = other.get(b"k")
            await asyncio.sleep(0.1)
            began = now()
            many.kill(first)
            assert (await read).response.kvs[0].value == b"v"
            assert now() - began < 5

    run(main)


@pytest.mark.slow
def test_a_leader_that_does_not_answer_is_etcds_timeout() -> None:
    class Deaf:
        async def unary(self, *call: Any) -> bytes:
            await asyncio.sleep(call[-1])
            raise RemoteError(Code.DEADLINE_EXCEEDED, "Deadline Exceeded", unsent=False)

    async def main() -> None:
        async with cluster(2) as many:
            (other,) = many.others(await many.leader())
            await asyncio.sleep(1)
            other.routing._remote = Deaf()  # type: ignore[assignment]
            for call in (other.call(KV + "Put", pb.PutRequest(key=b"k")), other.get(b"k")):
                await call
                assert call.error == (Code.UNAVAILABLE, "etcdserver: request timed out")

    run(main)


@pytest.mark.parametrize(
    ("left", "waits_s"), [("500", 0.5), ("1", 0.0), ("60000", 7.0), ("-1", 7.0), ("x", 7.0)]
)
def test_a_forwarded_call_waits_for_a_leader_no_longer_than_its_sender(
    left: str, waits_s: float
) -> None:
    async def main() -> None:
        async with cluster(2) as many:
            first = await many.leader()
            first.data.silence_s = first.data.control.silence_s = 60.0
            first.cut()
            await asyncio.sleep(5)
            began = now()
            call = first.call(KV + "Range", pb.RangeRequest(key=b"k"), [(FORWARDED, left)])
            await call
            assert call.error == (Code.UNAVAILABLE, "etcdserver: no leader")
            assert waits_s <= now() - began < waits_s + 0.2

    run(main)


def test_a_leader_is_missed_in_time_by_a_node_whose_journal_says_nothing() -> None:
    async def main() -> None:
        async with cluster(2) as many:
            first = await many.leader()
            (other,) = many.others(first)
            await asyncio.sleep(1)
            missed: list[float] = []
            around = other.node.cluster
            assert around is not None
            around.on_no_leader = lambda: missed.append(now())
            assert isinstance(other.data.control, CutJournal)
            other.data.silence_s = other.data.control.silence_s = 15.0
            other.cut()
            cut_at = now()
            await asyncio.sleep(2.0 + 0.2 + NO_LEADER_S + 0.5)
            assert around.is_leaderless and len(missed) == 1
            assert missed[0] - cut_at > NO_LEADER_S
            other.cut(False)
            await asyncio.sleep(15)
            assert not around.is_leaderless and len(missed) == 1

    run(main)


def test_leases_live_on_under_the_next_leader_with_their_full_time() -> None:
    async def main() -> None:
        async with cluster() as many:
            first = await many.leader()
            await first.grant(7, 10)
            await first.put(b"k", lease=7)
            await asyncio.sleep(8)
            many.kill(first)
            second = await many.leader()
            await asyncio.sleep(7)
            assert (await second.get(b"k")).response.count == 1
            await asyncio.sleep(5)
            assert (await second.get(b"k")).response.count == 0
            assert len(await many.hashes()) == 1

    run(main)


def test_leases_live_on_where_the_lead_was_lost_for_a_while() -> None:
    """Nobody could keep them alive meanwhile; in etcd a new leader would give them that."""

    async def main() -> None:
        async with cluster() as many:
            first = await many.leader()
            await first.grant(7, 6)
            await first.put(b"k", lease=7)
            for one in many.nodes.values():
                one.cut()
            await asyncio.sleep(9)
            for one in many.nodes.values():
                one.cut(False)
            assert (await many.leader()) is first and first.node.state.term == 1
            await asyncio.sleep(5)
            assert (await first.get(b"k")).response.count == 1
            await asyncio.sleep(2)
            assert (await first.get(b"k")).response.count == 0

    run(main)


def test_a_node_that_leads_no_more_has_no_alarm_of_its_own() -> None:
    """What is full it hears from the leader, who looks whether there is room again."""

    async def main() -> None:
        async with cluster() as many:
            first = await many.leader()
            await asyncio.sleep(2)
            proposer = first.node.proposer
            shard = first.node.state.store.shard_of(b"k")
            shard.budget_bytes = 1500
            first.put(b"k", b"x" * 1000)
            assert (await first.put(b"l", b"x" * 1000)).code is Code.RESOURCE_EXHAUSTED
            proposer.disk_is_full = True
            assert [kind for _, kind in first.node.alarms()] == [pb.NOSPACE]
            await move(first, many.others(first)[0])
            assert not first.node.alarms()

    run(main)


def test_leases_are_kept_alive_by_the_leader_alone() -> None:
    """A node that led renews nothing for the next leader, who would let the lease end."""

    async def main() -> None:
        async with cluster() as many:
            first = await many.leader()
            await first.grant(7, 10)
            stream = first.led_keep_alive()
            stream.say(pb.LeaseKeepAliveRequest(ID=7))
            assert stream.messages[-1].TTL == 10
            await asyncio.sleep(1)
            await move(first, many.others(first)[0])
            stream.say(pb.LeaseKeepAliveRequest(ID=7))
            assert stream.closed == (Code.UNAVAILABLE, "etcdserver: leader changed")
            assert len(stream.messages) == 1

    run(main)


def test_a_huge_delete_is_repeated_alike_on_followers() -> None:
    """R13, and compaction after it (I5)."""

    async def main() -> None:
        async with cluster() as many:
            first = await many.leader()
            for start in range(0, 2500, 100):
                request = pb.TxnRequest(
                    success=[put_op(b"a/%06d" % n, b"v") for n in range(start, start + 100)]
                )
                await first.call(KV + "Txn", request)
            await first.grant(9)
            await first.put(b"b/leased", lease=9)
            deleted = await first.delete(b"a/", b"a0")
            assert deleted.response.deleted == 2500
            await first.revoke(9)
            await first.compact(first.revision - 1)
            assert len(await many.hashes()) == 1
            for one in many.others(first):
                request = range_request(b"\0", range_end=b"\0", serializable=True)
                assert (await one.call(KV + "Range", request)).response.count == 0

    run(main)


def test_a_node_that_fell_behind_what_is_kept_says_so() -> None:
    async def main() -> None:
        async with cluster() as many:
            first = await many.leader()
            behind, _ = many.others(first)
            behind.cut()
            for number in range(50):
                await first.put(b"k", b"%d" % number)
            many.storage.trim(40)
            behind.cut(False)
            await first.put(b"k", b"more")
            failure: Any = await behind.node.failed
            assert type(failure).__name__ == "Trimmed"
            many.kill(behind)

    run(main)


def test_an_empty_node_starts_from_a_snapshot_and_what_came_after() -> None:
    async def main() -> None:
        async with cluster(2) as many:
            first = await many.leader()
            for number in range(50):
                await first.put(b"k%d" % number)
            first.node.start_snapshot()
            while not first.node.snapshotter.taken:
                await asyncio.sleep(0.01)
            many.storage.trim(first.node.snapshot_sequence + 1)
            await first.put(b"after")
            await many.start("c")
            assert len(await many.hashes()) == 1

    run(main)


# -- negative controls: without the fence, or without durability, these checks must fail -----


async def _loses_a_write(many: Many, first: One) -> bool:
    """A leader that was cut off while it wrote: is anything lost that was acknowledged?"""
    await first.put(b"k", b"old")
    first.cut()
    lost = first.put(b"k", b"late")
    while first.node.leads():
        await asyncio.sleep(0.01)
    second = await many.leader()
    acked = [(b"k", b"new", (await second.put(b"k", b"new")).response.header.revision)]
    first.cut(False)
    await lost
    if lost.code is Code.OK:
        acked.append((b"k", b"late", lost.response.header.revision))
    await asyncio.sleep(3)
    revisions = [revision for _, _, revision in acked]
    if len(set(revisions)) < len(revisions):
        return True
    if any(one.node.failed.done() for one in many.nodes.values()):
        return True
    leader = await many.leader()
    latest = max(acked, key=lambda write: write[2])
    return (await leader.get(latest[0])).response.kvs[0].value != latest[1]


@pytest.mark.parametrize("fenced", [True, False])
def test_the_fence_is_what_keeps_a_late_write_out(fenced: bool) -> None:
    """I6."""

    async def main() -> None:
        async with cluster() as many:
            first = await many.leader()
            first.data.fenced = fenced
            assert await _loses_a_write(many, first) == (not fenced)
            if not fenced:
                for one in list(many.nodes.values()):
                    many.kill(one)

    run(main)


@pytest.mark.parametrize("durable", [True, False])
def test_an_answer_before_durability_loses_writes(durable: bool) -> None:
    """I1."""

    async def main() -> None:
        async with cluster() as many:
            first = await many.leader()
            first.data.durable = durable
            call = await first.put(b"k", b"v")
            assert call.code is Code.OK
            many.kill(first)
            second = await many.leader()
            found = (await second.get(b"k")).response.count
            assert found == (1 if durable else 0)

    run(main)


def test_two_that_write_at_once_agree_on_one_order() -> None:
    """A transaction at a follower compares with what the leader has."""

    async def main() -> None:
        async with cluster() as many:
            await many.leader()
            request = pb.TxnRequest(compare=[mod_is(b"k", 0)], success=[put_op(b"k", b"v")])
            calls = [one.call(KV + "Txn", request) for one in many.nodes.values()]
            succeeded = [(await call).response.succeeded for call in calls]
            assert sorted(succeeded) == [False, False, True]

    run(main)
