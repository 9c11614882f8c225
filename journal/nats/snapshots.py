"""Snapshots in a JetStream object store, or in a directory that the nodes share.

An object is written under an id of its own, and exists once its description is stored: the
description replaces the one before it, so a snapshot is replaced at once or not at all. Its
messages are purged afterwards. What a writer that died left is swept when a journal is opened,
if it is old enough that no living writer can have it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Protocol

from journal.contract import (
    Corrupt,
    JournalError,
    NoSpace,
    SnapshotInfo,
    SnapshotStore,
    SnapshotWriter,
)
from journal.file.blocks import RESTORE
from journal.file.disk import Disk
from journal.file.snapshots import FileSnapshots
from journal.naming import check_snapshot_name
from journal.nats import config
from journal.nats.link import Link
from journal.nats.objects import (
    BadObject,
    Framer,
    Meta,
    Unframer,
    chunk_subject,
    digest_text,
    meta_subject,
)
from journal.nats.stream import NO_SPACE, STREAM_NOT_FOUND, ApiError, Stored, Stream, translate

_log = logging.getLogger(__name__)

PAUSE_S_MAX = 0.1
"""Between two messages of a snapshot; mostly as long as the one before took."""
ACK_S = 20.0
ABANDONED_S = 3600.0
"""A snapshot takes minutes; messages without a description that are older were left behind."""
_FETCH = 16
_STEP_CHUNKS = 256
_STALE_MAX = 5


Metas = list[Meta]
"""By a name, since the stores have a method `list`."""


class Snapshots(SnapshotStore, Protocol):
    """A store with what the journal needs besides."""

    sizes: dict[str, int]
    """Committed snapshots as far as they are known; for `stats`."""

    async def open(self, identity: bytes) -> None: ...

    async def close(self) -> None: ...


class _Writer:
    """Sends the messages of one object: one at a time, and half of the time.

    What the servers do for a snapshot they cannot do for the journal, whose writes wait behind it.
    """

    def __init__(self, store: BucketSnapshots, nuid: str) -> None:
        self._store = store
        self._subject = chunk_subject(store.bucket, nuid)
        self._framer = Framer()
        self._hash = sha256()
        self.size = 0
        self.messages = 0

    async def write(self, chunk: bytes) -> None:
        for message in self._framer.add(chunk):
            await self._send(message)

    async def finish(self) -> str:
        """Everything is stored; the digest."""
        for message in self._framer.end():
            await self._send(message)
        return digest_text(self._hash.digest())

    async def _send(self, message: bytes) -> None:
        self._hash.update(message)
        self.size += len(message)
        self.messages += 1
        loop = asyncio.get_running_loop()
        began = loop.time()
        await self._store.publish(self._subject, message)
        await asyncio.sleep(min(loop.time() - began, PAUSE_S_MAX))


class BucketSnapshots:
    """`contract.SnapshotStore` in an object store."""

    def __init__(
        self,
        link: Link,
        bucket: str,
        replicas: int,
        patience_s: float,
        check: Callable[[], None],
    ) -> None:
        self.bucket = bucket
        self.sizes: dict[str, int] = {}
        self._link = link
        self._replicas = replicas
        self._check = check
        self._stream = Stream(link, f"OBJ_{bucket}", patience_s)
        self._identity = b""
        self._ready = False
        self._reading: dict[str, int] = {}
        """Objects that are being read here, by id, and by how many."""
        self._doomed: set[str] = set()
        """Those of them that are to go when the last reader has."""

    async def open(self, identity: bytes) -> None:
        self._identity = identity
        if await self._exists():
            await self._sweep(await self._metas())

    async def close(self) -> None:
        pass

    async def _exists(self) -> bool:
        """Is the store there? JournalError if it is not what it has to be."""
        if self._ready:
            return True
        try:
            info = await self._stream.info()
        except ApiError as error:
            if error.code == STREAM_NOT_FOUND:
                return False
            raise
        wanted = config.bucket_config(self.bucket, self._replicas, self._identity)
        if found := config.faults(wanted, info.config):
            raise JournalError(
                f"the object store {self.bucket} is not set up as it has to be: {'; '.join(found)}"
            )
        if config.identity_of(info.config) != self._identity:
            raise JournalError(
                f"the object store {self.bucket} has the snapshots of another journal"
            )
        self._ready = True
        return True

    async def _ensure(self) -> None:
        if not await self._exists():
            await self._stream.create(
                config.bucket_config(self.bucket, self._replicas, self._identity)
            )
            if not await self._exists():
                raise JournalError(f"the object store {self.bucket} cannot be made")

    async def publish(self, subject: str, data: bytes, rollup: bool = False) -> None:
        """One message of the store, acknowledged. NoSpace, JournalError."""
        headers = {"Nats-Expected-Stream": self._stream.name}
        if rollup:
            headers["Nats-Rollup"] = "sub"
        answers = await self._link.request(subject, data, ACK_S, headers)
        answer = json.loads(answers[0].data)
        if (error := answer.get("error")) is not None:
            refusal = ApiError(error)
            raise NoSpace(str(refusal)) if refusal.code in NO_SPACE else refusal

    def writer(self, name: str) -> AbstractAsyncContextManager[SnapshotWriter]:
        check_snapshot_name(name)
        return self._writing(name)

    @asynccontextmanager
    async def _writing(self, name: str) -> AsyncIterator[SnapshotWriter]:
        self._check()
        await self._ensure()
        nuid = os.urandom(11).hex()
        writer = _Writer(self, nuid)
        try:
            yield writer
            self._check()
            digest = await writer.finish()
            old = await self._meta(name)
            meta = Meta(name, nuid, writer.size, writer.messages, digest, False, time.time())
            await self.publish(meta_subject(self.bucket, name), meta.encode(self.bucket), True)
        except BaseException:
            await self._discard(nuid)
            raise
        self.sizes[name] = writer.size
        if old is not None:
            await self._retire(old.nuid)

    async def _discard(self, nuid: str) -> None:
        """Without fail: what stays behind is swept one day."""
        try:
            await self._stream.purge(subject=chunk_subject(self.bucket, nuid))
        except JournalError as error:
            _log.warning("%s: an unfinished snapshot stays behind: %s", self.bucket, error)

    async def _retire(self, nuid: str) -> None:
        if nuid in self._reading:
            self._doomed.add(nuid)
        else:
            await self._discard(nuid)

    async def _meta(self, name: str) -> Meta | None:
        """The description of a snapshot, from the leader."""
        found = await self._stream.get(last_by_subj=meta_subject(self.bucket, name))
        return self._decode(found)

    def _decode(self, found: Stored | None) -> Meta | None:
        if found is None:
            return None
        try:
            meta = Meta.decode(found.data)
        except BadObject as bad:
            raise Corrupt(self._stream.name, found.sequence, str(bad), RESTORE) from None
        return None if meta.deleted else meta

    async def _metas(self) -> Metas:
        info = await self._stream.info(subjects=f"$O.{self.bucket}.M.>")
        metas = []
        for subject in info.subjects:
            meta = self._decode(await self._stream.get(last_by_subj=subject))
            if meta is not None:
                metas.append(meta)
        self.sizes = {meta.name: meta.size for meta in metas}
        return metas

    async def list(self) -> list[SnapshotInfo]:
        self._check()
        try:
            if not await self._exists():
                return []
            metas = await self._metas()
        except ApiError as error:
            raise translate(error) from error
        metas.sort(key=lambda meta: meta.name)
        return [SnapshotInfo(meta.name, meta.size, meta.created) for meta in metas]

    async def read(self, name: str) -> AsyncIterator[bytes]:
        check_snapshot_name(name)
        self._check()
        meta = await self._meta(name) if await self._exists() else None
        if meta is None:
            raise KeyError(name)
        self._reading[meta.nuid] = self._reading.get(meta.nuid, 0) + 1
        try:
            unframer = Unframer()
            number = 0
            try:
                async for message in self._messages(meta):
                    for chunk in unframer.add(message):
                        self._check()
                        yield chunk
                        number += 1
                        if number % _STEP_CHUNKS == 0:
                            await asyncio.sleep(0)
                if not unframer.ended:
                    raise BadObject("it is cut off: it has no end frame")
            except BadObject as bad:
                raise await self._damage(meta, str(bad)) from None
        finally:
            self._reading[meta.nuid] -= 1
            if not self._reading[meta.nuid]:
                del self._reading[meta.nuid]
                if meta.nuid in self._doomed:
                    self._doomed.discard(meta.nuid)
                    await self._discard(meta.nuid)

    async def _damage(self, meta: Meta, what: str) -> JournalError:
        now = await self._meta(meta.name)
        if now is None or now.nuid != meta.nuid:
            return JournalError(f"snapshot {meta.name} was replaced or deleted while it was read")
        return Corrupt(f"{self._stream.name}/{meta.name}", 0, what, RESTORE)

    async def _messages(self, meta: Meta) -> AsyncIterator[bytes]:
        """The messages of an object, checked against its description. BadObject."""
        subject = chunk_subject(self.bucket, meta.nuid)
        state = sha256()
        size = count = 0
        at = 1
        stale = 0
        while count < meta.chunks:
            found = await self._stream.fetch(at, _FETCH, subject=subject)
            if not found:
                # A replica that is behind, or there is no more: the leader knows.
                stale += 1
                await asyncio.sleep(0.02 * stale)
                if stale <= _STALE_MAX:
                    continue
                message = await self._stream.get(seq=at, next_by_subj=subject)
                if message is None:
                    raise BadObject(f"it has {count} messages of {meta.chunks}")
                found = [message]
            stale = 0
            for each in found:
                state.update(each.data)
                size += len(each.data)
                count += 1
                if count == meta.chunks:
                    self._compare(meta, size, state.digest())
                yield each.data
                at = each.sequence + 1
                await asyncio.sleep(0)

    @staticmethod
    def _compare(meta: Meta, size: int, digest: bytes) -> None:
        if size != meta.size or digest_text(digest) != meta.digest:
            raise BadObject("its length or SHA-256 is not as its description says")

    async def delete(self, name: str) -> None:
        check_snapshot_name(name)
        self._check()
        if not await self._exists():
            return
        meta = await self._meta(name)
        if meta is not None:
            await self._stream.purge(subject=meta_subject(self.bucket, name))
            await self._retire(meta.nuid)
        self.sizes.pop(name, None)

    async def _sweep(self, metas: Metas) -> None:
        """Remove what writers left that died long ago."""
        known = {chunk_subject(self.bucket, meta.nuid) for meta in metas}
        info = await self._stream.info(subjects=f"$O.{self.bucket}.C.>")
        for subject in info.subjects:
            if subject in known:
                continue
            age = await self._age(subject)
            if age is not None and age > ABANDONED_S:
                _log.info("%s: removing an unfinished snapshot", self.bucket)
                await self._stream.purge(subject=subject)

    async def _age(self, subject: str) -> float | None:
        """Seconds since the last message of a subject, by the servers' clocks."""
        try:
            answer = await self._stream.call("STREAM.MSG.GET", {"last_by_subj": subject})
        except ApiError:
            return None
        stamp = str(answer["message"]["time"])
        whole = stamp.partition(".")[0].removesuffix("Z")
        return time.time() - datetime.fromisoformat(whole + "+00:00").timestamp()


class _DirectorySnapshots:
    """The file journal's snapshots, in a directory that all nodes see."""

    def __init__(self, directory: Path, check: Callable[[], None]) -> None:
        self._check = check
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="journal-snapshots")
        self._store = FileSnapshots(Disk(), directory, self._use, shared=True)
        self.sizes = self._store.sizes

    def _use(self) -> Executor:
        self._check()
        return self._pool

    async def open(self, identity: bytes) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._pool, self._store.open, identity)
        except OSError as error:
            raise JournalError(f"cannot use the directory for snapshots: {error}") from error

    async def close(self) -> None:
        await asyncio.get_running_loop().run_in_executor(None, self._pool.shutdown)

    def writer(self, name: str) -> AbstractAsyncContextManager[SnapshotWriter]:
        return self._store.writer(name)

    async def list(self) -> list[SnapshotInfo]:
        found = await self._store.list()
        self.sizes.clear()
        self.sizes.update((info.name, info.size) for info in found)
        return found

    def read(self, name: str) -> AsyncIterator[bytes]:
        return self._store.read(name)

    async def delete(self, name: str) -> None:
        await self._store.delete(name)


def bucket_snapshots(
    link: Link, bucket: str, replicas: int, patience_s: float, check: Callable[[], None]
) -> Snapshots:
    return BucketSnapshots(link, bucket, replicas, patience_s, check)


def shared_directory(directory: Path, check: Callable[[], None]) -> Snapshots:
    return _DirectorySnapshots(directory, check)
