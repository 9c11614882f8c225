"""What every backend's snapshot store promises (journal/contract.py)."""

from __future__ import annotations

import asyncio

import pytest

from journal.contract import Journal, JournalError
from tests.contract.backends import Harness, on_loop

CHUNKS = [b"first", b"", b"\0" * 5000, b"x" * (3 << 20), *[b"%d" % i for i in range(3000)], b""]


async def put(journal: Journal, name: str, chunks: list[bytes]) -> None:
    async with journal.snapshots.writer(name) as writer:
        for chunk in chunks:
            await writer.write(chunk)


async def get(journal: Journal, name: str) -> list[bytes]:
    return [chunk async for chunk in journal.snapshots.read(name)]


async def names(journal: Journal) -> list[str]:
    return [info.name for info in await journal.snapshots.list()]


@on_loop
async def test_chunks_come_back_as_they_were_written(harness: Harness) -> None:
    async with harness.open() as journal:
        await put(journal, "a", CHUNKS)
        await put(journal, "empty", [])
        assert await get(journal, "a") == CHUNKS
        assert await get(journal, "empty") == []
    async with harness.open() as journal:
        assert await get(journal, "a") == CHUNKS
        assert await get(journal, "empty") == []


@on_loop
async def test_list_and_delete(harness: Harness) -> None:
    async with harness.open() as journal:
        assert await journal.snapshots.list() == []
        for name in ("b", "a.1", "C-2_x"):
            await put(journal, name, [b"x" * 10_000])
        listed = await journal.snapshots.list()
        assert [info.name for info in listed] == ["C-2_x", "a.1", "b"]
        assert all(info.size >= 10_000 for info in listed)
        stats = journal.stats()
        assert stats.snapshots == 3
        assert stats.snapshot_bytes == sum(info.size for info in listed)
        await journal.snapshots.delete("b")
        await journal.snapshots.delete("b")
        assert await names(journal) == ["C-2_x", "a.1"]
        assert journal.stats().snapshots == 2
        with pytest.raises(KeyError):
            await get(journal, "b")
    async with harness.open() as journal:
        assert await names(journal) == ["C-2_x", "a.1"]
        assert journal.stats().snapshots == 2


@on_loop
async def test_a_snapshot_appears_whole_or_not_at_all(harness: Harness) -> None:
    async with harness.open() as journal:
        with pytest.raises(RuntimeError, match="half way"):
            async with journal.snapshots.writer("a") as writer:
                await writer.write(b"x" * (2 << 20))
                assert await names(journal) == []
                with pytest.raises(KeyError):
                    await get(journal, "a")
                raise RuntimeError("half way")
        assert await names(journal) == []
        assert journal.stats().snapshots == 0
    async with harness.open() as journal:
        assert await names(journal) == []


@on_loop
async def test_replacing_is_atomic(harness: Harness) -> None:
    async with harness.open() as journal:
        await put(journal, "a", [b"old"] * 3000)
        reader = journal.snapshots.read("a")
        first = await anext(reader)
        with pytest.raises(RuntimeError):
            async with journal.snapshots.writer("a") as writer:
                await writer.write(b"lost")
                raise RuntimeError
        assert await get(journal, "a") == [b"old"] * 3000
        await put(journal, "a", [b"new"] * 2000)
        assert [first, *[chunk async for chunk in reader]] == [b"old"] * 3000
        assert await get(journal, "a") == [b"new"] * 2000
        assert journal.stats().snapshots == 1


@on_loop
async def test_a_cancelled_writer_leaves_nothing(harness: Harness) -> None:
    async with harness.open() as journal:

        async def endless() -> None:
            async with journal.snapshots.writer("a") as writer:
                while True:
                    await writer.write(b"x" * 100_000)
                    await asyncio.sleep(0)

        task = asyncio.ensure_future(endless())
        for _ in range(50):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await names(journal) == []


@on_loop
async def test_appends_go_on_while_a_snapshot_is_written_and_read(harness: Harness) -> None:
    async with harness.open() as journal:
        tail = 0
        async with journal.snapshots.writer("a") as writer:
            for _ in range(40):
                await writer.write(b"x" * 200_000)
                tail = await journal.append([b"y"], tail)
        async for chunk in journal.snapshots.read("a"):
            assert chunk == b"x" * 200_000
            tail = await journal.append([b"y"], tail)
        assert tail == 80


@on_loop
async def test_names_that_no_store_could_keep_are_refused(harness: Harness) -> None:
    async with harness.open() as journal:
        for name in ("", ".", "../x", "a/b", "a b", "é", ".hidden", "-x", "x" * 129, "a\n"):
            with pytest.raises(ValueError):
                async with journal.snapshots.writer(name):
                    pass
            with pytest.raises(ValueError):
                await get(journal, name)
            with pytest.raises(ValueError):
                await journal.snapshots.delete(name)
        await put(journal, "x" * 128, [b"fits"])
        assert await get(journal, "x" * 128) == [b"fits"]


@on_loop
async def test_a_closed_journal_has_no_snapshots_to_give(harness: Harness) -> None:
    journal = harness.journal()
    await journal.open()
    await put(journal, "a", [b"x"])
    await journal.close()
    with pytest.raises(JournalError):
        await get(journal, "a")
    with pytest.raises(JournalError):
        await put(journal, "b", [b"x"])
    with pytest.raises(JournalError):
        await journal.snapshots.list()
    with pytest.raises(JournalError):
        await journal.snapshots.delete("a")
