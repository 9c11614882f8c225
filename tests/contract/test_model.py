"""Random histories with restarts, every backend against a list (I1, I5: replay equals appends)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, ClassVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from journal.contract import Conflict, Journal, Trimmed
from tests.contract.backends import HARNESSES, Harness, entries
from tests.property.profiles import moderate

PAYLOADS = st.one_of(
    st.binary(max_size=40),
    # Lengths around the edges of frames, sectors and (with 4 KiB segments) segments.
    st.builds(lambda n, b: bytes([b]) * n, st.integers(400, 9000), st.integers(0, 255)),
)


class JournalMachine(RuleBasedStateMachine):
    """The model is the list of payloads, and how far trim was allowed to go."""

    kind: ClassVar[type[Harness]]

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.harness = self.kind()
        self.payloads: list[bytes] = []
        self.trimmed = 1
        self.snapshots: dict[str, list[bytes]] = {}
        self.journal = self.open()

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(asyncio.wait_for(work, 60))

    def open(self) -> Journal:
        options = {"segment_bytes": 4096} if self.kind.name == "file" else {}
        journal = self.harness.journal(**options)
        opened = self.run(journal.open())
        assert opened.tail == len(self.payloads)
        assert 1 <= opened.oldest <= max(self.trimmed, 1)
        self.oldest = opened.oldest
        return journal

    @rule(parts=st.lists(PAYLOADS, max_size=4))
    def append(self, parts: list[bytes]) -> None:
        assert self.run(self.journal.append(parts, len(self.payloads))) == len(self.payloads) + 1
        self.payloads.append(b"".join(parts))

    @rule(batches=st.lists(PAYLOADS, min_size=2, max_size=6))
    def append_several(self, batches: list[bytes]) -> None:
        async def all_at_once() -> list[int]:
            tail = len(self.payloads)
            calls = [self.journal.append([b], tail + i) for i, b in enumerate(batches)]
            return list(await asyncio.gather(*calls))

        first = len(self.payloads) + 1
        assert self.run(all_at_once()) == list(range(first, first + len(batches)))
        self.payloads += batches

    @rule(off=st.integers(-3, 3).filter(bool))
    def append_in_vain(self, off: int) -> None:
        with pytest.raises(Conflict):
            self.run(self.journal.append([b"no"], len(self.payloads) + off))

    @rule(fraction=st.floats(0, 1))
    def read(self, fraction: float) -> None:
        after = int(len(self.payloads) * fraction)
        try:
            found = self.run(entries(self.journal, after))
        except Trimmed:
            assert after + 1 < self.trimmed
            return
        assert [entry.payload for entry in found] == self.payloads[after:]

    @precondition(lambda self: self.payloads)
    @rule(fraction=st.floats(0, 1))
    def trim(self, fraction: float) -> None:
        before = 1 + int(len(self.payloads) * fraction)
        self.run(self.journal.trim(before))
        self.trimmed = max(self.trimmed, before)

    @rule(name=st.sampled_from("abc"), chunks=st.lists(PAYLOADS, max_size=5))
    def snapshot(self, name: str, chunks: list[bytes]) -> None:
        async def write() -> None:
            async with self.journal.snapshots.writer(name) as writer:
                for chunk in chunks:
                    await writer.write(chunk)

        self.run(write())
        self.snapshots[name] = chunks

    @rule(name=st.sampled_from("abc"))
    def delete_snapshot(self, name: str) -> None:
        self.run(self.journal.snapshots.delete(name))
        self.snapshots.pop(name, None)

    @rule()
    def restart(self) -> None:
        self.run(self.journal.close())
        self.journal = self.open()

        async def read_snapshots() -> dict[str, list[bytes]]:
            return {
                info.name: [chunk async for chunk in self.journal.snapshots.read(info.name)]
                for info in await self.journal.snapshots.list()
            }

        assert self.run(read_snapshots()) == self.snapshots

    @invariant()
    def what_must_be_kept_is_there(self) -> None:
        after = max(self.trimmed - 1, len(self.payloads) - 3)
        found = self.run(entries(self.journal, after))
        assert [entry.payload for entry in found] == self.payloads[after:]

    def teardown(self) -> None:
        self.run(self.journal.close())
        self.harness.discard()
        self.loop.close()


def _machine(kind: type[Harness]) -> Callable[[], None]:
    machine = type(f"{kind.__name__}Machine", (JournalMachine,), {"kind": kind})
    case = machine.TestCase
    case.settings = settings(
        moderate(25 if kind.quick else 4), stateful_step_count=40 if kind.quick else 25
    )
    return case if kind.quick else pytest.mark.slow(case)  # type: ignore[no-any-return]


for _kind in HARNESSES:
    globals()[f"Test{_kind.__name__}"] = _machine(_kind)
