"""The portable transport: grpc.aio (gRPC core under Python's asyncio) behind the seam.

grpc.aio runs one coroutine for each call, which costs about a hundred microseconds whatever is
done inside; that price stops here. Unary calls which arrived in one turn of the loop reach the
service as one batch, and the service sees neither coroutines nor futures.

A unary call whose client never sends its message stays open for as long as the client likes, since
grpc.aio sends no status for it. It costs what an idle stream costs.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import grpc
import grpc.aio

from kvstore.transport.address import ListenUrl
from kvstore.transport.grpccore import (
    NO_REQUEST,
    bare_address,
    bind_all,
    core_options,
    too_large,
)
from kvstore.transport.options import TransportOptions
from kvstore.transport.pieces import Pieces
from kvstore.transport.seam import (
    INTERNAL,
    STOPPED,
    Call,
    Code,
    Kind,
    Peer,
    Service,
    StreamHandler,
)

log = logging.getLogger(__name__)

#: How soon a dead accept loop is noticed.
ACCEPT_CHECK_S = 0.05
#: How long streams of a server that lost its accept loop may go on.
RETIRED_S_MAX = 3600.0

_STATUS = {int(code.value[0]): code for code in grpc.StatusCode}
_EOF = grpc.aio.EOF


class GrpcioTransport:
    """Serves a `Service` on all addresses of its options. Use on one event loop, once."""

    def __init__(self, options: TransportOptions) -> None:
        self.options = options
        self.bound: tuple[ListenUrl, ...] = ()
        """The addresses in use, with the ports that the operating system chose."""
        self._server: Any = None
        self._keeper: asyncio.Task[None] | None = None
        self._retired: dict[Any, asyncio.Task[None]] = {}
        self._streams: set[_GrpcStream] = set()

    async def start(self, service: Service) -> None:
        """Binds all addresses and serves. Raises OSError when one cannot be bound."""
        methods = self._methods = _Methods(service, self.options, self._streams)
        self._server, self.bound = await self._serve(methods, self.options.listen)
        self._keeper = asyncio.ensure_future(self._keep(methods))

    async def drain(self, grace_s: float) -> None:
        """Takes nothing new; calls under way have `grace_s` to finish; then closes all.

        Bidirectional streams never finish by themselves and are ended at once, behind what was
        sent on them, with etcd's Unavailable; other streams at half of the time.
        """
        if self._keeper is None:
            return
        self._keeper.cancel()
        self._methods.draining = True
        stops = [
            asyncio.ensure_future(server.stop(grace_s)) for server in (self._server, *self._retired)
        ]
        # The server must have begun to refuse before the streams go, else a quick client opens
        # its next one here.
        await asyncio.sleep(0)
        self._end_streams(lambda stream: stream.kind is Kind.BIDI_STREAM)
        # A list that is being streamed may come to its end; one that never ends may not use the
        # time up that calls have.
        later = asyncio.get_running_loop().call_later(
            grace_s / 2, self._end_streams, lambda stream: True
        )
        await asyncio.gather(self._keeper, *stops, *self._retired.values(), return_exceptions=True)
        later.cancel()

    def _end_streams(self, which: Callable[[_GrpcStream], bool]) -> None:
        for stream in list(self._streams):
            if which(stream):
                stream.close(Code.UNAVAILABLE, STOPPED)

    async def _serve(
        self, methods: _Methods, urls: Sequence[ListenUrl]
    ) -> tuple[Any, tuple[ListenUrl, ...]]:
        server = grpc.aio.server(
            handlers=(methods,),
            options=core_options(self.options, methods.request_bytes_max),
        )

        def add_port(target: str, credentials: Any) -> int:
            if credentials is None:
                return int(server.add_insecure_port(target))
            return int(server.add_secure_port(target, credentials))

        bound = bind_all(add_port, tuple(urls), self.options.tls)
        await server.start()
        return server, bound

    async def _keep(self, methods: _Methods) -> None:
        """Puts a new server in the place of one that stopped accepting.

        grpc.aio's accept loop ends for good when a request names a method that is not UTF-8: any
        client can send one. Calls and streams that are open live on in the old server, and its
        clients are told to connect anew.
        """
        while True:
            try:
                if await self._server.wait_for_termination(timeout=ACCEPT_CHECK_S):
                    continue
                log.error("the listener ended by itself")
            except Exception as error:
                log.warning("a malformed request stopped the listener: %r", error)
            old = self._server
            self._retired[old] = asyncio.ensure_future(self._retire(old))
            self._server = await self._serve_again(methods)
            log.warning("listening again on %s", ", ".join(map(str, self.bound)))

    async def _serve_again(self, methods: _Methods) -> Any:
        # The old server gives its ports up on a thread of gRPC core's, a moment later.
        while True:
            try:
                server, _ = await self._serve(methods, self.bound)
            except OSError as error:
                log.warning("cannot listen yet: %s", error)
                await asyncio.sleep(ACCEPT_CHECK_S)
            else:
                return server

    async def _retire(self, server: Any) -> None:
        try:
            await server.stop(RETIRED_S_MAX)
        finally:
            self._retired.pop(server, None)


class _Methods(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Finds the handler of a method; the one place that is called for each RPC."""

    def __init__(
        self, service: Service, options: TransportOptions, streams: set[_GrpcStream]
    ) -> None:
        self.request_bytes_max = service.max_request_bytes
        self.draining = False
        self._service = service
        self._options = options
        self._streams = streams
        self._batcher = _Batcher(service)
        # Only of methods that exist: a client must not be able to make it grow.
        self._handlers: dict[str, Any] = {}

    def service(self, handler_call_details: Any) -> Any:
        method: str = handler_call_details.method
        handler = self._handlers.get(method)
        if handler is None:
            handler = self._make(method)
        return handler

    def _make(self, method: str) -> Any:
        kind = self._service.kind(method)
        if kind is None:
            return grpc.stream_stream_rpc_method_handler(
                _refusal(self._service.unimplemented(method))
            )
        if kind is Kind.UNARY:
            serve = _unary(method, self.request_bytes_max, self._batcher)
            handler = grpc.unary_unary_rpc_method_handler(serve)
        else:
            handler = grpc.stream_stream_rpc_method_handler(self._stream(method, kind))
        self._handlers[method] = handler
        return handler

    def _stream(self, method: str, kind: Kind) -> Callable[[Any, Any], Awaitable[None]]:
        async def serve(_requests: Any, context: Any) -> None:
            stream = _GrpcStream(method, kind, context, self._options.stream_room_bytes)
            self._streams.add(stream)
            if self.draining and kind is Kind.BIDI_STREAM:
                # The server had taken it when the drain began.
                stream.close(Code.UNAVAILABLE, STOPPED)
            try:
                await stream.serve(self._service)
            finally:
                self._streams.discard(stream)

        return serve


def _refusal(message: str) -> Callable[[Any, Any], Awaitable[None]]:
    async def refuse(_requests: Any, context: Any) -> None:
        context.set_code(grpc.StatusCode.UNIMPLEMENTED)
        context.set_details(message)

    return refuse


def _unary(
    method: str, request_bytes_max: int, batcher: _Batcher
) -> Callable[[bytes, Any], Awaitable[bytes]]:
    async def serve(request: bytes, context: Any) -> bytes:
        if len(request) > request_bytes_max:
            context.set_code(grpc.StatusCode.RESOURCE_EXHAUSTED)
            context.set_details(too_large(len(request), request_bytes_max))
            return b""
        peer = _Peer(context)
        call = _GrpcCall(method, request, peer, context)
        batcher.add(call)
        try:
            return await call.answer
        finally:
            peer.release()

    return serve


class _Batcher:
    """Collects the unary calls of one turn of the loop into one batch."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._batch: list[_GrpcCall] = []

    def add(self, call: _GrpcCall) -> None:
        batch = self._batch
        if not batch:
            # Behind everything that this turn has ready: all of it goes into the batch.
            asyncio.get_running_loop().call_soon(self._flush)
        batch.append(call)

    def _flush(self) -> None:
        batch = self._batch
        self._batch = []
        try:
            self._service.on_calls(batch)
        except Exception:
            # Which of them the service kept for a later answer is not known. Internal leaves the
            # outcome of a write open, as an error has to (I7); a later answer is a no-op.
            log.exception("a batch of %d calls failed", len(batch))
            for call in batch:
                call.fail(Code.INTERNAL, INTERNAL)


class _Peer:
    """The other end. Must not touch gRPC core's call once that is over (it is freed)."""

    __slots__ = ("_address", "_context")

    def __init__(self, context: Any) -> None:
        self._context = context
        self._address: str | None = None

    @property
    def address(self) -> str:
        if self._address is None:
            if self._context is None:
                return "unknown"
            self._address = bare_address(self._context.peer())
        return self._address

    @property
    def common_name(self) -> str | None:
        names = self._certificate("x509_common_name")
        return names[0] if names else None

    @property
    def certificate_names(self) -> Sequence[str]:
        common = self._certificate("x509_common_name")
        return [*common, *self._certificate("x509_subject_alternative_name")]

    def _certificate(self, key: str) -> list[str]:
        if self._context is None:
            return []
        return [name.decode(errors="replace") for name in self._context.auth_context().get(key, ())]

    def metadata(self, key: str) -> str | None:
        if self._context is None:
            return None
        for name, value in self._context.invocation_metadata() or ():
            if name == key:
                return value if isinstance(value, str) else value.decode("latin-1")
        return None

    def release(self) -> None:
        self._context = None


class _GrpcCall:
    """A unary call; its answer is what the handler's coroutine waits for."""

    __slots__ = ("_context", "_pieces", "answer", "method", "peer", "request")

    def __init__(self, method: str, request: bytes, peer: Peer, context: Any) -> None:
        self.method = method
        self.request = request
        self.peer = peer
        self._context = context
        self._pieces = Pieces()
        self.answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    @property
    def cancelled(self) -> bool:
        # gRPC core cancels the handler, and with it the future, when the client cancels or the
        # deadline passes; the second test sees a deadline that core has not come to yet.
        return self.answer.cancelled() or self._context.time_remaining() == 0

    def write(self, parts: list[bytes]) -> None:
        if not self.answer.done():
            self._pieces.write(parts)

    def finish(self, response: bytes) -> None:
        if not self.answer.done():
            self.answer.set_result(self._pieces.joined(response))

    def fail(self, code: Code, message: str) -> None:
        if not self.answer.done():
            self._context.set_code(_STATUS[code])
            self._context.set_details(message)
            self.answer.set_result(b"")


class _GrpcStream:
    """One open stream: a queue that one coroutine writes out, and a task that reads.

    Reading pauses while there is no room to answer into, so that a client which sends without
    receiving fills its own flow-control window and not our memory (I8).
    """

    def __init__(self, method: str, kind: Kind, context: Any, room_bytes: int) -> None:
        self.method = method
        self.kind = kind
        self._peer = _Peer(context)
        self.peer: Peer = self._peer
        self._context = context
        self._room_bytes = room_bytes
        self._queue: deque[bytes] = deque()
        self._queued_bytes = 0
        self._full = False
        self._open = True
        self._end: tuple[Code, str] | None = None
        self._work = asyncio.Event()
        self._has_room = asyncio.Event()
        self._has_room.set()
        self._handler: StreamHandler | None = None

    @property
    def room(self) -> int:
        return self._room_bytes - self._queued_bytes

    def send(self, message: bytes) -> None:
        if not self._open or self._end is not None:
            return
        self._queue.append(message)
        self._queued_bytes += len(message)
        if self._queued_bytes >= self._room_bytes and not self._full:
            self._full = True
            self._has_room.clear()
        self._work.set()

    def close(self, code: Code = Code.OK, message: str = "") -> None:
        if not self._open or self._end is not None:
            return
        self._end = (code, message)
        self._work.set()

    async def serve(self, service: Service) -> None:
        """Runs the stream from its opening to its status."""
        # Known as long as the stream is, and asked for in log lines after it: fetch it now.
        _ = self._peer.address
        try:
            self._handler = service.on_stream(self)
        except Exception:
            log.exception("%s: opening the stream failed", self.method)
            self._open = False
            self._set_status(Code.INTERNAL, INTERNAL)
            return
        reader = asyncio.ensure_future(self._read(service.max_request_bytes))
        try:
            await self._write()
        finally:
            self._open = False
            self._queue.clear()
            reader.cancel()
            self._peer.release()
            self._tell(self._handler.on_closed)
        if self._end is not None:
            self._set_status(*self._end)

    def _set_status(self, code: Code, message: str) -> None:
        if code is not Code.OK:
            self._context.set_code(_STATUS[code])
            self._context.set_details(message)

    async def _write(self) -> None:
        queue = self._queue
        write = self._context.write
        while True:
            while queue:
                message = queue.popleft()
                try:
                    await write(message)
                except Exception as error:
                    # The client is gone; core's cancellation of this task may be on its way.
                    log.debug("%s: %s is gone: %r", self.method, self.peer.address, error)
                    return
                self._queued_bytes -= len(message)
                if self._full and self._queued_bytes <= self._room_bytes // 2:
                    self._full = False
                    self._has_room.set()
                    if self._handler is not None and self._end is None:
                        self._tell(self._handler.on_room)
            if self._end is not None:
                return
            self._work.clear()
            await self._work.wait()

    async def _read(self, request_bytes_max: int) -> None:
        handler = self._handler
        assert handler is not None
        read = self._context.read
        one_request = self.kind is Kind.SERVER_STREAM
        while self._listens():
            try:
                message = await read()
            except Exception as error:
                log.debug("%s: reading ended: %r", self.method, error)
                return
            if not self._listens():
                return
            if message is _EOF:
                if one_request:
                    self.close(Code.INTERNAL, NO_REQUEST)
                else:
                    self._tell(handler.on_half_close)
                return
            if len(message) > request_bytes_max:
                self.close(Code.RESOURCE_EXHAUSTED, too_large(len(message), request_bytes_max))
                return
            self._tell(handler.on_messages, (message,))
            if one_request:
                self._tell(handler.on_half_close)
                return
            if self._full:
                await self._has_room.wait()

    def _listens(self) -> bool:
        return self._open and self._end is None

    def _tell(self, method: Callable[..., None], *args: object) -> None:
        """Calls the handler; what it raises ends this stream and nothing else."""
        try:
            method(*args)
        except Exception:
            log.exception("%s: the stream's handler failed", self.method)
            self.close(Code.INTERNAL, INTERNAL)


def _check_protocols(call: _GrpcCall, batch: Sequence[_GrpcCall]) -> Sequence[Call]:
    """For the type checker: what is handed to services is what the seam promises."""
    return [call, *batch]
