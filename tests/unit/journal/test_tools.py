"""The public test tools, and the way from a name to a backend."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import pytest

from journal import registry
from journal.contract import Conflict, Journal, JournalError, NoSpace, Poisoned, Unknown
from journal.file import FileJournal
from journal.memory import MemoryJournal, MemoryStorage
from journal.registry import open_journal
from journal.testing import FaultyJournal


def run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(scenario(), 60))


async def faulty(depth: int = 3) -> FaultyJournal:
    journal = FaultyJournal(MemoryJournal(pipeline_depth=depth))
    await journal.open()
    return journal


def test_a_faulty_journal_is_a_journal() -> None:
    assert isinstance(FaultyJournal(MemoryJournal()), Journal)


def test_held_appends_are_not_written_until_released() -> None:
    async def scenario() -> None:
        journal = await faulty()
        journal.hold()
        calls = [asyncio.ensure_future(journal.append([b"%d" % i], i)) for i in range(3)]
        await journal.in_flight(3)
        await asyncio.sleep(0)
        assert await journal.tail() == 0 and not any(call.done() for call in calls)
        journal.release(1)
        assert await calls[0] == 1
        await asyncio.sleep(0)
        assert await journal.tail() == 1 and not calls[1].done()
        journal.release()
        assert await asyncio.gather(*calls) == [1, 2, 3]
        assert await journal.append([b"free"], 3) == 4

    run(scenario)


def test_late_answers_come_after_the_write() -> None:
    async def scenario() -> None:
        journal = await faulty()
        journal.answer_late()
        call = asyncio.ensure_future(journal.append([b"x"], 0))
        while await journal.tail() == 0:
            await asyncio.sleep(0)
        assert not call.done()
        journal.release()
        assert await call == 1

    run(scenario)


def test_faults_come_once_and_in_order() -> None:
    async def scenario() -> None:
        journal = await faulty()
        journal.fail_next(NoSpace("full"))
        journal.fail_next(Unknown("lost"))
        journal.fail_next(Unknown("found"), applied=True)
        with pytest.raises(NoSpace):
            await journal.append([b"a"], 0)
        with pytest.raises(Unknown, match="lost"):
            await journal.append([b"a"], 0)
        assert await journal.tail() == 0
        with pytest.raises(Unknown, match="found"):
            await journal.append([b"a"], 0)
        with pytest.raises(Conflict):
            await journal.append([b"a"], 0)
        assert [e.payload async for step in journal.read(0) for e in step] == [b"a"]

    run(scenario)


def test_poison_stays() -> None:
    async def scenario() -> None:
        journal = await faulty()
        journal.hold()
        journal.fail_next(Poisoned("test"))
        calls = [asyncio.ensure_future(journal.append([b"x"], i)) for i in range(2)]
        await journal.in_flight(2)
        journal.release()
        for result in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(result, Poisoned)
        for work in (journal.tail(), journal.trim(1), anext(journal.read(0))):
            with pytest.raises(Poisoned):
                await work
        with pytest.raises(Poisoned):
            journal.reserve(1)
        await journal.close()

    run(scenario)


def test_a_full_journal_still_has_room_for_what_is_urgent() -> None:
    async def scenario() -> None:
        journal = await faulty()
        journal.full = True
        assert not journal.reserve(1) and journal.reserve(1, urgent=True)
        journal.full_urgent = True
        assert not journal.reserve(1, urgent=True)
        storage = MemoryStorage(capacity_bytes=100, headroom_bytes=20)
        bounded = MemoryJournal(storage)
        await bounded.open()
        assert bounded.reserve(80) and not bounded.reserve(1)
        assert bounded.reserve(20, urgent=True) and not bounded.reserve(1, urgent=True)
        await bounded.append([b"x" * 90], 0)
        with pytest.raises(NoSpace):
            await bounded.append([b"x" * 11], 1)
        await bounded.trim(2)
        assert bounded.reserve(80)

    run(scenario)


def test_the_control_journal_is_there_where_several_nodes_may_open_the_journal(
    tmp_path: Path,
) -> None:
    async def scenario() -> None:
        assert MemoryJournal().control is None
        assert FileJournal(tmp_path).control is None
        storage = MemoryStorage(shared=True)
        nodes = [FaultyJournal(MemoryJournal(storage)) for _ in range(2)]
        one, two = (node.control for node in nodes)
        assert one is not None and two is not None and one is not two
        assert one.control is None
        await one.open()
        await two.open()
        assert await one.append([b"mine"], 0) == 1
        with pytest.raises(Conflict):
            await two.append([b"mine too"], 0)
        for node in nodes:
            await node.open()
            assert await node.tail() == 0
            await node.close()
        assert await two.tail() == 1
        await two.close()
        await one.close()

    run(scenario)


def test_built_in_backends(tmp_path: Path) -> None:
    assert isinstance(open_journal("memory", tmp_path), MemoryJournal)
    journal = open_journal("file", tmp_path, {"segment_bytes": 8192})
    assert isinstance(journal, FileJournal) and journal.directory == tmp_path / "journal"
    elsewhere = open_journal(f"file://{tmp_path}/x", tmp_path)
    assert isinstance(elsewhere, FileJournal) and elsewhere.directory == tmp_path / "x"
    with pytest.raises(TypeError):
        open_journal("file", tmp_path, {"colour": "red"})


def test_a_third_party_joins_through_an_entry_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(JournalError, match="file, memory"):
        open_journal("tape:///dev/st0", tmp_path)
    point = EntryPoint("tape", "tests.unit.journal.test_tools:tape", registry.ENTRY_POINT_GROUP)

    def entry_points(**wanted: str) -> EntryPoints:
        return EntryPoints([point]).select(**wanted)

    monkeypatch.setattr(registry, "entry_points", entry_points)
    journal = open_journal("tape:///dev/st0", tmp_path, {"pipeline_depth": 4})
    assert journal.name == "memory" and journal.pipeline_depth == 4
    with pytest.raises(JournalError, match="file, memory, tape"):
        open_journal("stone", tmp_path)


def tape(url: str, data_dir: Path, options: dict[str, Any]) -> Journal:
    assert url == "tape:///dev/st0"
    return MemoryJournal(**options)
