"""Snapshots as files: a header block, the chunks as frames, an end frame with count and length.

Written under a temporary name, synced, renamed, and the directory synced; so what has its name
is complete, and whatever is under a temporary name when the journal is opened is rubbish.
"""

from __future__ import annotations

import asyncio
import os
import struct
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Executor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import TypeVar

from journal.contract import Corrupt, JournalError, NoSpace, SnapshotInfo, SnapshotWriter
from journal.file.blocks import RESTORE, SECTOR, pack_block, unpack_block
from journal.file.disk import Disk
from journal.file.frames import (
    CHUNK,
    CHUNKS_END,
    HEADER_BYTES,
    BadFrame,
    decode_run,
    encode,
    header_at,
    seed_of,
)
from journal.file.spare import no_space
from journal.naming import check_snapshot_name

_T = TypeVar("_T")

MAGIC = b"JOTDSNP\0"
SUFFIX = ".snap"
_TEMPORARY = ".tmp"
_HEAD = struct.Struct("<16sH128s")
_END = struct.Struct("<QQ")
_FLUSH_BYTES = 1 << 20
# Small enough that a sync of the journal next to it does not wait for a mountain of dirty pages.
_SYNC_BYTES = 8 << 20
_STEP_CHUNKS = 1024
_ABANDONED_S = 3600.0
"""In a shared directory, a temporary file that nobody has written to for so long has no writer."""


def _seed(identity: bytes, name: str) -> int:
    return seed_of(identity, b"snapshot", name.encode())


class SnapshotReader:
    """Reads one snapshot, verifying it. Synchronous."""

    def __init__(self, disk: Disk, path: Path, identity: bytes) -> None:
        """FileNotFoundError, Corrupt, IncompatibleVersion."""
        self._disk = disk
        self._path = path
        self._fd = disk.open(path, os.O_RDONLY)
        try:
            body = unpack_block(disk.read(self._fd, SECTOR, 0), MAGIC, path, 0)
            found, length, name = _HEAD.unpack_from(body)
            if found != identity:
                what = f"snapshot of another journal ({found.hex()})"
                raise Corrupt(path, 0, what, RESTORE)
            self.name = name[:length].decode()
            if path.name != self.name + SUFFIX:
                raise Corrupt(path, 0, f"the header says it is {self.name!r}", RESTORE)
        except BaseException:
            disk.close(self._fd)
            raise
        self.size = disk.size(self._fd)
        self._seed = _seed(identity, self.name)
        self._data = b""
        self._base = self.position = SECTOR
        self._chain = 0
        self._number = 1
        self._total = 0
        self._ended = False

    def step(self) -> list[bytes]:
        """The next chunks, [] at the end. Corrupt."""
        if self._ended:
            return []
        try:
            chunks = self._decode()
            if not chunks:
                self._fill(_FLUSH_BYTES)
                chunks = self._decode()
            if not chunks:
                chunks = self._long_or_last()
        except BadFrame as bad:
            raise Corrupt(self._path, bad.offset, bad.what, RESTORE) from None
        return chunks

    def _long_or_last(self) -> list[bytes]:
        frame = header_at(self._seed, self._data, 0, self.position)
        if frame is None or frame.end > self.size:
            raise BadFrame(self.position, "the snapshot is cut off: it has no end frame")
        self._fill(frame.end - frame.offset)
        if frame.kind == CHUNK:
            return self._decode()
        ends, at, _ = self._run(CHUNKS_END)
        expected = _END.pack(self._number - 1, self._total)
        if ends != [expected] or self._base + at != self.size:
            raise BadFrame(self.position, "the snapshot does not end as its end frame says")
        self._ended = True
        self.position = self.size
        return []

    def _run(self, kind: int) -> tuple[list[bytes], int, int]:
        return decode_run(
            self._data,
            self.position - self._base,
            self._base,
            self._seed,
            kind,
            self._number,
            self._chain,
            _STEP_CHUNKS,
            _FLUSH_BYTES,
        )

    def _decode(self) -> list[bytes]:
        chunks, at, chain = self._run(CHUNK)
        if chunks:
            self.position = self._base + at
            self._chain = chain
            self._number += len(chunks)
            self._total += sum(map(len, chunks))
        return chunks

    def _fill(self, size: int) -> None:
        self._base = self.position
        self._data = self._disk.read(self._fd, max(size, HEADER_BYTES), self._base)

    def close(self) -> None:
        self._disk.close(self._fd)


class _Writer:
    """Collects chunks and writes them in a thread, one bigger piece at a time."""

    def __init__(self, disk: Disk, pool: Executor, path: Path, identity: bytes, name: str) -> None:
        self._disk = disk
        self._pool = pool
        self._path = path
        self._identity = identity
        self._name = name
        self._seed = _seed(identity, name)
        self._fd = -1
        self._chunks: list[bytes] = []
        self._buffered = 0
        self._at = SECTOR
        self._chain = 0
        self._number = 1
        self._total = 0
        self._unsynced = 0

    async def write(self, chunk: bytes) -> None:
        self._chunks.append(chunk)
        self._buffered += len(chunk)
        if self._buffered >= _FLUSH_BYTES or len(self._chunks) >= _STEP_CHUNKS:
            await self._in_thread(self._flush)

    async def begin(self) -> None:
        await self._in_thread(self._begin)

    async def commit(self, final: Path) -> int:
        """Make it durable under its name; its size."""
        await self._in_thread(lambda: self._commit(final))
        return self._at

    async def discard(self) -> None:
        await asyncio.get_running_loop().run_in_executor(self._pool, self._discard)

    async def _in_thread(self, work: Callable[[], None]) -> None:
        future = asyncio.get_running_loop().run_in_executor(self._pool, work)
        try:
            await asyncio.shield(future)
        except asyncio.CancelledError:
            # The thread still has the file: the caller must not close it meanwhile.
            await asyncio.wait([future])
            future.exception()
            raise
        except OSError as error:
            if no_space(error):
                raise NoSpace(f"no room for snapshot {self._name}: {error}") from error
            raise JournalError(f"cannot write snapshot {self._name}: {error}") from error

    def _begin(self) -> None:
        self._fd = self._disk.open(self._path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        name = self._name.encode()
        head = pack_block(MAGIC, _HEAD.pack(self._identity, len(name), name))
        self._disk.write(self._fd, [head], 0)

    def _flush(self) -> None:
        chunks, self._chunks, self._buffered = self._chunks, [], 0
        pieces: list[bytes] = []
        for chunk in chunks:
            self._add(pieces, CHUNK, chunk)
        self._put(pieces)
        if self._unsynced >= _SYNC_BYTES:
            self._disk.datasync(self._fd)
            self._unsynced = 0

    def _add(self, pieces: list[bytes], kind: int, payload: bytes) -> None:
        head, close, self._chain = encode(self._seed, kind, self._number, self._chain, payload)
        pieces += (head, payload, close)
        self._number += 1
        if kind == CHUNK:
            self._total += len(payload)

    def _put(self, pieces: list[bytes]) -> None:
        data = b"".join(pieces)
        self._disk.write(self._fd, [data], self._at)
        self._at += len(data)
        self._unsynced += len(data)

    def _commit(self, final: Path) -> None:
        self._flush()
        pieces: list[bytes] = []
        self._add(pieces, CHUNKS_END, _END.pack(self._number - 1, self._total))
        self._put(pieces)
        self._disk.sync(self._fd)
        self._disk.rename(self._path, final)
        self._disk.sync_dir(final.parent)
        self._disk.close(self._fd)
        self._fd = -1

    def _discard(self) -> None:
        if self._fd >= 0:
            self._disk.close(self._fd)
            self._fd = -1
        try:
            self._disk.unlink(self._path)
        except OSError:
            # Removed when the journal is opened next.
            pass


class FileSnapshots:
    """`contract.SnapshotStore` in a directory."""

    def __init__(
        self,
        disk: Disk,
        directory: Path,
        check: Callable[[], Executor],
        *,
        shared: bool = False,
    ) -> None:
        """`check` raises unless the journal is in service, and gives the threads to use.

        `shared`: other processes write snapshots into the same directory.
        """
        self._disk = disk
        self._directory = directory
        self._check = check
        self._identity = b""
        self._serial = 0
        self._shared = shared
        # Nobody else's temporary files have names like that.
        self._mark = f"{os.urandom(8).hex()}-" if shared else ""
        self.sizes: dict[str, int] = {}
        """Committed snapshots; current, for `stats`."""

    def open(self, identity: bytes) -> None:
        """Remove what was left half written. Synchronous. OSError."""
        self._identity = identity
        try:
            os.mkdir(self._directory, 0o750)
            self._disk.sync_dir(self._directory.parent)
        except FileExistsError:
            pass
        for name in os.listdir(self._directory):
            path = self._directory / name
            if name.endswith(_TEMPORARY):
                if not self._shared or time.time() - path.stat().st_mtime > _ABANDONED_S:
                    self._disk.unlink(path)
            elif name.endswith(SUFFIX):
                self.sizes[name.removesuffix(SUFFIX)] = path.stat().st_size

    def writer(self, name: str) -> AbstractAsyncContextManager[SnapshotWriter]:
        check_snapshot_name(name)
        return self._writing(name)

    @asynccontextmanager
    async def _writing(self, name: str) -> AsyncIterator[SnapshotWriter]:
        pool = self._check()
        self._serial += 1
        temporary = self._directory / f"{name}.{self._mark}{self._serial}{_TEMPORARY}"
        writer = _Writer(self._disk, pool, temporary, self._identity, name)
        try:
            await writer.begin()
            yield writer
            self._check()
            size = await writer.commit(self._directory / (name + SUFFIX))
        except BaseException:
            await writer.discard()
            raise
        self.sizes[name] = size

    async def _call(self, work: Callable[..., _T], *args: object) -> _T:
        """In a thread, with what the operating system says as a JournalError."""
        future = asyncio.get_running_loop().run_in_executor(self._check(), work, *args)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            # The thread uses what the caller is about to close.
            await asyncio.wait([future])
            if not future.cancelled():
                future.exception()
            raise
        except FileNotFoundError:
            raise
        except OSError as error:
            raise JournalError(f"snapshots in {self._directory}: {error}") from error

    async def list(self) -> list[SnapshotInfo]:
        infos = await self._call(self._scan)
        return sorted(infos, key=lambda info: info.name)

    def _scan(self) -> Sequence[SnapshotInfo]:
        found = []
        for entry in os.scandir(self._directory):
            if entry.name.endswith(SUFFIX):
                status = entry.stat()
                name = entry.name.removesuffix(SUFFIX)
                found.append(SnapshotInfo(name, status.st_size, status.st_mtime))
        return found

    async def read(self, name: str) -> AsyncIterator[bytes]:
        path = self._directory / (check_snapshot_name(name) + SUFFIX)
        try:
            reader = await self._call(SnapshotReader, self._disk, path, self._identity)
        except FileNotFoundError:
            raise KeyError(name) from None
        try:
            while chunks := await self._call(reader.step):
                for chunk in chunks:
                    yield chunk
        finally:
            reader.close()

    async def delete(self, name: str) -> None:
        path = self._directory / (check_snapshot_name(name) + SUFFIX)
        await self._call(self._delete, path)
        self.sizes.pop(name, None)

    def _delete(self, path: Path) -> None:
        try:
            self._disk.unlink(path)
        except FileNotFoundError:
            return
        self._disk.sync_dir(self._directory)
