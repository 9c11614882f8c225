"""The journal in a JetStream stream, as the event loop sees it."""

from __future__ import annotations

import asyncio
import logging
import os
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from nats.aio.msg import Msg

from journal.contract import (
    Entry,
    Journal,
    JournalError,
    JournalStats,
    Opened,
    Poisoned,
    SnapshotStore,
    Trimmed,
)
from journal.nats import config
from journal.nats.appender import VANISH_S, Appender
from journal.nats.chain import Chain
from journal.nats.link import Link, Unreachable
from journal.nats.placement import Placement
from journal.nats.reader import Changed, Head
from journal.nats.snapshots import Snapshots, bucket_snapshots, shared_directory
from journal.nats.stream import (
    ATTEMPT_S,
    NO_PEERS,
    STREAM_NOT_FOUND,
    ApiError,
    Info,
    Stored,
    Stream,
    translate,
)
from journal.nats.url import Settings, parse

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

MAX_BATCH_BYTES = 32 << 20
PIPELINE_DEPTH = 8
PATIENCE_S = 15.0
"""How long a read waits for NATS to elect leaders, which takes it 4 to 9 s."""
CONTROL_ATTEMPT_S = 0.5
"""When the control stream has a leader again, ours has to renew its lease before another node takes
that for lapsed: it must not be waiting for answers to what was sent to nobody."""
OPEN_S = 20.0
POLL_S = 1.0
"""A follower that was told nothing asks."""
HINT_BYTES = 8 << 20
"""Kept for a follower that is slower than the journal; the rest it reads from the stream."""
ACCOUNT_S = 10.0
_ABSENT_RETRY_S = 0.2
_ROOM = 1 << 62
_UNSYNCED = (
    "%s: whether the NATS servers sync what they acknowledge cannot be seen from here. Be sure "
    "that each has `sync_interval: always` in its `jetstream` block: with the default an "
    "acknowledged write can be lost when machines fail"
)


class _Hints:
    """Messages that the server told of, for one follower."""

    def __init__(self) -> None:
        self.event = asyncio.Event()
        self.messages: deque[Stored] = deque()
        self._bytes = 0

    def add(self, message: Stored) -> None:
        self._bytes += len(message.data)
        self.messages.append(message)
        while self._bytes > HINT_BYTES:
            self._bytes -= len(self.messages.popleft().data)
        self.event.set()

    def take(self) -> Stored:
        message = self.messages.popleft()
        self._bytes -= len(message.data)
        return message


class NatsJournal:
    """`contract.Journal` in a stream of NATS JetStream.

    `settings` may be a URL. `pipeline_depth` appends are under way at once. `vanish_s`: for how
    long the stream has to end too early until that is a loss of data.
    """

    name = "nats"

    def __init__(
        self,
        settings: Settings | str,
        *,
        max_batch_bytes: int = MAX_BATCH_BYTES,
        pipeline_depth: int = PIPELINE_DEPTH,
        replicas: int | None = None,
        unknown_s: float | None = None,
        vanish_s: float = VANISH_S,
        patience_s: float = PATIENCE_S,
        open_s: float = OPEN_S,
        attempt_s: float = ATTEMPT_S,
        kind: str = "data",
    ) -> None:
        settings = parse(settings) if isinstance(settings, str) else settings
        if replicas is not None:
            settings = replace(settings, replicas=replicas)
        if unknown_s is not None:
            settings = replace(settings, unknown_s=unknown_s)
        self.settings = settings
        self.max_batch_bytes = max_batch_bytes
        self.pipeline_depth = pipeline_depth
        self.on_sync: Callable[[float], None] | None = None
        self.on_write: Callable[[float], None] | None = None
        self.on_progress: Callable[[int, int], None] | None = None
        self.names = config.names(settings.name, kind)
        self._vanish_s = vanish_s
        self._open_s = open_s
        self._state = "new"
        self._failure: Poisoned | None = None
        # A connection of its own for each: a renewal of a lease is not to wait behind megabytes.
        self._link = Link(settings, f"jotd {kind} {settings.name}")
        self._stream = Stream(self._link, self.names.stream, patience_s, attempt_s)
        self._head = Head(self._stream)
        self._appender: Appender | None = None
        self._listening = False
        self._followers: set[_Hints] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._reserved = 0
        self._free_bytes = _ROOM
        self._bytes = 0
        self._appends = 0
        self._appended_bytes = 0
        self._conflicts = 0
        self._append_seconds = 0.0
        self.control: Journal | None = None
        self._snapshots: Snapshots
        if kind == "data" and settings.snapshots is not None:
            self._snapshots = shared_directory(settings.snapshots, self._check)
        else:
            bucket = config.bucket_of(
                settings.name if kind == "data" else f"{kind}.{settings.name}"
            )
            self._snapshots = bucket_snapshots(
                self._link, bucket, settings.replicas, patience_s, self._check
            )
        self.snapshots: SnapshotStore = self._snapshots
        if kind == "data":
            self.control = NatsJournal(
                settings,
                pipeline_depth=pipeline_depth,
                vanish_s=vanish_s,
                patience_s=patience_s,
                open_s=open_s,
                attempt_s=CONTROL_ATTEMPT_S,
                kind="control",
            )

    # Opening and closing

    async def open(self) -> Opened:
        if self._state != "new":
            raise JournalError("a journal object can be opened once")
        self._state = "opening"
        try:
            await self._link.start(self._open_s)
            info = await self._ensure()
            identity = config.identity_of(info.config)
            assert identity is not None
            await self._head.open(info, identity)
        except BaseException as error:
            self._state = "closed"
            await self._link.close()
            if isinstance(error, ApiError):
                raise JournalError(f"cannot open stream {self.names.stream}: {error}") from error
            raise
        self._bytes = info.bytes
        placement = None
        if self.control is not None:
            placement = Placement(self._stream, self._link)
            self._link.on_connect.append(placement.connected)
        self._appender = Appender(
            self._head,
            self._link,
            self.names.subject,
            depth=self.pipeline_depth,
            unknown_s=self.settings.unknown_s,
            vanish_s=self._vanish_s,
            on_stored=self._stored,
            on_conflict=self._conflicted,
            on_failure=self._poison,
            placement=placement,
        )
        self._state = "open"
        self._link.on_connect.append(self._connected)
        try:
            if self.control is not None:
                await self._snapshots.open(identity)
                _log.warning(_UNSYNCED, self.names.stream)
        except BaseException:
            await self.close()
            raise
        self._spawn(self._watch_account())
        chain = self._head.chain
        return Opened(identity, chain.batch, min(self._head.oldest, chain.batch + 1))

    async def _create(self, wanted: config.Config) -> Info:
        """Create the stream; for a while although servers are missing, which may just start."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._open_s
        told = False
        while True:
            try:
                return await self._stream.create(wanted)
            except ApiError as error:
                if error.code != NO_PEERS or loop.time() > deadline:
                    raise
                if not told:
                    told = True
                    name, replicas = self.names.stream, self.settings.replicas
                    _log.warning("%s needs %d servers: %s", name, replicas, error.description)
                await asyncio.sleep(_ABSENT_RETRY_S)

    async def _ensure(self) -> Info:
        """The stream, made if it is not there, refused if it is not as it has to be."""
        replicas = self.settings.replicas
        wanted = config.journal_config(self.names, replicas, os.urandom(16))
        stream = self._stream
        try:
            info = await stream.info()
        except ApiError as error:
            if error.code != STREAM_NOT_FOUND:
                raise
            try:
                # Whoever was first has made it; its identity is the one that counts.
                info = await self._create(wanted)
            except ApiError as refusal:
                raise JournalError(
                    f"the NATS servers cannot keep stream {stream.name} with {replicas} replicas: "
                    f"{refusal.description}. Add servers, or say ?replicas=N"
                ) from refusal
        if config.identity_of(info.config) is None:
            raise JournalError(f"stream {stream.name} is not a journal of jotd: it has no identity")
        if found := config.faults(wanted, info.config):
            raise JournalError(
                f"stream {stream.name} is not set up as a journal has to be: {'; '.join(found)}"
            )
        return info

    async def close(self) -> None:
        if self._state == "new":
            self._state = "closed"
        if self._state != "open":
            return
        self._state = "closing"
        await asyncio.shield(asyncio.get_running_loop().create_task(self._close()))

    async def _close(self) -> None:
        assert self._appender is not None
        await self._appender.drain()
        self._wake()
        for task in self._tasks:
            task.cancel()
        await self._appender.stop()
        await self._snapshots.close()
        await self._link.close()
        self._state = "closed"

    def _check(self) -> None:
        if self._failure is not None and self._state == "open":
            raise Poisoned(self._failure.cause)
        if self._state != "open":
            raise JournalError(f"the journal is {self._state}")

    def _poison(self, cause: BaseException | str) -> JournalError:
        if self._failure is None:
            _log.critical("%s: out of service: %s", self.names.stream, cause)
            self._failure = Poisoned(cause)
            self._wake()
        return Poisoned(self._failure.cause)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _connected(self) -> None:
        """The servers may be others, with another stream of the same name."""
        self._spawn(self._look_again())
        self._wake()

    async def _look_again(self) -> None:
        try:
            info = await self._stream.info()
            self._head.check(info)
        except (Unreachable, ApiError):
            pass
        except Changed as error:
            self._poison(error)

    # Appending

    async def append(self, parts: Sequence[bytes], expected_tail: int) -> int:
        self._check()
        assert self._appender is not None
        size = sum(map(len, parts))
        if size > self.max_batch_bytes:
            raise ValueError(f"batch of {size} bytes, at most {self.max_batch_bytes} fit")
        self._reserved = 0
        return await self._appender.submit(parts, size, expected_tail)

    def _stored(self, size: int, seconds: float) -> None:
        self._appends += 1
        self._appended_bytes += size
        self._bytes += size
        self._append_seconds += seconds
        # The servers' writes and syncs cannot be told apart from here.
        if self.on_write is not None:
            self.on_write(0.0)
        if self.on_sync is not None:
            self.on_sync(seconds)

    def _conflicted(self) -> None:
        self._conflicts += 1

    def reserve(self, nbytes: int, *, urgent: bool = False) -> bool:
        self._check()
        if self._reserved + nbytes > self._free_bytes:
            return False
        self._reserved += nbytes
        return True

    async def _watch_account(self) -> None:
        """What the account's limit leaves; without a limit the servers say when they are full."""
        while True:
            try:
                answer = await self._stream.account()
                limit = int(answer.get("limits", {}).get("max_storage", -1))
                used = int(answer.get("storage", 0))
                self._free_bytes = (
                    _ROOM if limit <= 0 else max(0, limit - used) // self.settings.replicas
                )
            except (JournalError, ValueError):
                pass
            await asyncio.sleep(ACCOUNT_S)

    # Reading

    async def tail(self) -> int:
        self._check()
        await self._guarded(self._head.look())
        return self._head.chain.batch

    async def _guarded(self, work: Coroutine[Any, Any, _T]) -> _T:
        try:
            return await work
        except Changed as error:
            raise self._poison(error) from error
        except ApiError as error:
            raise translate(error) from error

    async def _begin(self, after: int) -> tuple[Info, Chain]:
        """What the leader has, and a chain at `after` or before."""
        head = self._head
        info = await self._stream.info()
        head.check(info)
        if info.first != head.first and info.messages:
            await head.note_first(info)
        if after > head.chain.batch or info.first > head.chain.sequence + 1:
            info = await head.look()
        if after > head.chain.batch:
            tail = head.chain.batch
            raise ValueError(f"entries after {after} were asked for, the tail is {tail}")
        if after + 1 < head.oldest:
            raise Trimmed(after, head.oldest)
        self._bytes = info.bytes
        if after == head.chain.batch:
            return info, Chain(after, head.chain.digest, head.chain.sequence)
        return info, await head.start(after, info)

    async def read(self, after: int) -> AsyncIterator[Sequence[Entry]]:
        self._check()
        info, chain = await self._guarded(self._begin(after))
        if chain.sequence >= info.last:
            return
        begin = chain.sequence
        span = info.last - begin
        total = max(1, info.bytes * span // max(1, info.messages))
        done = 0
        async for entries in self._head.walk(chain, after, 1 << 62, info.last):
            self._check()
            after = entries[-1].sequence
            if self.on_progress is not None:
                done += sum(len(entry.payload) for entry in entries)
                ahead = done * (info.last - chain.sequence) // max(1, chain.sequence - begin)
                total = max(total, done) if ahead else max(1, done)
                self.on_progress(max(1, done), max(total, done, 1))
            yield entries

    async def follow(self, after: int) -> AsyncIterator[Sequence[Entry]]:
        self._check()
        await self._listen()
        hints = _Hints()
        self._followers.add(hints)
        try:
            info, chain = await self._guarded(self._begin(after))
            last = info.last
            while self._state == "open":
                self._check()
                hints.event.clear()
                try:
                    if chain.sequence < last:
                        async for entries in self._head.walk(chain, after, 1 << 62, last):
                            if after + 1 < self._head.oldest:
                                # What is at hand is a part of what was trimmed.
                                raise Trimmed(after, self._head.oldest)
                            after = entries[-1].sequence
                            yield entries
                            if self._state != "open":
                                return
                    entries, gap = await self._head.live(chain, hints.messages, hints.take, after)
                    if entries:
                        after = entries[-1].sequence
                        yield entries
                        continue
                    if gap > chain.sequence:
                        last = gap
                        continue
                    try:
                        async with asyncio.timeout(POLL_S):
                            await hints.event.wait()
                    except TimeoutError:
                        last = await self._last(chain, after)
                except (Unreachable, ApiError) as error:
                    _log.debug("%s: a follower waits: %s", self.names.stream, error)
                    await asyncio.sleep(0.1)
        finally:
            self._followers.discard(hints)
            if not self._followers and self._listening:
                # A leader would get everything back that it appends.
                self._listening = False
                await self._link.unlisten(self.names.stored)

    async def _last(self, chain: Chain, after: int) -> int:
        """The stream's last sequence, asked for; Trimmed if `chain` was overtaken."""
        info = await self._guarded(self._follow_info())
        if info.messages and info.first > chain.sequence + 1:
            await self._head.note_first(info)
            raise Trimmed(after, self._head.oldest)
        return info.last

    async def _follow_info(self) -> Info:
        info = await self._stream.info()
        self._head.check(info)
        return info

    async def _listen(self) -> None:
        """From now on the server tells of every message that it stores."""
        if not self._listening:
            self._listening = True
            await self._link.listen(self.names.stored, self._told)

    def _told(self, message: Msg) -> None:
        headers = message.headers or {}
        if headers.get("Nats-Stream") != self.names.stream:
            return
        stored = Stored(int(headers.get("Nats-Sequence", "0")), message.data)
        for hints in self._followers:
            hints.add(stored)

    def _wake(self) -> None:
        for hints in self._followers:
            hints.event.set()

    # The rest

    async def trim(self, before: int) -> None:
        self._check()
        await self._guarded(self._trim(before))

    async def _trim(self, before: int) -> None:
        """Never the last batch: it has the count, and what the next one continues."""
        head = self._head
        info = await head.look()
        before = min(before, head.chain.batch)
        if not info.messages or before <= head.oldest:
            return
        first = await head.first_of(before, info)
        await self._stream.purge(below=first)
        info = await self._stream.info()
        if info.first != head.first:
            await head.note_first(info)
        self._bytes = info.bytes

    def stats(self) -> JournalStats:
        head = self._head
        return JournalStats(
            bytes_on_disk=self._bytes,
            segments=1,
            entries=max(0, head.chain.batch - head.oldest + 1),
            appends=self._appends,
            appended_bytes=self._appended_bytes,
            conflicts=self._conflicts,
            syncs=self._appends,
            sync_seconds=self._append_seconds,
            free_bytes=self._free_bytes,
            snapshots=len(self._snapshots.sizes),
            snapshot_bytes=sum(self._snapshots.sizes.values()),
        )
