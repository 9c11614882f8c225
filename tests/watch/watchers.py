"""Watchers of all temperaments: slow ones, ones that cancel, ones whose connection breaks.

Each keeps a list of `Session`s for `tests.watch.checks`.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import grpc.aio

from kvstore.pb import rpc_pb2
from tests import wire
from tests.watch import checks
from tests.watch.checks import Session

ANSWER_SECONDS_MAX = 30.0


@dataclass
class Watcher:
    """One thing that somebody wants to watch, over all its sessions."""

    request: rpc_pb2.WatchCreateRequest
    sessions: list[Session] = field(default_factory=list)

    @property
    def session(self) -> Session:
        return self.sessions[-1]

    def new_session(self) -> Session:
        """The next session, from where the last one stopped."""
        request = rpc_pb2.WatchCreateRequest()
        request.CopyFrom(self.request)
        if self.sessions:
            last = self.sessions[-1]
            known = last.created_revision or last.request.start_revision
            request.start_revision = last.resume if known else 0
            if last.ended == checks.COMPACTED:
                request.start_revision = max(last.compact_revision, last.resume)
        self.sessions.append(Session(request))
        return self.sessions[-1]


@dataclass
class Temper:
    """How a stream behaves."""

    pause_s: float = 0.0
    """Longest pause after each message that was read."""
    cancel: float = 0.0
    """Chance, for each message read, that one watch is cancelled and made anew."""
    disconnect: float = 0.0
    """Chance, for each message read, that the stream is cut and opened again."""
    progress: float = 0.0
    """Chance, for each message read, of a manual progress request."""
    own_ids: bool = False


class WatchStream:
    """One gRPC stream with its watchers, and a task that reads it."""

    def __init__(
        self, endpoint: str, watchers: list[Watcher], temper: Temper, rng: random.Random
    ) -> None:
        self.endpoint = endpoint
        self.watchers = watchers
        self.temper = temper
        self.rng = rng
        self.faults: list[str] = []
        self.calm = False
        self.disconnects = 0
        self._client: wire.Client | None = None
        self._call: Any = None
        self._task: asyncio.Task[None] | None = None
        self._asked: deque[Watcher] = deque()
        self._by_id: dict[int, Watcher] = {}
        self._cancelling: set[int] = set()
        self._crossed: set[int] = set()
        self._next_id = 1000
        self._changed = asyncio.Event()
        self._progress_answers = 0

    async def start(self) -> None:
        """Opens the stream and waits until all watches are created."""
        await self._open()
        self._task = asyncio.create_task(self._run())
        async with asyncio.timeout(ANSWER_SECONDS_MAX):
            while self._asked:
                await self.changed()

    async def changed(self) -> None:
        """Waits for any message, or half a second."""
        self._changed.clear()
        try:
            await asyncio.wait_for(self._changed.wait(), 0.5)
        except TimeoutError:
            pass
        if self._task is not None and self._task.done():
            self._task.result()

    async def ask_progress(self, revision: int) -> bool:
        """Asks until a manual progress answer of at least `revision` comes; False: none did."""
        seen = self._progress_answers
        try:
            async with asyncio.timeout(ANSWER_SECONDS_MAX):
                while self._progress_answers == seen or self._last_progress < revision:
                    await self._send_progress()
                    await self.changed()
        except TimeoutError:
            return False
        return True

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._client is not None:
            await self._client.close()

    async def _open(self) -> None:
        self._client = wire.Client(self.endpoint)
        self._call = self._client.stream("Watch")
        self._by_id.clear()
        self._cancelling.clear()
        self._crossed.clear()
        self._asked.clear()
        for watcher in self.watchers:
            await self._create(watcher)

    async def _create(self, watcher: Watcher) -> None:
        session = watcher.new_session()
        if self.temper.own_ids:
            self._next_id += 1
            session.request.watch_id = self._next_id
        self._asked.append(watcher)
        await self._call.write(rpc_pb2.WatchRequest(create_request=session.request))

    async def _send_progress(self) -> None:
        request = rpc_pb2.WatchRequest(progress_request=rpc_pb2.WatchProgressRequest())
        try:
            await self._call.write(request)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            if self._task is not None and self._task.done():
                raise

    async def _run(self) -> None:
        while True:
            message = await self._call.read()
            if message is grpc.aio.EOF:
                status = f"{await self._call.code()}: {await self._call.details()}"
                raise AssertionError(f"the server ended a watch stream with {status}")
            await self._take(message)
            self._changed.set()
            if not self.calm:
                await self._be_difficult()

    async def _be_difficult(self) -> None:
        if self.temper.pause_s:
            await asyncio.sleep(self.rng.uniform(0, self.temper.pause_s))
        if self.rng.random() < self.temper.progress:
            await self._send_progress()
        if self._by_id and self.rng.random() < self.temper.cancel:
            number = self.rng.choice(sorted(self._by_id))
            if number not in self._cancelling:
                self._cancelling.add(number)
                await self._call.write(
                    rpc_pb2.WatchRequest(cancel_request=rpc_pb2.WatchCancelRequest(watch_id=number))
                )
        if self.rng.random() < self.temper.disconnect:
            self.disconnects += 1
            assert self._client is not None
            await self._client.close()
            for watcher in self.watchers:
                if watcher.session.ended == checks.OPEN:
                    watcher.session.ended = checks.CUT
            await self._open()

    async def _take(self, answer: rpc_pb2.WatchResponse) -> None:
        if answer.created:
            watcher = self._asked.popleft()
            wanted = watcher.session.request.watch_id
            if wanted and wanted != answer.watch_id:
                self.faults.append(f"asked for watch id {wanted}, got {answer.watch_id}")
            watcher.session.created_revision = answer.header.revision
            self._by_id[answer.watch_id] = watcher
            if not answer.canceled:
                return
        if answer.canceled:
            owner = self._by_id.pop(answer.watch_id, None)
            if owner is None:
                # Cancelled by compaction when our own request was under way: etcd answers both.
                if answer.watch_id not in self._crossed:
                    self.faults.append(f"cancelled, but not there: {answer}")
                self._crossed.discard(answer.watch_id)
                return
            watcher = owner
            session = watcher.session
            asked = answer.watch_id in self._cancelling
            self._cancelling.discard(answer.watch_id)
            session.ended = checks.CANCELLED
            if answer.compact_revision:
                session.ended = checks.COMPACTED
                session.compact_revision = answer.compact_revision
                if asked:
                    self._crossed.add(answer.watch_id)
            elif not asked:
                self.faults.append(f"cancelled without being asked: {answer} of {session}")
                return
            await self._create(watcher)
            return
        if answer.watch_id == -1:
            self._progress_answers += 1
            self._last_progress = answer.header.revision
            for number, watcher in self._by_id.items():
                if number not in self._cancelling:
                    watcher.session.responses.append(answer)
            return
        owner = self._by_id.get(answer.watch_id)
        if owner is None:
            self.faults.append(f"an event for no watch: {answer}")
            return
        owner.session.responses.append(answer)
