"""Snapshots, trim, and what a start makes of them, sound or damaged (R9, I5, I10)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from journal.contract import Corrupt, NoSpace
from journal.memory import MemoryStorage
from kvstore.node.node import NodeOptions
from kvstore.node.recovery import snapshot_name, snapshot_sequence
from kvstore.pb import rpc_pb2 as pb
from tests.property.stepper import Stepper, small_slices
from tests.property.test_store import contents
from tests.unit.node.world import KV, FakeCall, World, put_op, run, settle, start, world


async def snapshot(w: World) -> None:
    w.node.start_snapshot()
    assert w.node._snapshot_task is not None
    await w.node._snapshot_task


def test_no_snapshot_is_taken_of_anothers_term() -> None:
    """R9: one that waits for a commit while the lead is lost has no sequence to be called after."""

    async def main() -> None:
        async with world() as w:
            await filled(w)
            w.node.appender.committing = True
            w.node.start_snapshot()
            task = w.node._snapshot_task
            assert task is not None
            await asyncio.sleep(0.1)
            w.node.appender.committing = w.node.is_leading = False
            await task
            assert not w.node.snapshotter.taken and not await w.journal.snapshots.list()
            w.node.is_leading = True
            await snapshot(w)
            assert w.node.snapshotter.taken == 1

    run(main)


async def everything(w: World) -> Any:
    response = w.get(b"\x00", b"\x00").response
    ttl = w.time_to_live(5, keys=True).response
    crc = (await w.hash_kv()).response.hash
    return response.kvs, response.header.revision, crc, ttl.grantedTTL, sorted(ttl.keys)


async def filled(w: World, rounds: int = 1) -> None:
    if not len(w.node.state.lessor):
        await w.grant(5, 70)
    for n in range(rounds):
        await w.put(b"a/%d" % n, b"x" * 100, lease=5 * (n % 2))
        await w.txn(success=[put_op(b"b/%d" % n), put_op(b"c"), put_op(b"a/shared")])
        await w.delete(b"b/%d" % n)


def damage(storage: MemoryStorage, name: str) -> None:
    """Reading this snapshot ends in Corrupt, as a file's does when a checksum does not fit."""
    chunks, created = storage.snapshots[name]
    storage.snapshots[name] = (chunks[:-1], created)


@pytest.fixture(autouse=True)
def damaged_ones_are_corrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory backend has no checksums: a snapshot that lost a chunk stands for a bad one."""
    from journal.memory import MemorySnapshots

    lengths: dict[str, int] = {}
    read = MemorySnapshots.read
    writing = MemorySnapshots._writing

    async def checked(self: MemorySnapshots, name: str) -> AsyncIterator[bytes]:
        async for chunk in read(self, name):
            yield chunk
        if len(self._storage.snapshots[name][0]) < lengths.get(name, 0):
            raise Corrupt(name, 0, "a frame is missing", "Remove it")

    def noting(self: MemorySnapshots, name: str) -> Any:
        from contextlib import asynccontextmanager

        @asynccontextmanager
        async def wrapped() -> AsyncIterator[Any]:
            async with writing(self, name) as writer:
                yield writer
            lengths[name] = len(self._storage.snapshots[name][0])

        return wrapped()

    monkeypatch.setattr(MemorySnapshots, "read", checked)
    monkeypatch.setattr(MemorySnapshots, "_writing", noting)


def names(storage: MemoryStorage) -> list[int | None]:
    return [snapshot_sequence(name) for name in sorted(storage.snapshots)]


def test_snapshots_are_named_by_their_sequence() -> None:
    assert snapshot_sequence(snapshot_name(12)) == 12
    assert [snapshot_sequence(n) for n in ("x", "snapshot-", "snapshot-x", "backup-12")] == [
        None
    ] * 4
    assert sorted(map(snapshot_name, (9, 10, 100))) == [*map(snapshot_name, (9, 10, 100))]


def test_two_snapshots_are_kept_and_the_journal_from_the_older_one_on() -> None:
    async def main() -> None:
        async with world() as w:
            sequences = []
            for _ in range(4):
                await filled(w, 2)
                sequences.append(w.node.appender.tail)
                await snapshot(w)
            assert names(w.storage) == sequences[-2:]
            assert w.storage.oldest == sequences[-2] + 1

    run(main)


def test_the_first_snapshot_trims_nothing() -> None:
    """There is no second one yet that could stand in for it."""

    async def main() -> None:
        async with world() as w:
            await filled(w)
            await snapshot(w)
            assert w.storage.oldest == 1

    run(main)


@pytest.mark.parametrize("damaged", [0, 1, 2])
def test_a_damaged_snapshot_is_stood_in_for_by_the_older_one(damaged: int) -> None:
    async def main() -> None:
        w = await start()
        for _ in range(3):
            await filled(w, 3)
            await snapshot(w)
        await filled(w)
        before = await everything(w)
        await w.node.close()
        for name in sorted(w.storage.snapshots, reverse=True)[:damaged]:
            damage(w.storage, name)
        if damaged == 2:
            with pytest.raises(Corrupt):
                await start(w.storage)
            return
        again = await start(w.storage)
        assert await everything(again) == before
        await again.node.close()

    run(main)


def test_with_the_whole_journal_no_snapshot_is_needed() -> None:
    async def main() -> None:
        w = await start()
        await filled(w, 3)
        await snapshot(w)
        before = await everything(w)
        await w.node.close()
        damage(w.storage, *w.storage.snapshots)
        again = await start(w.storage)
        assert await everything(again) == before
        await again.node.close()

    run(main)


def test_a_damaged_snapshot_counts_for_nothing_when_the_journal_is_trimmed() -> None:
    """After a start from the older one, the damaged newer one must not become the fallback."""

    async def main() -> None:
        w = await start()
        for _ in range(2):
            await filled(w, 3)
            await snapshot(w)
        good, bad = sorted(w.storage.snapshots)
        await w.node.close()
        damage(w.storage, bad)

        again = await start(w.storage)
        await filled(again, 3)
        await snapshot(again)
        assert good in w.storage.snapshots
        before = await everything(again)
        await again.node.close()

        damage(w.storage, max(w.storage.snapshots))
        third = await start(w.storage)
        assert await everything(third) == before
        await third.node.close()

    run(main)


def test_a_snapshot_that_does_not_read_back_is_no_snapshot() -> None:
    async def main() -> None:
        async with world() as w:
            for _ in range(2):
                await filled(w, 3)
                await snapshot(w)
            kept, oldest = dict(w.storage.snapshots), w.storage.oldest
            read = w.journal.snapshots.read

            async def bad(name: str) -> AsyncIterator[bytes]:
                async for chunk in read(name):
                    yield chunk
                raise Corrupt(name, 0, "a flipped bit", "")

            await filled(w, 3)
            w.journal.snapshots.read = bad  # type: ignore[method-assign]
            await snapshot(w)
            assert w.storage.oldest == oldest
            assert kept.items() <= w.storage.snapshots.items()
            (bad_name,) = w.storage.snapshots.keys() - kept.keys()
            del w.journal.snapshots.read  # type: ignore[misc]
            await filled(w, 3)
            await snapshot(w)
            assert len(w.storage.snapshots) == 2
            assert bad_name not in w.storage.snapshots
            assert w.storage.oldest > oldest

    run(main)


def test_a_snapshot_beyond_the_journal_stops_the_start() -> None:
    """What it holds was acknowledged, and the journal has lost it: nothing to go on from (I10)."""

    async def main() -> None:
        w = await start()
        await filled(w, 3)
        await snapshot(w)
        await w.node.close()
        del w.storage.payloads[-3:]
        with pytest.raises(Corrupt, match="beyond"):
            await start(w.storage)

    run(main)


def test_a_full_disk_costs_a_snapshot_and_nothing_more() -> None:
    async def main() -> None:
        async with world() as w:
            await filled(w, 3)
            writer = w.journal.snapshots.writer

            def full(name: str) -> Any:
                raise NoSpace("full")

            w.journal.snapshots.writer = full  # type: ignore[method-assign]
            await snapshot(w)
            assert w.storage.oldest == 1
            w.journal.snapshots.writer = writer  # type: ignore[method-assign]
            await snapshot(w)
            assert len(w.storage.snapshots) == 1

    run(main)


def test_snapshots_are_taken_every_so_many_requests() -> None:
    async def main() -> None:
        async with world(options=NodeOptions(snapshot_entries=20)) as w:
            for n in range(65):
                await w.put(b"k%d" % n)
                await asyncio.sleep(0.2)
            assert w.node.snapshotter.taken == 3

    run(main)


def test_snapshots_are_taken_when_the_journal_has_grown() -> None:
    options = NodeOptions(snapshot_bytes_min=10_000, snapshot_entries_min=10)

    async def main() -> None:
        async with world(options=options) as w:
            for n in range(50):
                await w.put(b"k%d" % n, b"x" * 1000)
                await asyncio.sleep(0.2)
            assert 2 <= w.node.snapshotter.taken <= 5

    run(main)


def test_a_snapshot_while_writes_go_on_is_of_one_moment() -> None:
    """Whatever is written while it is taken comes from the journal, once."""

    async def main() -> None:
        w = await start()
        await filled(w, 30)
        task = asyncio.create_task(snapshot(w))
        for n in range(40):
            await w.put(b"a/%d" % n, b"new")
            await w.revoke(5) if n == 5 else await w.delete(b"a/%d" % (n + 3))
            if n == 10:
                await w.grant(5, 90)
                await w.put(b"leased", lease=5)
            if n == 20:
                await w.compact(w.revision - 5)
            await settle(1)
        await task
        before = await everything(w)
        await w.node.close()
        again = await start(w.storage)
        assert again.node.snapshot_sequence > 1
        assert await everything(again) == before
        await again.node.close()

    run(main)


@pytest.mark.parametrize("pause", range(255, 280))
def test_compaction_may_run_through_a_snapshot(pause: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it buries between two chunks leaves no hole in a list that goes with another."""
    small_slices(monkeypatch)
    server = Stepper()

    def call(name: str, request: Any) -> None:
        server.service.on_calls([FakeCall(KV + name, request)])
        while server.append() or server.slicer.step(0):
            pass

    for n in range(6):
        call("Txn", pb.TxnRequest(success=[put_op(b"a/%d" % m, b"%d" % n * 50) for m in range(4)]))
    server.service.on_calls([FakeCall(KV + "Compact", pb.CompactionRequest(revision=6))])
    assert server.append() and server.append()
    (compaction,) = server.slicer.jobs
    assert server.snapshot()
    taking = server.slicer.jobs[1 - server.slicer.jobs.index(compaction)]
    steps = 0
    while taking in server.slicer.jobs:
        server.slicer.step(server.slicer.jobs.index(taking))
        steps += 1
        if steps == pause:
            while compaction in server.slicer.jobs:
                server.slicer.step(server.slicer.jobs.index(compaction))
    assert steps > pause
    server.settle()
    assert contents(Stepper(server.storage).state) == contents(server.state)


def test_a_start_gives_leases_their_full_time_and_keeps_alarms() -> None:
    async def main() -> None:
        w = await start()
        await w.grant(5, 70)
        await asyncio.sleep(50)
        activate = pb.AlarmRequest(action=pb.AlarmRequest.ACTIVATE, memberID=3, alarm=pb.NOSPACE)
        await w.call("/etcdserverpb.Maintenance/Alarm", activate)
        assert w.time_to_live(5).response.TTL == 20
        for snapshots in (False, True):
            if snapshots:
                await snapshot(w)
            await w.node.close()
            w = await start(w.storage)
            assert w.time_to_live(5).response.TTL == 70
            alarms = w.call("/etcdserverpb.Maintenance/Alarm", pb.AlarmRequest()).response.alarms
            assert [(a.memberID, a.alarm) for a in alarms] == [(3, pb.NOSPACE)]
        await w.node.close()

    run(main)


@pytest.mark.parametrize("payload", [b"\xff\xff", "gap", "again"])
def test_an_entry_that_does_not_belong_there_stops_the_start(payload: bytes | str) -> None:
    """Intact, as its checksums say, and not what this node could have written (I3, I10)."""

    async def main() -> None:
        w = await start()
        await filled(w, 3)
        await w.node.close()
        entries = w.storage.payloads
        if payload == "gap":
            del entries[4]
        elif payload == "again":
            entries.append(entries[4])
        else:
            assert isinstance(payload, bytes)
            entries.append(payload)
        with pytest.raises(Corrupt, match="belongs there"):
            await start(w.storage)

    run(main)
