"""Several appends at once: order, and what becomes of those behind one that fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from journal.contract import Conflict, Entry, NoSpace, Unknown
from journal.memory import MemoryJournal
from kvstore.api.service import EtcdService, ServiceOptions
from kvstore.node.appender import PIPELINED_REQUESTS
from kvstore.node.node import Node, NodeOptions
from kvstore.transport.seam import Code
from tests.unit.node.world import World, run, table

DEPTH = 3


class FarJournal(MemoryJournal):
    """Takes appends in order and answers each when the test says so, in any order."""

    def __init__(self) -> None:
        super().__init__(pipeline_depth=DEPTH)
        self.held: list[asyncio.Future[None]] = []
        self.holding = False
        self.failures: dict[int, Exception] = {}

    async def append(self, parts: Sequence[bytes], expected_tail: int) -> int:
        number = len(self.held)
        failure = self.failures.get(number)
        refused: Exception | None = None
        sequence = 0
        if failure is None:
            try:
                sequence = self.storage.append(b"".join(parts), expected_tail)
            except Conflict as conflict:
                refused = conflict
        gate: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self.holding:
            self.held.append(gate)
            await gate
        if failure or refused:
            raise failure or refused or AssertionError
        return sequence

    async def read(self, after: int) -> AsyncIterator[Sequence[Entry]]:
        async for entries in super().read(after):
            yield entries


async def world() -> tuple[World, FarJournal]:
    journal = FarJournal()
    node = Node(journal, table(), NodeOptions(), asyncio.get_running_loop(), lambda: 0.0)
    await node.open()
    journal.holding = True
    return World(node, journal, EtcdService(node, ServiceOptions())), journal  # type: ignore[arg-type]


async def turns(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def fill(w: World) -> list[list[Any]]:
    """One batch alone, then two that are worth an append of their own, and what waits."""
    batches = [[w.put(b"first", b"0")]]
    await turns()
    for number in range(3):
        batches.append([w.put(b"k%d" % n, b"%d" % number) for n in range(PIPELINED_REQUESTS)])
        await turns()
    return batches


def test_a_second_append_goes_when_it_is_worth_one() -> None:
    async def main() -> None:
        w, journal = await world()
        w.put(b"first")
        await turns()
        few = [w.put(b"k") for _ in range(PIPELINED_REQUESTS - 1)]
        await turns()
        assert len(journal.held) == 1
        few.append(w.put(b"k"))
        await turns()
        assert len(journal.held) == 2
        for gate in journal.held:
            gate.set_result(None)
        journal.holding = False
        for call in few:
            assert (await call).code is Code.OK
        await w.node.close()

    run(main)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_answers_come_in_order_however_the_appends_end(order: tuple[int, ...]) -> None:
    """R2: and never more than the journal takes."""

    async def main() -> None:
        w, journal = await world()
        batches = await fill(w)
        assert len(journal.held) == DEPTH
        for number in order:
            journal.held[number].set_result(None)
            await turns()
            done = [call.done for batch in batches for call in batch]
            assert done == sorted(done, reverse=True), "a later one was answered first"
        await turns()
        assert all(call.done for batch in batches[:3] for call in batch)
        while not batches[3][0].done:
            for gate in journal.held:
                if not gate.done():
                    gate.set_result(None)
            await asyncio.sleep(0.01)
        revisions = [call.response.header.revision for batch in batches for call in batch]
        assert revisions == list(range(2, 2 + len(revisions)))
        await w.node.close()

    run(main)


def test_no_room_for_one_is_no_room_for_those_behind_it() -> None:
    async def main() -> None:
        w, journal = await world()
        journal.failures[1] = NoSpace("full")
        batches = await fill(w)
        while not batches[3][0].done:
            for gate in reversed(journal.held):
                if not gate.done():
                    gate.set_result(None)
            await turns()
        assert all(call.code is Code.OK for call in batches[0])
        for call in (*batches[1], *batches[2], *batches[3]):
            assert call.code is Code.RESOURCE_EXHAUSTED
        journal.holding = False
        assert (await w.put(b"again")).response.header.revision == 3
        await w.node.close()

    run(main)


def test_behind_an_unknown_outcome_nothing_is_answered_well() -> None:
    """I7."""

    async def main() -> None:
        w, journal = await world()
        journal.failures.update({number: Unknown("lost") for number in range(1, 100)})
        batches = await fill(w)
        while not w.node.failed.done():
            for gate in journal.held:
                if not gate.done():
                    gate.set_result(None)
            await asyncio.sleep(0.01)
        assert isinstance(w.node.failed.result(), Unknown)
        assert all(call.code is Code.OK for call in batches[0])
        for call in (*batches[1], *batches[2], *batches[3]):
            assert call.code is Code.UNAVAILABLE
        await w.node.close()

    run(main)
