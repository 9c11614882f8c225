"""A journal in memory: the contract without a disk, for tests and for throw-away servers.

What a crash would leave lives in `MemoryStorage`, apart from the journal object: closing a
`MemoryJournal` and opening another one over the same storage is a restart. Several journals
may be open over one storage at the same time, as clients of a replicated log would be; the
condition on the tail then decides who writes.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from journal.contract import (
    Conflict,
    Entry,
    Journal,
    JournalError,
    JournalStats,
    NoSpace,
    Opened,
    SnapshotInfo,
    SnapshotStore,
    SnapshotWriter,
    Trimmed,
)
from journal.naming import check_snapshot_name

_STEP_BYTES = 1 << 20
_STEP_ENTRIES = 1024


class MemoryStorage:
    """What outlives a `MemoryJournal`.

    `capacity_bytes` bounds the payload bytes kept (None: no bound); `headroom_bytes` of it are
    kept for urgent reservations. With `shared` it stands for one that several nodes may open, so
    there is a small one beside it, `control`, without bounds.
    """

    def __init__(
        self,
        *,
        capacity_bytes: int | None = None,
        headroom_bytes: int = 0,
        shared: bool = False,
    ) -> None:
        self.control: MemoryStorage | None = MemoryStorage() if shared else None
        self.identity = os.urandom(16)
        self.payloads: list[bytes] = []
        self.oldest = 1
        self.used_bytes = 0
        self.capacity_bytes = capacity_bytes
        self.headroom_bytes = headroom_bytes
        self.snapshots: dict[str, tuple[tuple[bytes, ...], float]] = {}
        self._watchers: set[asyncio.Event] = set()

    @property
    def tail(self) -> int:
        return self.oldest + len(self.payloads) - 1

    def free_bytes(self) -> int:
        if self.capacity_bytes is None:
            return 1 << 62
        return self.capacity_bytes - self.used_bytes

    def append(self, payload: bytes, expected_tail: int) -> int:
        if expected_tail != self.tail:
            raise Conflict(expected_tail, self.tail)
        if len(payload) > self.free_bytes():
            raise NoSpace(f"no room for {len(payload)} bytes in the memory journal")
        self.payloads.append(payload)
        self.used_bytes += len(payload)
        self.wake()
        return self.tail

    def trim(self, before: int) -> None:
        count = min(before, self.tail + 1) - self.oldest
        if count > 0:
            self.used_bytes -= sum(map(len, self.payloads[:count]))
            del self.payloads[:count]
            self.oldest += count

    def take(self, after: int, upto: int) -> list[Entry]:
        """One list of entries in (after, upto], bounded in bytes and number."""
        if after + 1 < self.oldest:
            raise Trimmed(after, self.oldest)
        first = after + 1 - self.oldest
        last = min(upto + 1 - self.oldest, first + _STEP_ENTRIES)
        entries: list[Entry] = []
        size = 0
        for index in range(first, last):
            payload = self.payloads[index]
            entries.append(Entry(self.oldest + index, payload))
            size += len(payload)
            if size >= _STEP_BYTES:
                break
        return entries

    def watch(self, event: asyncio.Event) -> None:
        self._watchers.add(event)

    def unwatch(self, event: asyncio.Event) -> None:
        self._watchers.discard(event)

    def wake(self) -> None:
        for event in self._watchers:
            event.set()


class _MemorySnapshotWriter:
    def __init__(self) -> None:
        self.chunks: list[bytes] = []

    async def write(self, chunk: bytes) -> None:
        self.chunks.append(bytes(chunk))


class MemorySnapshots:
    """`SnapshotStore` over the dict of a `MemoryStorage`."""

    def __init__(self, storage: MemoryStorage, check: Callable[[], None]) -> None:
        self._storage = storage
        self._check = check

    def writer(self, name: str) -> AbstractAsyncContextManager[SnapshotWriter]:
        check_snapshot_name(name)
        return self._writing(name)

    @asynccontextmanager
    async def _writing(self, name: str) -> AsyncIterator[SnapshotWriter]:
        self._check()
        writer = _MemorySnapshotWriter()
        yield writer
        self._check()
        self._storage.snapshots[name] = (tuple(writer.chunks), time.time())

    async def list(self) -> list[SnapshotInfo]:
        self._check()
        return [
            SnapshotInfo(name, sum(map(len, chunks)), created)
            for name, (chunks, created) in sorted(self._storage.snapshots.items())
        ]

    async def read(self, name: str) -> AsyncIterator[bytes]:
        check_snapshot_name(name)
        self._check()
        chunks, _ = self._storage.snapshots[name]
        for chunk in chunks:
            yield chunk
            await asyncio.sleep(0)

    async def delete(self, name: str) -> None:
        check_snapshot_name(name)
        self._check()
        self._storage.snapshots.pop(name, None)


class MemoryJournal:
    """`contract.Journal` over a `MemoryStorage` (a new one unless given)."""

    name = "memory"

    def __init__(
        self,
        storage: MemoryStorage | None = None,
        *,
        max_batch_bytes: int = 32 << 20,
        pipeline_depth: int = 1,
    ) -> None:
        self.storage = storage if storage is not None else MemoryStorage()
        self.max_batch_bytes = max_batch_bytes
        self.pipeline_depth = pipeline_depth
        self.snapshots: SnapshotStore = MemorySnapshots(self.storage, self._check)
        self.control: Journal | None = None
        if self.storage.control is not None:
            self.control = MemoryJournal(self.storage.control)
        self.on_sync: Callable[[float], None] | None = None
        self.on_write: Callable[[float], None] | None = None
        self.on_progress: Callable[[int, int], None] | None = None
        self._open = False
        self._closed = False
        self._reserved = 0
        self._appends = 0
        self._appended_bytes = 0
        self._conflicts = 0

    async def open(self) -> Opened:
        if self._open or self._closed:
            raise JournalError("a journal object can be opened once")
        self._open = True
        return Opened(self.storage.identity, self.storage.tail, self.storage.oldest)

    async def append(self, parts: Sequence[bytes], expected_tail: int) -> int:
        self._check()
        payload = b"".join(parts)
        if len(payload) > self.max_batch_bytes:
            raise ValueError(f"batch of {len(payload)} bytes, at most {self.max_batch_bytes} fit")
        self._reserved = 0
        try:
            sequence = self.storage.append(payload, expected_tail)
        except Conflict:
            self._conflicts += 1
            raise
        self._appends += 1
        self._appended_bytes += len(payload)
        await asyncio.sleep(0)
        if self.on_write is not None:
            self.on_write(0.0)
        if self.on_sync is not None:
            self.on_sync(0.0)
        return sequence

    async def read(self, after: int) -> AsyncIterator[Sequence[Entry]]:
        self._check()
        upto = self.storage.tail
        if after > upto:
            raise ValueError(f"entries after {after} were asked for, the tail is {upto}")
        if after + 1 < self.storage.oldest:
            raise Trimmed(after, self.storage.oldest)
        total = sum(map(len, self.storage.payloads[after + 1 - self.storage.oldest :]))
        done = 0
        while after < upto:
            entries = self.storage.take(after, upto)
            after = entries[-1].sequence
            if self.on_progress is not None:
                done += sum(len(entry.payload) for entry in entries)
                self.on_progress(done, total)
            yield entries
            await asyncio.sleep(0)

    async def follow(self, after: int) -> AsyncIterator[Sequence[Entry]]:
        self._check()
        if after > self.storage.tail:
            raise ValueError(f"entries after {after} were asked for, the tail is below that")
        event = asyncio.Event()
        self.storage.watch(event)
        try:
            while self._open:
                event.clear()
                if after + 1 < self.storage.oldest:
                    raise Trimmed(after, self.storage.oldest)
                if after == self.storage.tail:
                    await event.wait()
                    continue
                entries = self.storage.take(after, self.storage.tail)
                after = entries[-1].sequence
                yield entries
                await asyncio.sleep(0)
        finally:
            self.storage.unwatch(event)

    async def tail(self) -> int:
        self._check()
        return self.storage.tail

    async def trim(self, before: int) -> None:
        self._check()
        self.storage.trim(before)

    def reserve(self, nbytes: int, *, urgent: bool = False) -> bool:
        self._check()
        kept = 0 if urgent else self.storage.headroom_bytes
        if self._reserved + nbytes + kept > self.storage.free_bytes():
            return False
        self._reserved += nbytes
        return True

    def stats(self) -> JournalStats:
        chunks = [chunks for chunks, _ in self.storage.snapshots.values()]
        return JournalStats(
            bytes_on_disk=self.storage.used_bytes,
            segments=1,
            entries=len(self.storage.payloads),
            appends=self._appends,
            appended_bytes=self._appended_bytes,
            conflicts=self._conflicts,
            syncs=self._appends,
            free_bytes=self.storage.free_bytes(),
            snapshots=len(chunks),
            snapshot_bytes=sum(len(chunk) for snapshot in chunks for chunk in snapshot),
        )

    async def close(self) -> None:
        self._open = False
        self._closed = True
        self.storage.wake()

    def _check(self) -> None:
        if not self._open:
            raise JournalError("the journal is not open")
