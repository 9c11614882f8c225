"""Watch: one stream of many watches.

Everything that a stream sends goes through its one queue in order, so a progress notification of
revision R comes behind all events up to R (I4, R7). Events are read from each watcher's cursor
when the client has room, so a slow client costs a cursor and nothing more (I8).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from io import BytesIO

from google.protobuf.message import DecodeError

from kvstore.api import errors
from kvstore.api.headers import Headers
from kvstore.api.ranges import bounds
from kvstore.mvcc.store import Steps, Store
from kvstore.mvcc.wire import field_varint, varint
from kvstore.node.slicer import Slicer
from kvstore.pb import rpc_pb2 as pb
from kvstore.transport.seam import Code, Peer, Stream
from kvstore.watch.hub import Audience, EventChunk, Hub, Latest, Watcher, shape_of

NO_WATCH_ID = -1

HAS_LEADER = "hasleader"
"""etcd's metadata key of clients that rather have an error than no leader."""

JOIN_BYTES = 2 << 20
STEP_BYTES = 256 << 10
"""Messages above the first, as a huge revision makes, are put together in steps of the second."""

RESPONSE_BYTES = 1 << 20
"""Events of several revisions are put into one response up to this size."""

BACKLOG_BYTES_MAX = 8 << 20
"""Control answers that a client may leave unread before its stream is ended."""

MESSAGES_KEPT = 16
"""Messages of one chunk that are kept while its watchers are woken; each has its watch id."""

WATCHERS_PER_STREAM_MAX = 100_000

WATCHERS_PER_STEP = 50
"""Watchers of one stream that are served in one step, told about progress, or taken off (I9)."""

LOOKS_PER_STEP = 200
"""Watchers of one stream that are looked at, and no more than that, in one step (I9)."""

StartTimer = Callable[[Callable[[], None]], asyncio.TimerHandle]

COMPACTED_REASON = errors.COMPACTED.message
EMPTY_RANGE_REASON = "mvcc: watcher range is empty"
DUPLICATE_ID_REASON = "mvcc: duplicate watch ID provided on the WatchStream"


def wants_leader(peer: Peer) -> bool:
    """Whether a client asked to be told when there is no leader."""
    return peer.metadata(HAS_LEADER) == "true"


def _watch_id(watch_id: int) -> bytes:
    return field_varint(b"\x10", watch_id)


class WatchStream:
    """The server's side of one Watch stream (a seam StreamHandler)."""

    def __init__(
        self,
        stream: Stream,
        store: Store,
        hub: Hub,
        slicer: Slicer,
        headers: Headers,
        fragment_bytes: int,
        start_timer: StartTimer,
        on_closed: Callable[[WatchStream], None],
    ) -> None:
        """`start_timer` calls once, when it is time for progress notifications again."""
        self._stream = stream
        self._store = store
        self._hub = hub
        self._slicer = slicer
        self._headers = headers
        self._fragment_bytes = fragment_bytes
        self._start_timer = start_timer
        self._on_closed = on_closed
        self._audience = Audience(self._wake)
        self._watchers: dict[int, Watcher] = {}
        # Ids of watches that compaction cancelled: as in etcd taken until the client cancels too.
        self._overtaken: set[int] = set()
        self._next_id = 0
        self._due: deque[Watcher] = deque()
        # Those that start above the watermark of when they were created.
        self._later: dict[Watcher, None] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._pumping = False
        self._progress_wanted = False
        self._awaits_marks = False
        self._closed = False
        self.needs_leader = wants_leader(stream.peer)

    # -- from the client -------------------------------------------------------------------

    def on_messages(self, messages: Sequence[bytes]) -> None:
        """Create, cancel and progress requests, in order."""
        for raw in messages:
            try:
                request = pb.WatchRequest.FromString(raw)
            except DecodeError as error:
                malformed = errors.malformed_message(error)
                self._stream.close(malformed.code, malformed.message)
                return
            match request.WhichOneof("request_union"):
                case "create_request":
                    self._create(request.create_request)
                case "cancel_request":
                    self._cancel(request.cancel_request.watch_id)
                case "progress_request":
                    self._progress_wanted = bool(self._watchers)
                    self._pump()
                case _:
                    pass
        if -self._stream.room > BACKLOG_BYTES_MAX:
            too_many = errors.TOO_MANY_REQUESTS
            self._stream.close(too_many.code, too_many.message)

    def on_half_close(self) -> None:
        """The client asks for nothing more, and still listens."""

    def on_room(self) -> None:
        """The client caught up a bit."""
        self._pump()

    def on_closed(self) -> None:
        """The stream is over.

        Its watchers hear of nothing from now on, and are taken off the index in slices: there may
        be a hundred thousand, and as many streams may end at once (I9).
        """
        self._closed = True
        self._audience.end()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._watchers or self._due:
            self._slicer.later(self._leave_steps())
        self._on_closed(self)

    def _leave_steps(self) -> Steps[None]:
        watchers, due = self._watchers, self._due
        while watchers or due:
            for _ in range(WATCHERS_PER_STEP):
                if due:
                    due.popleft()
                if watchers:
                    _, watcher = watchers.popitem()
                    self._later.pop(watcher, None)
                    self._hub.remove(watcher)
            if watchers or due:
                yield

    def end(self, code: Code, message: str) -> None:
        """End the stream from this side."""
        self._stream.close(code, message)

    def _create(self, request: pb.WatchCreateRequest) -> None:
        key = request.key or b"\x00"
        end = request.range_end
        if request.start_revision < 0:
            self._refuse(COMPACTED_REASON)
            return
        if end and end != b"\x00" and key >= end:
            self._refuse(EMPTY_RANGE_REASON)
            return
        watch_id = request.watch_id
        if watch_id == 0:
            while self._is_taken(self._next_id):
                self._next_id += 1
            watch_id = self._next_id
            self._next_id += 1
        elif self._is_taken(watch_id):
            self._refuse(DUPLICATE_ID_REASON)
            return
        if len(self._watchers) + len(self._overtaken) >= WATCHERS_PER_STREAM_MAX:
            self._refuse(errors.TOO_MANY_REQUESTS.message)
            return
        filters = request.filters
        shape = shape_of(
            request.prev_kv,
            pb.WatchCreateRequest.NOPUT in filters,
            pb.WatchCreateRequest.NODELETE in filters,
        )
        watcher = Watcher(
            watch_id,
            shape,
            request.start_revision,
            self._audience,
            fragment=request.fragment,
            progress=request.progress_notify,
        )
        self._watchers[watch_id] = watcher
        if watcher.start > self._store.revision:
            self._later[watcher] = None
        if watcher.progress and self._timer is None:
            self._timer = self._start_timer(self._progress_due)
        self._control(watch_id, b"\x18\x01")
        low, high = bounds(key, end)
        self._hub.add(watcher, low, high, single=not end)

    def _is_taken(self, watch_id: int) -> bool:
        return watch_id in self._watchers or watch_id in self._overtaken

    def _cancel(self, watch_id: int) -> None:
        watcher = self._watchers.pop(watch_id, None)
        if watcher is not None:
            self._later.pop(watcher, None)
            self._hub.remove(watcher)
        elif watch_id in self._overtaken:
            self._overtaken.discard(watch_id)
        else:
            return
        self._control(watch_id, b"\x20\x01")
        if self._progress_wanted:
            # It may have been the one that kept the others' progress from being told.
            self._pump()

    def _refuse(self, reason: str) -> None:
        text = reason.encode()
        self._control(NO_WATCH_ID, b"\x18\x01\x20\x01\x32%b%b" % (varint(len(text)), text))

    def _control(self, watch_id: int, fields: bytes) -> None:
        self._stream.send(
            b"%b%b%b" % (self._headers.at(self._store.revision), _watch_id(watch_id), fields)
        )

    # -- to the client ---------------------------------------------------------------------

    def _wake(self, watcher: Watcher) -> None:
        """There is something for a watcher.

        A few events go out at once; more of them in steps of their own, for many are woken in one.
        """
        if self._pumping:
            self._due.append(watcher)
            return
        if not self._due and self._stream.room > 0:
            latest = self._hub.latest(watcher)
            if latest is not None and latest.chunk.size < self._fragment_bytes:
                self._send_latest(watcher, latest)
                if self._progress_wanted:
                    self._pump()
                return
        self._due.append(watcher)
        self._pumping = True
        self._slicer.later(self._pump_steps(), self._pumped)

    def _send_latest(self, watcher: Watcher, latest: Latest) -> None:
        chunk = latest.chunk
        if chunk.count:
            watcher.quiet = False
            self._hub.events += chunk.count
            message = latest.messages.get(watcher.id)
            if message is None:
                message = b"".join((self._head(watcher), *chunk.parts))
                if len(latest.messages) < MESSAGES_KEPT:
                    latest.messages[watcher.id] = message
            self._stream.send(message)
        self._hub.caught_up(watcher, chunk.last_revision)

    def _pump(self) -> None:
        if not self._pumping and not self._closed:
            self._pumping = True
            self._slicer.start(self._pump_steps(), self._pumped)

    def _pumped(self, result: None, error: BaseException | None) -> None:
        self._pumping = False
        if error is not None:
            self._stream.close(Code.INTERNAL, "watch failed")
            raise error

    def _pump_steps(self) -> Steps[None]:
        """Send what is due, as long as there is room; then that all was sent, if that is asked."""
        while True:
            yield from self._send_steps()
            if not self._may_answer() or self._answer_progress():
                return
            yield

    def _send_steps(self) -> Steps[None]:
        due, stream = self._due, self._stream
        served = 0
        while due and stream.room > 0 and not self._over():
            watcher = due.popleft()
            if not watcher.due:
                continue
            yield from self._serve_steps(watcher)
            served += 1
            again = self._wants(watcher)
            if again:
                due.append(watcher)
            if again or served % WATCHERS_PER_STEP == 0:
                yield

    def _serve_steps(self, watcher: Watcher) -> Steps[None]:
        """Send the next events of a watcher that is due, or that it was overtaken by compaction."""
        hub = self._hub
        if hub.is_compacted(watcher):
            self._cancel_compacted(watcher)
            return
        chunk = yield from hub.read_steps(watcher, RESPONSE_BYTES)
        if not self._wants(watcher) or hub.is_compacted(watcher):
            return
        if chunk.count:
            watcher.quiet = False
            message = yield from self._message_steps(watcher, chunk)
            if not self._wants(watcher):
                return
            self._send_events(watcher, chunk, message)
        hub.caught_up(watcher, chunk.last_revision)

    def _over(self) -> bool:
        return self._closed

    def _wants(self, watcher: Watcher) -> bool:
        """Whether a watch is still there, and has something to come."""
        return watcher.due and not self._closed

    def _head(self, watcher: Watcher) -> bytes:
        return self._headers.at(self._store.revision) + _watch_id(watcher.id)

    def _message_steps(self, watcher: Watcher, chunk: EventChunk) -> Steps[bytes]:
        """The events as one message, or nothing if they go in fragments; long ones in slices."""
        if watcher.fragment and chunk.size >= self._fragment_bytes and chunk.count > 1:
            return b""
        if chunk.size <= JOIN_BYTES:
            return b"".join((self._head(watcher), *chunk.parts))
        out = BytesIO()
        out.write(self._head(watcher))
        pending = 0
        for part in chunk.parts:
            out.write(part)
            pending += len(part)
            if pending >= STEP_BYTES:
                pending = 0
                yield
        return out.getvalue()

    def _send_events(self, watcher: Watcher, chunk: EventChunk, message: bytes) -> None:
        self._hub.events += chunk.count
        if message:
            self._stream.send(message)
            return
        # In one step: the client takes whatever comes between two fragments for the next one.
        head = self._head(watcher)
        for parts, last in _fragments(chunk.parts, self._fragment_bytes):
            self._stream.send(b"".join((head, b"" if last else b"\x38\x01", *parts)))

    def _cancel_compacted(self, watcher: Watcher) -> None:
        """The watcher was overtaken by compaction (I4). etcd's header has no revision here."""
        del self._watchers[watcher.id]
        self._later.pop(watcher, None)
        self._overtaken.add(watcher.id)
        self._hub.remove(watcher)
        self._stream.send(
            b"%b%b\x20\x01\x28%b"
            % (
                self._headers.without_revision,
                _watch_id(watcher.id),
                varint(self._store.compact_revision),
            )
        )

    # -- progress --------------------------------------------------------------------------

    def _may_answer(self) -> bool:
        return (
            self._progress_wanted and not self._due and self._stream.room > 0 and not self._over()
        )

    def _answer_progress(self) -> bool:
        """Answer a manual request if every watcher has seen all up to the watermark (R7).

        Nothing is due: whoever is has its place in the queue. So there is nothing to look for in a
        hundred thousand watchers (I9), but those that start in the future and, while there are some
        that were not marked yet since the watermark moved, those. False: look further in
        another step.
        """
        revision, later = self._store.revision, self._later
        for _ in range(LOOKS_PER_STEP):
            if not later:
                break
            watcher = later.popitem()[0]
            if watcher.start > revision:
                later[watcher] = None
                # The watermark may get there without anything for this stream.
                self._ask_again()
                return True
        if later:
            return False
        hub, watchers = self._hub, self._watchers
        if hub.is_marking and watchers:
            if len(watchers) > LOOKS_PER_STEP:
                self._ask_again()
                return True
            if any(hub.is_behind(watcher) for watcher in watchers.values()):
                # It is about to be woken, and then this is asked again.
                return True
        self._progress_wanted = False
        if watchers:
            self._control(NO_WATCH_ID, b"")
        return True

    def _ask_again(self) -> None:
        """Look at a manual request again when this publication, or the next, has reached all."""
        if not self._awaits_marks:
            self._awaits_marks = True
            self._hub.when_marked(self._marked)

    def _marked(self) -> None:
        self._awaits_marks = False
        self._pump()

    def _progress_due(self) -> None:
        """The timer has come round."""
        # Many may come round together, so even the first step waits for its turn.
        self._slicer.later(self._notify_steps(), self._notified)

    def _notified(self, result: None, error: BaseException | None) -> None:
        if not self._closed:
            self._timer = self._start_timer(self._progress_due)
        if error is not None:
            raise error

    def _notify_steps(self) -> Steps[None]:
        """Tell watchers that asked for it how far they are.

        As in etcd, one that got events since the last time is passed over, and so is one that
        starts in the future. What is told is true in the step that tells it (I4).
        """
        for at, watcher in enumerate(list(self._watchers.values()), 1):
            if self._over():
                return
            if watcher.progress and watcher.group is not None:
                done = not self._hub.is_behind(watcher) and watcher.start <= self._store.revision
                if watcher.quiet and done and self._stream.room > 0:
                    self._control(watcher.id, b"")
                watcher.quiet = True
            if at % WATCHERS_PER_STEP == 0:
                yield


def _fragments(parts: list[bytes], size_max: int) -> list[tuple[list[bytes], bool]]:
    """Cut events into messages below `size_max`, one part at least; marks the last."""
    cut: list[list[bytes]] = [[]]
    size = 0
    for part in parts:
        if cut[-1] and size + len(part) >= size_max:
            cut.append([])
            size = 0
        cut[-1].append(part)
        size += len(part)
    return [(part, at == len(cut) - 1) for at, part in enumerate(cut)]
