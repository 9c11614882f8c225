"""Bad answers of the journal: unknown, conflict, poison, and what is made of them (R5, I10)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from journal.contract import Conflict, Corrupt, JournalError, NoSpace, Poisoned, Unknown
from kvstore.node import records
from kvstore.transport.seam import Code
from tests.unit.node.world import World, mod_is, put_op, run, settle, start, world

STOPPED = (Code.UNAVAILABLE, "etcdserver: server stopped")


class Attempts:
    """Records what is appended, and where the tail was believed to be."""

    def __init__(self, w: World) -> None:
        self.seen: list[tuple[bytes, int]] = []
        inner = w.journal.append

        async def append(parts: Any, expected_tail: int) -> int:
            self.seen.append((b"".join(parts), expected_tail))
            return await inner(parts, expected_tail)

        w.journal.append = append  # type: ignore[method-assign]


@pytest.mark.parametrize("unknowns", [1, 3])
@pytest.mark.parametrize("applied", [False, True])
def test_unknown_is_retried_byte_for_byte(unknowns: int, applied: bool) -> None:
    """Lost or taken: the same bytes at the same tail, until it is known; one entry in the end."""

    async def main() -> None:
        async with world() as w:
            tail = w.storage.tail
            attempts = Attempts(w)
            for n in range(unknowns):
                w.journal.fail_next(Unknown("?"), applied=applied and n == 0)
            call = await w.put(b"k", b"v")
            assert call.response.header.revision == w.revision
            assert len(attempts.seen) == unknowns + 1
            assert len(set(attempts.seen)) == 1
            assert w.storage.tail == tail + 1
            assert (await w.put(b"k2")).code == Code.OK

    run(main)


def test_what_is_proposed_meanwhile_waits_for_the_outcome() -> None:
    async def main() -> None:
        async with world() as w:
            w.journal.fail_next(Unknown("?"))
            first = w.put(b"k", b"1")
            await settle(20)
            second = w.put(b"k", b"2", prev_kv=True)
            assert not first.done
            assert (await second).response.prev_kv.value == b"1"
            assert first.response.header.revision + 1 == second.response.header.revision

    run(main)


def test_an_outcome_that_stays_unknown_ends_the_term() -> None:
    async def main() -> None:
        async with world() as w:
            for _ in range(20):
                w.journal.fail_next(Unknown("?"))
            revision = w.revision
            put = w.put(b"k")
            behind = w.txn([mod_is(b"k", 0)], [put_op(b"x")])
            drains = w.delete(b"a/", b"a0")
            assert (await put).error == (await behind).error == (await drains).error == STOPPED
            assert isinstance(await w.node.failed, Unknown)
            assert w.revision == revision
            assert (await w.put(b"later")).error == STOPPED
            assert w.get(b"k").response.count == 0

    run(main)


def test_a_foreign_record_in_the_place_of_ones_own_ends_the_term() -> None:
    async def main() -> None:
        async with world() as w:
            foreign = records.record_part(records.term(9, 9, 9))
            tail = w.storage.tail
            w.journal.fail_next(Unknown("?"))
            put = w.put(b"k")
            await settle(20)
            w.storage.append(foreign, tail)
            assert (await put).error == STOPPED
            assert isinstance(await w.node.failed, Conflict)
            assert w.storage.payloads[-1] == foreign, "I6"

    run(main)


def test_a_conflict_at_the_first_try_ends_the_term() -> None:
    """Even when the record there has the same bytes: it is not ours (I6)."""

    async def main() -> None:
        async with world() as w:
            w.journal.hold()
            put = w.put(b"k")
            await w.journal.in_flight(1)
            attempts = Attempts(w)
            w.storage.append(b"anything", w.storage.tail)
            w.journal.release()
            assert (await put).error == STOPPED
            assert isinstance(await w.node.failed, Conflict)
            assert attempts.seen == []

    run(main)


def test_no_space_after_an_unknown_outcome_is_no_outcome() -> None:
    """I7: the first try may have been taken all the same."""

    async def main() -> None:
        async with world() as w:
            tail = w.storage.tail
            w.journal.fail_next(Unknown("?"), applied=True)
            w.journal.fail_next(NoSpace("full"))
            put = await w.put(b"k")
            assert put.code == Code.OK
            assert w.storage.tail == tail + 1
            assert w.get(b"k").response.count == 1

            w.journal.fail_next(Unknown("?"))
            w.journal.fail_next(NoSpace("full"))
            assert (await w.put(b"k2")).code == Code.OK
            assert w.storage.tail == tail + 2

            w.journal.fail_next(Unknown("?"))
            for _ in range(20):
                w.journal.fail_next(NoSpace("full"))
            assert (await w.put(b"k3")).error == STOPPED
            await w.node.failed

    run(main)


FAILURES = [Poisoned("EIO"), OSError(5, "EIO"), ValueError("bug"), KeyError("bug")]


@pytest.mark.parametrize("failure", FAILURES, ids=lambda f: type(f).__name__)
def test_a_failed_append_stops_all_writes_at_once(failure: Exception) -> None:
    """I10: in flight, filling, waiting and to come; and nothing of it becomes visible."""

    async def main() -> None:
        async with world() as w:
            await w.put(b"old", b"1")
            w.journal.fail_next(failure)
            w.journal.hold()
            revision = w.revision
            calls = [w.put(b"k1")]
            await w.journal.in_flight(1)
            calls += [w.put(b"k2"), w.grant(7), w.delete(b"a/", b"a0"), w.put(b"k3")]
            await settle()
            assert not any(call.done for call in calls)
            w.journal.release()
            for call in calls:
                assert (await call).error == STOPPED
            assert await w.node.failed is failure
            assert w.put(b"k4").error == STOPPED
            assert w.revoke(7).error == STOPPED
            assert w.revision == revision
            assert w.get(b"\x00", b"\x00").response.count == 1
            assert w.time_to_live(7).response.TTL == -1

    run(main)


@pytest.mark.parametrize("drains", [False, True])
def test_a_journal_that_fails_outside_an_append_stops_writes(drains: bool) -> None:
    """`reserve` says that it is poisoned: there will be no append that could find out."""

    async def main() -> None:
        async with world() as w:
            await w.put(b"a/1")
            w.journal._poison = Poisoned("background sync")
            call = w.delete(b"a/", b"a0") if drains else w.put(b"k")
            assert (await call).error == STOPPED
            assert isinstance(await w.node.failed, Poisoned)
            assert w.put(b"k4").error == STOPPED

    run(main)


def test_the_clock_finds_a_full_disk_that_turned_bad() -> None:
    async def main() -> None:
        async with world() as w:
            w.journal.full = True
            await w.put(b"k")
            w.journal._poison = Poisoned("background sync")
            assert isinstance(await w.node.failed, Poisoned)

    run(main)


def test_a_batch_that_cannot_be_applied_stops_writes() -> None:
    async def main() -> None:
        async with world() as w:

            def broken(*_: Any) -> None:
                raise RuntimeError("bug")

            w.node.state.link = broken  # type: ignore[method-assign]
            assert (await w.put(b"k")).error == STOPPED
            assert isinstance(await w.node.failed, RuntimeError)
            assert w.put(b"k2").error == STOPPED

    run(main)


def test_everything_that_waits_shares_one_append() -> None:
    async def main() -> None:
        async with world() as w:
            attempts = Attempts(w)
            calls = [w.put(b"k%03d" % n) for n in range(300)]
            await calls[-1]
            assert len(attempts.seen) == 1
            w.journal.hold()
            w.put(b"first")
            await w.journal.in_flight(1)
            calls = [w.put(b"k%03d" % n) for n in range(300)]
            w.journal.release()
            await calls[-1]
            assert len(attempts.seen) == 3

    run(main)


def test_a_write_is_durable_before_it_is_answered_and_survives() -> None:
    """I1: answered late, it is in the journal; a node that opens it has it."""

    async def main() -> None:
        w = await start()
        w.journal.answer_late()
        put = w.put(b"k", b"v")
        await w.journal.in_flight(1)
        await settle()
        assert not put.done
        assert w.get(b"k").response.count == 0, "durable, but not committed for all we know"
        again = await start(w.storage)
        assert again.get(b"k").response.kvs[0].value == b"v"
        # The first node has been fenced: its next write must find out (I6).
        w.journal.release()
        await put
        assert (await w.put(b"k2")).error == STOPPED
        assert isinstance(await w.node.failed, Conflict)
        assert again.get(b"k2").response.count == 0
        await again.node.close()
        await w.node.close()

    run(main)


def test_closing_answers_what_is_in_flight_and_refuses_what_waits() -> None:
    async def main() -> None:
        w = await start()
        w.journal.hold()
        put = w.put(b"k")
        drains = w.delete(b"a/", b"a0")
        closing = asyncio.create_task(w.node.close())
        await asyncio.sleep(0.5)
        assert drains.error == STOPPED
        assert not put.done
        assert w.put(b"late").error == STOPPED
        w.journal.release()
        await closing
        assert put.code == Code.OK
        again = await start(w.storage)
        assert again.get(b"k").response.count == 1
        await again.node.close()

    run(main)


def test_closing_gives_up_on_a_journal_that_hangs() -> None:
    async def main() -> None:
        w = await start()
        w.journal.hold()
        w.put(b"k")
        await w.journal.in_flight(1)
        before = asyncio.get_running_loop().time()
        await w.node.close()
        assert asyncio.get_running_loop().time() - before < 20

    run(main)


def test_every_start_is_a_new_term() -> None:
    async def main() -> None:
        w = await start()
        first = (await w.put(b"k")).response.header
        await w.node.close()
        again = await start(w.storage)
        second = (await again.put(b"k")).response.header
        assert second.raft_term == first.raft_term + 1
        assert (second.cluster_id, second.member_id) == (first.cluster_id, first.member_id)
        await again.node.close()

    run(main)


def test_a_journal_that_cannot_be_read_stops_the_start() -> None:
    async def main() -> None:
        w = await start()
        await w.put(b"k")
        await w.node.close()
        w.storage.trim(3)
        with pytest.raises(Corrupt):
            await start(w.storage)
        assert issubclass(Corrupt, JournalError)

    run(main)
