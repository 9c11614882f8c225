"""From request to journal: order, overlay, drains, bounds and time limits (R3, R4, R12, I8)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from kvstore.node import proposer as proposer_module
from kvstore.node.operation import Draft, Operation
from kvstore.pb import rpc_pb2 as pb
from kvstore.transport.seam import Code
from partitioner.table import parse
from tests.unit.node.world import (
    FakeCall,
    World,
    delete_op,
    get_op,
    mod_is,
    put_op,
    run,
    settle,
    start,
    txn_op,
    world,
)

TIMEOUT = (Code.UNAVAILABLE, "etcdserver: request timed out")
TOO_MANY = (Code.RESOURCE_EXHAUSTED, "etcdserver: too many requests")
TOO_LARGE = (Code.INVALID_ARGUMENT, "etcdserver: request is too large")
STOPPED = (Code.UNAVAILABLE, "etcdserver: server stopped")
LEASE_NOT_FOUND = (Code.NOT_FOUND, "etcdserver: requested lease not found")


async def held(w: World) -> FakeCall:
    """A put that stays in flight."""
    w.journal.hold()
    call = w.put(b"held", b"1")
    await w.journal.in_flight(1)
    return call


# -- R3: no early answer ---------------------------------------------------------------------

EARLY: dict[str, Any] = {
    "failed compare": lambda w: w.txn([mod_is(b"held", 0)], [put_op(b"x")]),
    "failed compare with else": lambda w: w.txn(
        [mod_is(b"held", 0)], [put_op(b"x")], [get_op(b"held")]
    ),
    "prev_kv": lambda w: w.put(b"held", b"2", prev_kv=True),
    "delete of nothing": lambda w: w.delete(b"nothing"),
    "lease not found": lambda w: w.put(b"x", lease=77),
    "ignore_value on nothing": lambda w: w.put(b"nothing", ignore_value=True),
    "grant of a lease that exists": lambda w: w.grant(5),
}


@pytest.mark.parametrize("name", EARLY)
def test_what_saw_a_write_in_flight_is_answered_behind_it(name: str) -> None:
    async def main() -> None:
        async with world() as w:
            await w.grant(5)
            put = await held(w)
            call = EARLY[name](w)
            order: list[str] = []
            put_done = asyncio.ensure_future(_note(order, "put", put))
            call_done = asyncio.ensure_future(_note(order, "call", call))
            await asyncio.sleep(1)
            assert order == []
            w.journal.release()
            await asyncio.gather(put_done, call_done)
            assert order == ["put", "call"]

    run(main)


@pytest.mark.parametrize("name", EARLY)
def test_what_saw_a_write_in_flight_fails_with_it(name: str) -> None:
    async def main() -> None:
        async with world() as w:
            await w.grant(5)
            w.journal.fail_next(OSError("gone"))
            put = await held(w)
            call = EARLY[name](w)
            await settle()
            assert not call.done
            w.journal.release()
            assert (await put).error == (await call).error == STOPPED

    run(main)


@pytest.mark.parametrize("name", [n for n in EARLY if n not in ("prev_kv", "failed compare")])
def test_with_nothing_in_flight_it_is_answered_at_once(name: str) -> None:
    async def main() -> None:
        async with world() as w:
            await w.grant(5)
            await w.put(b"held")
            w.journal.hold()
            assert EARLY[name](w).done

    run(main)


async def _note(order: list[str], name: str, call: FakeCall) -> None:
    await call
    order.append(name)


def test_reads_do_not_see_what_is_in_flight() -> None:
    """I2: neither keys nor leases nor revisions of writes that may still fail."""

    async def main() -> None:
        async with world() as w:
            before = w.revision
            put = await held(w)
            grant = w.grant(9)
            read = w.get(b"held").response
            assert (read.count, read.header.revision) == (0, before)
            assert w.time_to_live(9).response.TTL == -1
            assert w.txn([mod_is(b"held", 0)], [], [get_op(b"held")]).response.succeeded
            w.journal.release()
            await put
            await grant
            assert w.get(b"held").response.count == 1
            assert w.time_to_live(9).response.TTL > 0

    run(main)


def test_a_lease_in_flight_can_be_used_and_not_granted_again() -> None:
    async def main() -> None:
        async with world() as w:
            await held(w)
            grant = w.grant(9)
            put = w.put(b"a/1", lease=9)
            again = w.grant(9)
            w.journal.release()
            await grant
            await put
            assert (await again).error == (
                Code.FAILED_PRECONDITION,
                "etcdserver: lease already exists",
            )
            ttl = await w.time_to_live(9, keys=True)
            assert ttl.response.keys == [b"a/1"]

    run(main)


# -- R4: points overlay, the rest drains -----------------------------------------------------

DRAINS: dict[str, Any] = {
    "range delete": lambda w: w.delete(b"a/", b"a0"),
    "range compare": lambda w: w.txn([mod_is(b"zz/", 0, range_end=b"zz0")], [put_op(b"x")]),
    "range in a transaction": lambda w: w.txn(success=[put_op(b"x"), get_op(b"a/", b"a0")]),
    "old revision in a transaction": lambda w: w.txn(
        success=[put_op(b"x"), get_op(b"held", revision=1)]
    ),
    "range delete in a transaction": lambda w: w.txn(success=[delete_op(b"a/", b"a0")]),
    "revoke": lambda w: w.revoke(5),
    "compact": lambda w: w.compact(1),
}


@pytest.mark.parametrize("name", DRAINS)
def test_an_operation_on_more_than_points_waits_and_holds(name: str) -> None:
    async def main() -> None:
        async with world() as w:
            await w.grant(5)
            await w.put(b"a/1", b"x", lease=5)
            entries = w.storage.tail
            put = await held(w)
            point = w.put(b"b/1")  # shares the next append
            drains = DRAINS[name](w)
            later = w.put(b"a/2")
            await asyncio.sleep(1)
            assert not (drains.done or later.done)

            w.journal.release(1)
            await put
            await settle(20)
            assert not (point.done or drains.done or later.done)
            w.journal.release(1)
            await point
            await settle(20)
            assert not later.done, "held until the effects stand"
            assert w.storage.tail == entries + 2
            w.journal.release(1)
            await drains
            await settle(20)
            assert not later.done
            w.journal.release(1)
            await later
            assert w.storage.tail == entries + 4
            assert drains.code == Code.OK

    run(main)


def test_a_drained_operation_sees_the_writes_before_it_and_none_after() -> None:
    async def main() -> None:
        async with world() as w:
            await held(w)
            w.put(b"a/1", b"1")
            drains = w.delete(b"a/", b"a0", prev_kv=True)
            w.put(b"a/2", b"2")
            w.journal.release()
            assert [kv.key for kv in (await drains).response.prev_kvs] == [b"a/1"]
            await w.put(b"end")
            assert [kv.key for kv in w.get(b"a/", b"a0").response.kvs] == [b"a/2"]

    run(main)


def test_a_drained_operation_that_changes_nothing_lets_the_queue_go_on_at_once() -> None:
    async def main() -> None:
        async with world() as w:
            put = await held(w)
            nothing = w.delete(b"zz/", b"zz0")
            later = w.put(b"later")
            w.journal.release(1)
            await put
            await nothing
            await w.journal.in_flight(1)
            assert nothing.response.header.revision == w.revision
            w.journal.release()
            await later

    run(main)


def test_draining_operations_in_a_row_each_see_the_one_before() -> None:
    async def main() -> None:
        async with world() as w:
            await w.put(b"a/1")
            await held(w)
            first = w.delete(b"a/", b"a0")
            second = w.delete(b"a/", b"a0")
            third = w.txn([mod_is(b"a/", 0, range_end=b"a0")], [put_op(b"a/3")])
            w.journal.release()
            assert (await first).response.deleted == 1
            assert (await second).response.deleted == 0
            assert (await third).response.succeeded

    run(main)


def test_points_in_one_batch_build_on_each_other() -> None:
    """Versions, previous values and compares follow the order of requests, one append for all."""

    async def main() -> None:
        async with world() as w:
            await held(w)
            entries = w.storage.tail
            puts = [w.put(b"k", b"%d" % n, prev_kv=True) for n in range(50)]
            delete = w.delete(b"k", prev_kv=True)
            again = w.put(b"k", b"new", prev_kv=True)
            w.journal.release()
            await again
            assert w.storage.tail == entries + 2, "group commit"
            revisions = [put.response.header.revision for put in puts]
            assert revisions == list(range(revisions[0], revisions[0] + 50)), "I3"
            assert not puts[0].response.HasField("prev_kv")
            assert [p.response.prev_kv.version for p in puts[1:]] == list(range(1, 50))
            assert delete.response.prev_kvs[0].version == 50
            assert not again.response.HasField("prev_kv")
            kv = w.get(b"k").response.kvs[0]
            assert (kv.version, kv.create_revision) == (1, revisions[-1] + 2)

    run(main)


# -- R12: proposed is irrevocable ------------------------------------------------------------


def test_cancelled_before_it_is_proposed_is_dropped_and_after_is_not() -> None:
    async def main() -> None:
        async with world() as w:
            await held(w)
            proposed = w.put(b"proposed")
            drains = w.delete(b"x/", b"x0")
            waiting = w.put(b"waiting")
            other = w.put(b"other")
            proposed.cancelled = waiting.cancelled = True
            w.journal.release()
            await other
            await drains
            assert w.get(b"proposed").response.count == 1
            assert w.get(b"waiting").response.count == 0
            assert not waiting.done

    run(main)


def test_after_seven_seconds_everything_that_hangs_is_answered() -> None:
    """In flight, in the batch that fills, and waiting: each by its own time. It stays in flight."""

    async def main() -> None:
        async with world() as w:
            put = await held(w)
            in_open_batch = w.put(b"open")
            await asyncio.sleep(3)
            behind = w.txn([mod_is(b"open", 0)], [put_op(b"x")])
            drains = w.delete(b"x/", b"x0")
            waiting = w.put(b"waiting")
            await asyncio.sleep(3.9)
            assert not put.done
            await asyncio.sleep(0.4)
            assert put.error == in_open_batch.error == TIMEOUT
            assert not (behind.done or drains.done or waiting.done)
            await asyncio.sleep(2.5)
            assert not (behind.done or drains.done or waiting.done)
            await asyncio.sleep(0.5)
            assert behind.error == drains.error == waiting.error == TIMEOUT
            w.journal.release()
            await w.put(b"end")
            assert w.get(b"held").response.count == 1
            assert w.get(b"open").response.count == 1
            assert w.get(b"waiting").response.count == 0

    run(main)


def test_what_waits_behind_an_expired_drain_goes_on() -> None:
    async def main() -> None:
        async with world() as w:
            await held(w)
            w.delete(b"x/", b"x0")
            await asyncio.sleep(3)
            waiting = w.put(b"waiting")
            await asyncio.sleep(5)  # the delete has expired, the put has not
            assert not waiting.done
            w.journal.release()
            assert (await waiting).code == Code.OK

    run(main)


# -- I8: bounds ------------------------------------------------------------------------------


def test_bytes_in_flight_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proposer_module, "BYTES_IN_FLIGHT_MAX", 100_000)

    async def main() -> None:
        async with world() as w:
            await held(w)
            calls = [w.put(b"k%d" % n, b"x" * 10_000) for n in range(30)]
            await settle()
            refused = [call for call in calls if call.done]
            assert len(refused) == 20
            assert {call.error for call in refused} == {TOO_MANY}
            w.journal.release()
            assert (await calls[0]).code == Code.OK
            assert (await w.put(b"again", b"x" * 10_000)).code == Code.OK

    run(main)


def test_bytes_that_wait_behind_a_drain_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proposer_module, "BYTES_IN_FLIGHT_MAX", 100_000)

    async def main() -> None:
        async with world() as w:
            await held(w)
            w.delete(b"a/", b"a0")
            calls = [w.put(b"k%d" % n, b"x" * 10_000) for n in range(30)]
            assert sum(call.done for call in calls) == 20
            w.journal.release()
            await calls[0]
            await w.put(b"end")
            assert (await w.put(b"again", b"x" * 10_000)).code == Code.OK

    run(main)


def test_answers_that_wait_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small requests with long answers behind a hanging journal."""
    monkeypatch.setattr(proposer_module, "BYTES_IN_FLIGHT_MAX", 100_000)

    async def main() -> None:
        async with world() as w:
            await w.put(b"big", b"x" * 10_000)
            await held(w)
            calls = [
                w.txn([mod_is(b"held", 0)], [put_op(b"x")], [get_op(b"big")]) for _ in range(30)
            ]
            assert {call.error for call in calls if call.done} == {TOO_MANY}
            assert sum(call.done for call in calls) == 20
            w.journal.release()
            await calls[0]
            assert (await w.put(b"again", b"x" * 10_000)).code == Code.OK

    run(main)


def test_operations_that_wait_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proposer_module, "OPERATIONS_WAITING_MAX", 10)

    async def main() -> None:
        async with world() as w:
            await held(w)
            drains = w.delete(b"a/", b"a0")
            calls = [w.put(b"k%d" % n) for n in range(20)]
            assert sum(call.done for call in calls) == 11
            w.journal.release()
            await drains
            await calls[0]

    run(main)


def test_a_batch_is_closed_before_it_is_too_long_for_the_journal() -> None:
    """A burst during one slow append used to make a batch that no journal takes."""

    async def main() -> None:
        async with world(max_batch_bytes=100_000) as w:
            await held(w)
            calls = [w.put(b"k%02d" % n, b"x" * 30_000) for n in range(20)]
            drains = w.delete(b"k00", b"k05")
            last = w.put(b"last")
            w.journal.release()
            await last
            assert drains.response.deleted == 5
            revisions = [call.response.header.revision for call in calls]
            assert revisions == list(range(revisions[0], revisions[0] + 20))
            assert max(map(len, w.storage.payloads)) <= 100_000
            assert [kv.mod_revision for kv in w.get(b"k", b"l").response.kvs] == revisions[5:]

    run(main)


@pytest.mark.parametrize("in_flight", [False, True])
def test_effects_that_fit_into_no_batch_are_refused(in_flight: bool) -> None:
    async def main() -> None:
        async with world(max_batch_bytes=10_000) as w:
            for n in range(400):
                await w.put(b"a/%0100d" % n)
            if in_flight:
                w.journal.hold()
            before = w.put(b"before")
            big = w.put(b"big", b"x" * 20_000)
            # Refused for its effects, which are deletions: the request itself is small.
            many = w.txn(success=[delete_op(b"a/", b"a0")])
            after = w.put(b"after")
            await settle()
            w.journal.release()
            await after
            await before
            assert (await big).error == (await many).error == TOO_LARGE
            assert w.get(b"a/", b"a0", count_only=True).response.count == 400

    run(main)


class _Broken(Operation):
    """An operation with a bug."""

    def __init__(self, *, drains: bool, answers: bool) -> None:
        self.drains = drains
        self.answers = answers
        self.error: Exception | None = None

    def evaluate(self, draft: Draft) -> bytes:
        if self.answers:
            draft.view.put(b"broken", b"", 0)
            return b""
        draft.view.put(b"never", b"", 0)
        raise ZeroDivisionError

    def succeed(self, response: bytes) -> None:
        raise ZeroDivisionError

    def fail(self, error: Exception) -> None:
        self.error = error


@pytest.mark.parametrize("drains", [False, True])
@pytest.mark.parametrize("answers", [False, True])
def test_a_request_that_breaks_breaks_nothing_else(drains: bool, answers: bool) -> None:
    async def main() -> None:
        async with world() as w:
            await held(w)
            blocker = w.delete(b"x/", b"x0")
            broken = _Broken(drains=drains, answers=answers)
            w.node.proposer.submit(broken)
            after = w.put(b"after")
            w.journal.release()
            await blocker
            await after
            assert (await w.put(b"k")).code == Code.OK
            assert w.get(b"never").response.count == 0
            assert isinstance(broken.error, ZeroDivisionError) != answers
            assert not w.node.failed.done()

    run(main)


def test_a_long_queue_is_proposed_in_order_and_in_slices() -> None:
    async def main() -> None:
        async with world() as w:
            await held(w)
            blocker = w.delete(b"x/", b"x0")
            calls = [w.put(b"k", b"%d" % n) for n in range(500)]
            w.journal.release()
            await blocker
            revisions = [(await call).response.header.revision for call in calls]
            assert revisions == list(range(revisions[0], revisions[0] + 500))
            assert w.get(b"k").response.kvs[0].value == b"499"

    run(main)


# -- space -----------------------------------------------------------------------------------


def test_a_full_disk_refuses_writes_and_lets_deletes_through() -> None:
    async def main() -> None:
        async with world() as w:
            await w.put(b"a/1")
            w.journal.full = True
            assert (await w.put(b"a/2")).error == FULL
            assert (await w.delete(b"a/1")).response.deleted == 1
            assert (await w.compact(w.revision)).code == Code.OK
            assert alarms(w) == [pb.NOSPACE]
            w.journal.full = False
            await asyncio.sleep(1)
            assert (await w.put(b"a/2")).code == Code.OK

    run(main)


BUDGET = """
[[shard]]
name = "a"
prefixes = ["a/"]
budget-bytes = 20000
[[shard]]
name = "default"
"""
FULL = (Code.RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded")


def alarms(w: World) -> list[int]:
    answer = w.call("/etcdserverpb.Maintenance/Alarm", pb.AlarmRequest()).response
    return [alarm.alarm for alarm in answer.alarms]


def test_a_budget_counts_what_is_in_flight() -> None:
    """Many puts at once do not get further than one after the other."""

    async def main() -> None:
        async with world(split=parse(BUDGET)) as w:
            shard = w.node.state.store.shards[0]
            calls = [w.put(b"a/%d" % number, b"x" * 500) for number in range(100)]
            for call in calls:
                await call
            taken = [call for call in calls if call.code == Code.OK]
            size = shard.size_bytes // len(taken)
            assert 20000 - size < shard.size_bytes <= 20000
            assert {call.error for call in calls if call not in taken} == {FULL}

    run(main)


def test_a_budget_counts_all_of_a_transaction() -> None:
    async def main() -> None:
        async with world(split=parse(BUDGET)) as w:
            puts = [put_op(b"a/%d" % number, b"x" * 500) for number in range(40)]
            assert (await w.txn(success=puts)).error == FULL
            assert not w.get(b"a/", b"a0", count_only=True).response.count
            elsewhere = [put_op(b"c/%d" % number, b"x" * 500) for number in range(40)]
            assert (await w.txn(success=[*puts[:5], *elsewhere])).code == Code.OK

    run(main)


def test_a_shard_without_room_is_an_alarm_that_stops_no_other() -> None:
    async def main() -> None:
        async with world(split=parse(BUDGET)) as w:
            assert (await w.put(b"a/1", b"x" * 15000)).code == Code.OK
            assert not alarms(w)
            assert (await w.put(b"a/2", b"x" * 15000)).error == FULL
            assert alarms(w) == [pb.NOSPACE]
            assert (await w.put(b"b/1", b"x" * 15000)).code == Code.OK
            assert (await w.grant(1)).code == Code.OK
            assert (await w.delete(b"a/1")).response.deleted == 1
            assert (await w.put(b"a/2", b"x" * 15000)).error == FULL
            await asyncio.sleep(1)
            assert alarms(w) == [pb.NOSPACE]
            # What was deleted at the compacted revision itself would stay (R8).
            assert (await w.put(b"b/1")).code == Code.OK
            assert (await w.compact(w.revision, physical=True)).code == Code.OK
            await asyncio.sleep(1)
            assert not alarms(w)
            assert (await w.put(b"a/2", b"x" * 15000)).code == Code.OK

    run(main)


def test_no_lease_expires_while_the_data_are_said_to_be_corrupt() -> None:
    """etcd refuses the revocation, too; what is due goes when the alarm does."""

    async def main() -> None:
        async with world() as w:
            request = {"memberID": 5, "alarm": pb.CORRUPT}
            alarm = "/etcdserverpb.Maintenance/Alarm"
            await w.grant(1, ttl_s=5)
            await w.put(b"a/1", lease=1)
            await w.call(alarm, pb.AlarmRequest(action=pb.AlarmRequest.ACTIVATE, **request))
            await asyncio.sleep(20)
            assert w.get(b"a/1").response.count == 1
            assert not w.node.leases_expired
            await w.call(alarm, pb.AlarmRequest(action=pb.AlarmRequest.DEACTIVATE, **request))
            await asyncio.sleep(2)
            assert not w.get(b"a/1").response.count
            assert w.node.leases_expired == 1

    run(main)


def test_a_refused_append_leaves_no_trace() -> None:
    """NoSpace from append: overlay, leases and revisions of what was in flight are gone."""

    async def main() -> None:
        from journal.contract import NoSpace

        async with world() as w:
            before = w.revision
            w.journal.fail_next(NoSpace("full"))
            put = await held(w)
            grant = w.grant(9)
            drains = w.delete(b"held", b"i")
            w.journal.release()
            full = (Code.RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded")
            assert (await put).error == (await grant).error == full
            assert (await drains).response.deleted == 0
            assert (await w.put(b"k", lease=9)).error == LEASE_NOT_FOUND
            assert (await w.put(b"k", prev_kv=True)).response.header.revision == before + 1

    run(main)


@pytest.mark.parametrize("in_flight", [False, True])
def test_a_transaction_of_very_many_single_keys_is_one_of_others(in_flight: bool) -> None:
    """Nested ones may hold thousands of puts, which are no reason to wait for others (R4)."""

    async def main() -> None:
        async with world() as w:
            nested = [
                txn_op(success=[put_op(b"k%02d-%03d" % (n, m)) for m in range(100)])
                for n in range(25)
            ]
            if in_flight:
                await held(w)
                w.put(b"first")
            many = w.txn(success=nested)
            seen = [w.put(key, prev_kv=True) for key in (b"k00-000", b"k12-050", b"k24-099")]
            last = w.put(b"last")
            w.journal.release()
            await last
            revision = many.response.header.revision
            assert [call.response.prev_kv.mod_revision for call in seen] == [revision] * 3
            assert w.get(b"k", b"l", count_only=True).response.count == 2500
            again = await start(w.storage)
            assert (await again.hash_kv()).response.hash == (await w.hash_kv()).response.hash
            await again.node.close()

    run(main)
