"""The backends that the contract suite runs against. A new one joins by adding a `Harness`."""

from __future__ import annotations

import asyncio
import functools
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from journal.contract import Entry, Journal, Opened
from journal.file import FileJournal
from journal.memory import MemoryJournal, MemoryStorage
from journal.registry import open_journal
from tests.nats import shared_cluster

TEST_S_MAX = 120


class Harness(ABC):
    """One journal's storage, which outlives the journal objects that a test opens over it."""

    name: str
    exclusive: bool
    """A second journal object cannot be open at the same time."""
    quick = True
    """An append takes well under a millisecond, and making another storage does too."""

    @abstractmethod
    def journal(self, **options: Any) -> Journal:
        """Another journal object over the same storage, not opened yet."""

    @abstractmethod
    def discard(self) -> None:
        """Give back what the storage holds."""

    @asynccontextmanager
    async def open(self, **options: Any) -> AsyncIterator[Journal]:
        journal = self.journal(**options)
        await journal.open()
        try:
            yield journal
        finally:
            await journal.close()

    async def look(self) -> Opened:
        """What a restart would find."""
        journal = self.journal()
        opened = await journal.open()
        await journal.close()
        return opened


class MemoryHarness(Harness):
    name = "memory"
    exclusive = False

    def __init__(self) -> None:
        self.storage = MemoryStorage()

    def journal(self, **options: Any) -> Journal:
        return MemoryJournal(self.storage, **options)

    def discard(self) -> None:
        del self.storage


class FileHarness(Harness):
    """Small segments, so that even short tests cross several."""

    name = "file"
    exclusive = True

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="jotd-journal-"))

    def journal(self, **options: Any) -> Journal:
        return FileJournal(self.directory, **{"segment_bytes": 64 << 10, **options})

    def discard(self) -> None:
        shutil.rmtree(self.directory)


class PlainFileHarness(FileHarness):
    """The file journal as it is where the native module is not installed."""

    def journal(self, **options: Any) -> Journal:
        return super().journal(native=False, **options)


class NatsHarness(Harness):
    """A journal of its own on the session's cluster of three servers."""

    name = "nats"
    exclusive = False
    quick = False

    def __init__(self) -> None:
        self.cluster = shared_cluster()
        self.journal_name = f"t{uuid4().hex[:12]}"

    def journal(self, **options: Any) -> Journal:
        return open_journal(self.cluster.url(self.journal_name), Path("."), options)

    def discard(self) -> None:
        name = self.journal_name
        self.cluster.delete_streams(f"jotd-data-{name}", f"jotd-control-{name}", f"OBJ_jotd-{name}")


HARNESSES: list[type[Harness]] = [MemoryHarness, FileHarness, PlainFileHarness, NatsHarness]


def on_loop(
    test: Callable[..., Coroutine[Any, Any, None]],
) -> Callable[..., None]:
    """Run an async test to its end on a loop of its own."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        asyncio.run(asyncio.wait_for(test(*args, **kwargs), TEST_S_MAX))

    return run


async def entries(journal: Journal, after: int = 0) -> list[Entry]:
    """Everything that `read` gives, checked for order and holes."""
    found: list[Entry] = []
    async for step in journal.read(after):
        assert step
        found += step
    assert [e.sequence for e in found] == list(range(after + 1, after + 1 + len(found)))
    return found


async def fill(journal: Journal, payloads: list[bytes], tail: int = 0) -> int:
    for payload in payloads:
        assert await journal.append([payload], tail) == tail + 1
        tail += 1
    return tail
