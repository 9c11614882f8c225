"""Replays a recording against any endpoint and says where the answers differ.

Ignored: cluster and member ids, raft terms, and what Status says of version and sizes. Lease ids
are the server's own and are mapped. Everything else has to be equal, field by field.

Watches are compared as sequences of events. A recorded watch ended when the recording did; here it
goes on until the whole recording was replayed, so what it brings beyond the recorded events has to
be what the recorded writes say.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import grpc.aio

from kvstore.pb import kv_pb2, rpc_pb2
from tests import wire
from tests.traces.recording import Recording, Step, Watch

#: Added to each TTL, so that no lease ends during a replay on a slow machine.
MORE_TTL_S = 3600
ANSWER_SECONDS_MAX = 30.0
#: kube-apiserver asks again this often; etcd drops a request while a watcher is behind.
PROGRESS_AGAIN_SECONDS = 0.1
#: A replay that differs more often has gone off the rails and stops.
DIFFERENCES_MAX = 100


def _blank_header(header: rpc_pb2.ResponseHeader) -> None:
    for name in ("cluster_id", "member_id", "raft_term"):
        header.ClearField(name)


def comparable(message: Any) -> Any:
    """A copy without what is the server's own. Leases are left alone."""
    copy = type(message)()
    copy.CopyFrom(message)
    _blank(copy)
    return copy


def _blank(message: Any) -> None:
    if isinstance(message, rpc_pb2.ResponseHeader):
        _blank_header(message)
        return
    if isinstance(message, rpc_pb2.StatusResponse):
        for field in list(message.DESCRIPTOR.fields):
            if field.name not in ("header", "errors", "isLearner"):
                message.ClearField(field.name)
    for field, value in message.ListFields():
        if field.message_type is not None:
            for item in value if field.is_repeated else [value]:
                _blank(item)


class LeaseIds:
    """Recorded lease id -> the id that this server gave."""

    def __init__(self) -> None:
        self._ids = {0: 0}

    def learn(self, recorded: int, here: int) -> None:
        self._ids[recorded] = here

    def translate(self, message: Any) -> Any:
        """A copy in which each ``lease`` field names this server's lease."""
        copy = type(message)()
        copy.CopyFrom(message)
        self._translate(copy)
        return copy

    def _translate(self, message: Any) -> None:
        if isinstance(message, kv_pb2.KeyValue | rpc_pb2.PutRequest):
            message.lease = self._ids[message.lease]
            return
        for field, value in message.ListFields():
            if field.message_type is not None:
                for item in value if field.is_repeated else [value]:
                    self._translate(item)


class LiveWatch:
    """One watch of the replay, across reconnections."""

    def __init__(self, recorded: Watch, metadata: list[tuple[str, str]]) -> None:
        self.recorded = recorded
        self.metadata = metadata
        self.events: list[kv_pb2.Event] = []
        self.bookmarks: list[tuple[int, int]] = []  # progress revision, events before it
        self.faults: list[str] = []
        self.next_revision = recorded.request.start_revision
        self.created: rpc_pb2.WatchResponse | None = None
        self._call: Any = None
        self._reader: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()

    @property
    def name(self) -> str:
        return f"watch {self.recorded.stream} of {self.recorded.request.key!r}"

    async def open(self, client: wire.Client) -> None:
        """Creates the watch, from where it stood if it was open before."""
        request = rpc_pb2.WatchCreateRequest()
        request.CopyFrom(self.recorded.request)
        request.start_revision = self.next_revision
        self.created = None
        self._call = client.stream("Watch", metadata=self.metadata)
        await self._call.write(rpc_pb2.WatchRequest(create_request=request))
        self._reader = asyncio.create_task(self._read(self._call))
        await self._until(lambda: self.created is not None, "the created answer")
        assert self.created is not None
        if not self.next_revision:
            self.next_revision = self.created.header.revision + 1

    async def progress(self) -> rpc_pb2.WatchResponse:
        """Asks for progress until there is an answer, and returns it."""
        before = len(self.bookmarks)
        async with asyncio.timeout(ANSWER_SECONDS_MAX):
            while len(self.bookmarks) == before:
                await self._call.write(
                    rpc_pb2.WatchRequest(progress_request=rpc_pb2.WatchProgressRequest())
                )
                try:
                    await asyncio.wait_for(
                        self._until(lambda: len(self.bookmarks) > before, "progress"),
                        PROGRESS_AGAIN_SECONDS,
                    )
                except TimeoutError:
                    continue
        return self.last_progress

    async def close(self) -> None:
        if self._call is not None:
            self._call.cancel()
        if self._reader is not None:
            await asyncio.gather(self._reader, return_exceptions=True)

    async def _read(self, call: Any) -> None:
        async for answer in wire.messages(call):
            if answer.created:
                self.created = answer
            elif answer.canceled:
                self.faults.append(f"cancelled: {answer}")
            elif answer.events:
                if answer.events[0].kv.mod_revision < self.next_revision:
                    self.faults.append(f"events before {self.next_revision}: {answer}")
                if answer.header.revision < answer.events[-1].kv.mod_revision:
                    self.faults.append(f"header is older than the events: {answer}")
                self.events.extend(answer.events)
                self.next_revision = answer.events[-1].kv.mod_revision + 1
            else:
                revision = answer.header.revision
                if self.bookmarks and revision < self.bookmarks[-1][0]:
                    self.faults.append(f"progress went back to {revision}")
                self.bookmarks.append((revision, len(self.events)))
                self.last_progress = answer
            self._changed.set()

    async def _until(self, done: Callable[[], bool], what: str) -> None:
        try:
            async with asyncio.timeout(ANSWER_SECONDS_MAX):
                while not done():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise TimeoutError(f"{self.name}: {what} did not come") from None


class Replay:
    """One replay. `differences` says, in words, what was not as recorded; empty is a pass."""

    def __init__(self, recording: Recording, endpoint: str) -> None:
        self.recording = recording
        self.endpoint = endpoint
        self.differences: list[str] = []
        self.leases = LeaseIds()
        self.watches: dict[int, LiveWatch] = {}
        self.log: list[kv_pb2.Event] = []
        self._latest: dict[bytes, kv_pb2.KeyValue] = {}

    async def run(
        self,
        *,
        break_at: int | None = None,
        restart: Callable[[], Awaitable[None]] | None = None,
    ) -> list[str]:
        """Replays everything; at revision `break_at` calls `restart`, then goes on.

        Returns the differences.
        """
        client = wire.Client(self.endpoint)
        broken = False
        try:
            for revision, steps in _by_revision(self.recording.steps):
                if break_at is not None and revision > break_at and not broken:
                    broken = True
                    assert restart is not None
                    await self._close_watches()
                    await client.close()
                    await restart()
                    client = wire.Client(self.endpoint)
                    await asyncio.gather(*(w.open(client) for w in self.watches.values()))
                for step in steps:
                    await self._step(client, step)
                if len(self.differences) >= DIFFERENCES_MAX:
                    return self.differences
            for watch in self.watches.values():
                answer = await watch.progress()
                self._compare(watch.name, self.recording.last_revision, answer.header.revision)
        finally:
            await self._close_watches()
            await client.close()
        for watch in self.watches.values():
            self._check_watch(watch)
        return self.differences

    async def _close_watches(self) -> None:
        await asyncio.gather(*(watch.close() for watch in self.watches.values()))

    def _compare(self, what: str, expected: Any, got: Any) -> None:
        if expected != got:
            self.differences.append(f"{what}\nexpected {expected}\ngot {got}")

    async def _step(self, client: wire.Client, step: Step) -> None:
        if step.method == "Watch":
            await self._watch_step(client, step)
            return
        request = self.leases.translate(step.request)
        if step.method == "LeaseGrant":
            request.TTL += MORE_TTL_S
        what = f"line {step.line}: {step.method} at revision {step.revision}\n{request}"
        try:
            answer = await client.call(step.method, request, metadata=step.metadata)
        except grpc.aio.AioRpcError as error:
            self._compare(what, (step.code, step.message), (error.code(), error.details()))
            return
        if step.answer is None:
            self._compare(what, (step.code, step.message), answer)
            return
        if step.method == "LeaseGrant":
            self.leases.learn(step.answer.ID, answer.ID)
            answer.ID = step.answer.ID
            answer.TTL -= MORE_TTL_S
        expected = self.leases.translate(step.answer)
        self._compare(what, comparable(expected), comparable(answer))
        if step.method == "Txn" and step.rank == 0:
            self._write_down(request, answer)

    async def _watch_step(self, client: wire.Client, step: Step) -> None:
        if step.answer.created:
            recorded = self.recording.watches[step.stream]
            watch = self.watches[step.stream] = LiveWatch(recorded, step.metadata)
            await watch.open(client)
            answer = watch.created
        else:
            watch = self.watches[step.stream]
            answer = await watch.progress()
        what = f"line {step.line}: {watch.name} at revision {step.revision}"
        self._compare(what, comparable(step.answer), comparable(answer))

    def _write_down(self, request: rpc_pb2.TxnRequest, answer: rpc_pb2.TxnResponse) -> None:
        """Keeps the events of a write, for what watches bring beyond the recorded events."""
        revision = answer.header.revision
        (operation,) = request.success if answer.succeeded else request.failure
        event = kv_pb2.Event()
        if operation.WhichOneof("request") == "request_put":
            put = operation.request_put
            before = self._latest.get(put.key)
            if before is not None:
                event.prev_kv.CopyFrom(before)
            event.kv.CopyFrom(
                kv_pb2.KeyValue(
                    key=put.key,
                    value=put.value,
                    lease=put.lease,
                    create_revision=before.create_revision if before else revision,
                    mod_revision=revision,
                    version=before.version + 1 if before else 1,
                )
            )
            self._latest[put.key] = event.kv
        else:
            event.type = kv_pb2.Event.DELETE
            event.kv.key = operation.request_delete_range.key
            event.kv.mod_revision = revision
            event.prev_kv.CopyFrom(self._latest.pop(event.kv.key))
        self.log.append(event)

    def _check_watch(self, watch: LiveWatch) -> None:
        request = watch.recorded.request
        expected = [self.leases.translate(event) for event in watch.recorded.events]
        after = expected[-1].kv.mod_revision if expected else max(1, request.start_revision - 1)
        for event in self.log:
            in_range = request.key <= event.kv.key < (request.range_end or request.key + b"\x00")
            if event.kv.mod_revision > after and in_range:
                copy = kv_pb2.Event()
                copy.CopyFrom(event)
                if not request.prev_kv:
                    copy.ClearField("prev_kv")
                expected.append(copy)
        self._compare(f"{watch.name}: number of events", len(expected), len(watch.events))
        for n, (left, right) in enumerate(zip(expected, watch.events, strict=False)):
            self._compare(f"{watch.name}: event {n}", left, right)
        for revision, count in watch.bookmarks:
            due = sum(event.kv.mod_revision <= revision for event in expected)
            if count < due:
                self.differences.append(
                    f"{watch.name}: progress {revision} came after {count} of {due} events"
                )
        self.differences.extend(f"{watch.name}: {fault}" for fault in watch.faults)


def _by_revision(steps: list[Step]) -> list[tuple[int, list[Step]]]:
    grouped: dict[int, list[Step]] = {}
    for step in steps:
        grouped.setdefault(step.revision, []).append(step)
    return list(grouped.items())
