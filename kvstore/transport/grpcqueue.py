"""A transport on gRPC core's completion queue, without grpc.aio's coroutines in between.

It is the same gRPC core from the same wheel. grpc.aio accepts one call at a time and runs four
coroutines for it, which costs about 130 us of processor time a call and makes batches of one. Here
some dozens of calls may be accepted at once, an event is a function call, and one turn of the loop
takes in all events that are there: a call costs about 30 us, and batches are as large as the load
makes them.

The queue is polled by two. While nothing happens a thread waits in it, outside the interpreter
lock. Its first event wakes the event loop, and from then on the loop polls the queue itself,
without waiting, until it is empty; only then does the thread wait again. So one hand-over between
threads serves everything that comes in a busy period, and all code of ours runs on the loop.

What is used of gRPC are the classes under its synchronous server (`grpc._cython.cygrpc`). They are
not public, though older than grpc.aio and unchanged for years; `available` says whether they are
what this module expects, and `grpcio` is the transport to use when they are not.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from grpc._cython import cygrpc

from kvstore.transport.address import ListenUrl
from kvstore.transport.grpccore import (
    INTERNAL,
    NO_REQUEST,
    STOPPED,
    bare_address,
    bind_all,
    core_options,
    too_large,
)
from kvstore.transport.options import TransportOptions
from kvstore.transport.seam import Call, Code, Kind, Peer, Service, Stream, StreamHandler

log = logging.getLogger(__name__)

#: Calls that gRPC core may hand over before the loop has come to ask for the next.
ACCEPTS = 64
#: Events handled in one turn of the loop. A unary call has four of them, so that a turn takes in
#: about as many calls as make a good batch, and stays below a few milliseconds (I9).
EVENTS_PER_TURN = 128

_OK = int(Code.OK)
_NO_FLAGS = 0
_NEEDED = {
    "CompletionQueue": ("poll", "shutdown"),
    "Server": (
        "add_http2_port",
        "cancel_all_calls",
        "destroy",
        "register_completion_queue",
        "request_call",
        "shutdown",
        "start",
    ),
    "Call": ("peer", "start_server_batch"),
    "CallDetails": ("deadline", "method"),
    "CompletionType": ("operation_complete", "queue_shutdown", "queue_timeout"),
    "ReceiveCloseOnServerOperation": ("cancelled",),
    "ReceiveMessageOperation": ("message",),
    "SendInitialMetadataOperation": (),
    "SendMessageOperation": (),
    "SendStatusFromServerOperation": (),
}


def available() -> bool:
    """Does this gRPC have the classes that this module is written for?"""
    return all(
        hasattr(cygrpc, name) and all(hasattr(getattr(cygrpc, name), part) for part in parts)
        for name, parts in _NEEDED.items()
    )


class QueueTransport:
    """Serves a `Service` on all addresses of its options. Use on one event loop, once."""

    def __init__(self, options: TransportOptions) -> None:
        self.options = options
        self.bound: tuple[ListenUrl, ...] = ()
        """The addresses in use, with the ports that the operating system chose."""
        self.streams: set[_QueueStream] = set()
        self._service: Service
        self._server: Any = None
        self._pump: _Pump
        self._stopping = False
        self._down: asyncio.Future[None]

    async def start(self, service: Service) -> None:
        """Binds all addresses and serves. Raises OSError when one cannot be bound."""
        loop = asyncio.get_running_loop()
        self._service = service
        self._down = loop.create_future()
        self._pump = _Pump(loop, service)
        server = cygrpc.Server(tuple(core_options(self.options, service.max_request_bytes)), False)
        server.register_completion_queue(self._pump.queue)

        def add_port(target: str, credentials: Any) -> int:
            if credentials is None:
                return int(server.add_http2_port(target.encode()))
            return int(server.add_http2_port(target.encode(), credentials._credentials))

        self.bound = bind_all(add_port, self.options.listen, self.options.tls)
        server.start()
        self._server = server
        for _ in range(ACCEPTS):
            self._accept()
        self._pump.start()

    async def drain(self, grace_s: float) -> None:
        """Takes nothing new; calls under way have `grace_s` to finish; then closes all.

        Bidirectional streams never finish by themselves and are ended at once, behind what was
        sent on them, with etcd's Unavailable; other streams at half of the time.
        """
        if self._server is None or self._stopping:
            return
        self._stopping = True
        self._server.shutdown(self._pump.queue, self._on_shutdown)
        self._end_streams(lambda stream: stream.kind is Kind.BIDI_STREAM)
        # A list that is being streamed may come to its end; one that never ends may not use the
        # time up that calls have.
        later = asyncio.get_running_loop().call_later(
            grace_s / 2, self._end_streams, lambda stream: True
        )
        try:
            await asyncio.wait_for(asyncio.shield(self._down), grace_s)
        except TimeoutError:
            self._server.cancel_all_calls()
            await self._down
        later.cancel()
        self._server.destroy()
        await self._pump.stop()

    def _end_streams(self, which: Callable[[_QueueStream], bool]) -> None:
        for stream in list(self.streams):
            if which(stream):
                stream.close(Code.UNAVAILABLE, STOPPED)

    def _accept(self) -> None:
        queue = self._pump.queue
        self._server.request_call(queue, queue, self._on_call)

    def _on_shutdown(self, event: Any) -> None:
        self._down.set_result(None)

    def _on_call(self, event: Any) -> None:
        """A client has begun a call (or the server shuts down, and this was no call)."""
        if not event.success:
            return
        if not self._stopping:
            self._accept()
        details = event.call_details
        # Whatever bytes a client sends as the name of a method.
        method: str = details.method.decode("utf-8", "replace")
        core = event.call
        service = self._service
        kind = service.kind(method)
        if kind is Kind.UNARY:
            peer = _Peer(core, event.invocation_metadata)
            _QueueCall(method, peer, core, details.deadline, service, self._pump)
        elif kind is None:
            core.start_server_batch((cygrpc.ReceiveCloseOnServerOperation(_NO_FLAGS),), _ignore)
            _send_status(core, Code.UNIMPLEMENTED, service.unimplemented(method), first=True)
        else:
            peer = _Peer(core, event.invocation_metadata)
            stream = _QueueStream(method, kind, peer, core, self.options.stream_room_bytes)
            self.streams.add(stream)
            stream.open(service, self.streams.discard)


class _Pump:
    """Brings events from the completion queue to the loop, and calls to the service in batches.

    Every event's tag is a function that takes the event.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, service: Service) -> None:
        self.queue = cygrpc.CompletionQueue()
        self.calls: list[Call] = []
        """Calls of this turn, for the service."""
        self._loop = loop
        self._service = service
        self._may_wait = threading.Semaphore(1)
        self._stopped = False
        self._thread = threading.Thread(target=self._wait, name="grpc-queue", daemon=True)

    def start(self) -> None:
        self._thread.start()

    async def stop(self) -> None:
        """Ends the thread. No call may be open, and none comes after this."""
        self._stopped = True
        self.queue.shutdown()
        self._may_wait.release()
        await asyncio.to_thread(self._thread.join)

    def _wait(self) -> None:
        """The thread: waits for the first event of a busy period, and wakes the loop with it."""
        poll = self.queue.poll
        shutdown = cygrpc.CompletionType.queue_shutdown
        while True:
            self._may_wait.acquire()
            event = poll()
            if event.completion_type == shutdown:
                return
            try:
                self._loop.call_soon_threadsafe(self._turn, event)
            except RuntimeError:
                # The loop was closed without a drain: the process is ending.
                return

    def _turn(self, event: Any = None) -> None:
        """Handles what is there, up to a limit; the thread waits again once there is nothing."""
        if self._stopped:
            return
        poll = self.queue.poll
        complete = cygrpc.CompletionType.operation_complete
        handled = 0
        if event is None:
            event = poll(0)
        while event.completion_type == complete:
            try:
                event.tag(event)
            except Exception:
                log.exception("an event of gRPC's could not be handled")
            handled += 1
            if handled == EVENTS_PER_TURN:
                break
            event = poll(0)
        if self.calls:
            self._flush()
        if handled:
            # Others first: timers, the journal's answers.
            self._loop.call_soon(self._turn)
        else:
            self._may_wait.release()

    def _flush(self) -> None:
        calls, self.calls = self.calls, []
        try:
            self._service.on_calls(calls)
        except Exception:
            # Which of them the service kept for a later answer is not known. Internal leaves the
            # outcome of a write open, as an error has to (I7); a later answer is a no-op.
            log.exception("a batch of %d calls failed", len(calls))
            for call in calls:
                call.fail(Code.INTERNAL, INTERNAL)


def _ignore(event: Any) -> None:
    """The tag of what needs no answer."""


def _send_status(
    core: Any,
    code: Code,
    message: str,
    *,
    first: bool,
    tag: Callable[[Any], None] = _ignore,
) -> None:
    """Ends a call; `first`: nothing was sent on it before."""
    status = cygrpc.SendStatusFromServerOperation((), int(code), message.encode(), _NO_FLAGS)
    if first:
        core.start_server_batch((cygrpc.SendInitialMetadataOperation((), _NO_FLAGS), status), tag)
    else:
        core.start_server_batch((status,), tag)


class _Peer:
    """The other end."""

    __slots__ = ("_core", "_metadata")

    def __init__(self, core: Any, metadata: Sequence[tuple[str, str | bytes]]) -> None:
        self._core = core
        self._metadata = metadata

    @property
    def address(self) -> str:
        return bare_address(self._core.peer().decode())

    def metadata(self, key: str) -> str | None:
        for name, value in self._metadata:
            if name == key:
                return value if isinstance(value, str) else value.decode("latin-1")
        return None


class _QueueCall:
    """A unary call, from its acceptance to its answer."""

    __slots__ = ("_core", "_deadline", "_open", "_pump", "_service", "method", "peer", "request")

    def __init__(
        self, method: str, peer: Peer, core: Any, deadline: float, service: Service, pump: _Pump
    ) -> None:
        self.method = method
        self.peer = peer
        self.request = b""
        self._core = core
        self._deadline = deadline
        self._open = True
        self._service = service
        self._pump = pump
        core.start_server_batch((cygrpc.ReceiveCloseOnServerOperation(_NO_FLAGS),), self._on_close)
        core.start_server_batch((cygrpc.ReceiveMessageOperation(_NO_FLAGS),), self._on_message)

    def _on_close(self, event: Any) -> None:
        """It is answered, or the client is gone or its deadline has passed."""
        self._open = False

    def _on_message(self, event: Any) -> None:
        message: bytes | None = event.batch_operations[0].message()
        limit = self._service.max_request_bytes
        if message is None:
            self.fail(Code.INTERNAL, NO_REQUEST)
        elif len(message) > limit:
            self.fail(Code.RESOURCE_EXHAUSTED, too_large(len(message), limit))
        else:
            self.request = message
            self._pump.calls.append(self)

    @property
    def cancelled(self) -> bool:
        return not self._open or self._deadline < time.time()

    def finish(self, response: bytes) -> None:
        if self._open:
            self._open = False
            self._core.start_server_batch(
                (
                    cygrpc.SendInitialMetadataOperation((), _NO_FLAGS),
                    cygrpc.SendMessageOperation(response, _NO_FLAGS),
                    cygrpc.SendStatusFromServerOperation((), _OK, b"", _NO_FLAGS),
                ),
                _ignore,
            )

    def fail(self, code: Code, message: str) -> None:
        if self._open:
            self._open = False
            _send_status(self._core, code, message, first=True)


class _QueueStream:
    """One open stream. At most one message is being written and one read at any time.

    Reading pauses while there is no room to answer into, so that a client which sends without
    receiving fills its own flow-control window and not our memory (I8).
    """

    def __init__(self, method: str, kind: Kind, peer: Peer, core: Any, room_bytes: int) -> None:
        self.method = method
        self.kind = kind
        self.peer = peer
        self._core = core
        self._room_bytes = room_bytes
        self._queue: deque[bytes] = deque()
        self._queued_bytes = 0
        self._writing_bytes = -1
        """Length of the message that is being written; -1: none is."""
        self._first = True
        self._full = False
        self._paused = False
        self._open = True
        self._end: tuple[Code, str] | None = None
        self._request_bytes_max = 0
        self._handler: StreamHandler | None = None
        self._on_over: Callable[[_QueueStream], None] = _ignore

    def open(self, service: Service, on_over: Callable[[_QueueStream], None]) -> None:
        """Begins to serve it; `on_over` is called once it is over."""
        self._on_over = on_over
        self._request_bytes_max = service.max_request_bytes
        self._core.start_server_batch(
            (cygrpc.ReceiveCloseOnServerOperation(_NO_FLAGS),), self._on_close
        )
        try:
            handler = service.on_stream(self)
        except Exception:
            log.exception("%s: opening the stream failed", self.method)
            self._end = None
            self.close(Code.INTERNAL, INTERNAL)
            return
        if self._open:
            self._handler = handler
            self._read()
        else:
            # Closed before there was a handler to tell.
            self._handler = handler
            self._tell(handler.on_closed)

    # The service's side.

    @property
    def room(self) -> int:
        return self._room_bytes - self._queued_bytes

    def send(self, message: bytes) -> None:
        if not self._open or self._end is not None:
            return
        self._queued_bytes += len(message)
        if self._queued_bytes >= self._room_bytes:
            self._full = True
        if self._writing_bytes < 0:
            self._write(message)
        else:
            self._queue.append(message)

    def close(self, code: Code = Code.OK, message: str = "") -> None:
        if not self._open or self._end is not None:
            return
        self._end = (code, message)
        if self._writing_bytes < 0:
            self._finish()

    # gRPC core's side.

    def _write(self, message: bytes) -> None:
        self._writing_bytes = len(message)
        operation = cygrpc.SendMessageOperation(message, _NO_FLAGS)
        if self._first:
            self._first = False
            first = cygrpc.SendInitialMetadataOperation((), _NO_FLAGS)
            self._core.start_server_batch((first, operation), self._on_written)
        else:
            self._core.start_server_batch((operation,), self._on_written)

    def _on_written(self, event: Any) -> None:
        self._queued_bytes -= self._writing_bytes
        self._writing_bytes = -1
        if not self._open:
            return
        if not event.success:
            # The client is gone; `_on_close` is on its way.
            self._over()
            return
        if self._queue:
            self._write(self._queue.popleft())
        elif self._end is not None:
            self._finish()
            return
        if self._full and self._queued_bytes <= self._room_bytes // 2:
            self._full = False
            if self._end is None and self._handler is not None:
                self._tell(self._handler.on_room)
            if self._paused and self._open and self._end is None:
                self._paused = False
                self._read()

    def _finish(self) -> None:
        """Everything is written: the status ends it."""
        assert self._end is not None
        self._over()
        _send_status(self._core, *self._end, first=self._first)

    def _over(self) -> None:
        self._open = False
        self._queue.clear()
        self._on_over(self)
        if self._handler is not None:
            self._tell(self._handler.on_closed)

    def _on_close(self, event: Any) -> None:
        if self._open:
            self._over()

    def _read(self) -> None:
        self._core.start_server_batch(
            (cygrpc.ReceiveMessageOperation(_NO_FLAGS),), self._on_message
        )

    def _on_message(self, event: Any) -> None:
        handler = self._handler
        assert handler is not None
        if not self._open or self._end is not None:
            return
        message: bytes | None = event.batch_operations[0].message()
        one_request = self.kind is Kind.SERVER_STREAM
        limit = self._request_bytes_max
        if message is None:
            if one_request:
                self.close(Code.INTERNAL, NO_REQUEST)
            else:
                self._tell(handler.on_half_close)
        elif len(message) > limit:
            self.close(Code.RESOURCE_EXHAUSTED, too_large(len(message), limit))
        else:
            self._tell(handler.on_messages, (message,))
            if one_request:
                if self._open and self._end is None:
                    self._tell(handler.on_half_close)
            elif self._full:
                self._paused = True
            elif self._open and self._end is None:
                self._read()

    def _tell(self, method: Callable[..., None], *args: object) -> None:
        """Calls the handler; what it raises ends this stream and nothing else."""
        try:
            method(*args)
        except Exception:
            log.exception("%s: the stream's handler failed", self.method)
            self.close(Code.INTERNAL, INTERNAL)


def _check_protocols(call: _QueueCall, stream: _QueueStream) -> tuple[Call, Stream]:
    """For the type checker: what is handed to services is what the seam promises."""
    return call, stream
