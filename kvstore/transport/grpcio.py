"""The portable transport: grpc.aio (gRPC core under Python's asyncio) behind the seam.

grpc.aio runs one coroutine for each call, which costs about a hundred microseconds whatever is
done inside; that price stops here. Unary calls which arrived in one turn of the loop reach the
service as one batch, and the service sees neither coroutines nor futures.

Every method is served as a request *stream*, the unary ones too: gRPC core then leaves the
counting of messages to this module. As a unary method, a call without a message would stay open
for as long as its client likes, since grpc.aio sends no status for it.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any
from urllib.parse import unquote

import grpc
import grpc.aio

from kvstore.transport.address import ListenUrl
from kvstore.transport.options import Tls, TransportOptions
from kvstore.transport.seam import Call, Code, Kind, Peer, Service, StreamHandler

log = logging.getLogger(__name__)

#: What etcd's clients read as "this member goes away, try another" (rpctypes.ErrGRPCStopped).
STOPPED = "etcdserver: server stopped"
#: grpc-go's words for a call that ends without a request.
NO_REQUEST = "cardinality violation: received no request message from non-client-streaming RPC"
INTERNAL = "internal error; the server's log has the details"

#: gRPC core refuses a message of this many times our own limit before it is read, so that a
#: length field of gigabytes costs nothing (I8). Between the two limits the message is read and
#: refused here, in grpc-go's words.
CORE_LIMIT_FACTOR = 4

#: Calls that gRPC core keeps for the loop before it starts to cancel some at random, and before
#: it cancels all. Its own numbers, 1000 and 3000, are less than one burst of honest clients, which
#: cannot know what became of a cancelled call. Each costs about 7 KB (I8).
CALLS_WAITING_MAX = 20_000
CALLS_WAITING_HARD_MAX = 40_000

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
        methods = _Methods(service, self.options, self._streams)
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
        options = self.options
        server = grpc.aio.server(
            handlers=(methods,), options=_core_options(options, methods.request_bytes_max)
        )
        credentials = None
        bound = []
        for url in urls:
            if url.secure and credentials is None:
                if options.tls is None:
                    raise ValueError(f"{url} needs a certificate and a key")
                credentials = _credentials(options.tls)
            bound.append(_bind(server, url, credentials if url.secure else None))
        await server.start()
        return server, tuple(bound)

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


def _core_options(options: TransportOptions, request_bytes_max: int) -> list[tuple[str, int]]:
    core: list[tuple[str, int]] = [
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", CORE_LIMIT_FACTOR * request_bytes_max),
        ("grpc.max_send_message_length", -1),
        ("grpc.server.max_pending_requests", CALLS_WAITING_MAX),
        ("grpc.server.max_pending_requests_hard_limit", CALLS_WAITING_HARD_MAX),
        ("grpc.max_metadata_size", options.metadata_soft_bytes),
        ("grpc.absolute_max_metadata_size", options.metadata_hard_bytes),
        # etcd's server has no decompressor: a compressed request is Unimplemented (and cannot be
        # a decompression bomb). 1 is the bit of "identity".
        ("grpc.compression_enabled_algorithms_bitset", 1),
        # Pings are allowed on connections without calls, which etcd refuses (it closes them):
        # nobody depends on being refused.
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", int(options.keepalive_min_time_s * 1000)),
    ]
    if options.keepalive_interval_s > 0 and options.keepalive_timeout_s > 0:
        core.append(("grpc.keepalive_time_ms", _milliseconds(options.keepalive_interval_s)))
        core.append(("grpc.keepalive_timeout_ms", _milliseconds(options.keepalive_timeout_s)))
    if 0 < options.concurrent_streams_max < 2**31:
        core.append(("grpc.max_concurrent_streams", options.concurrent_streams_max))
    return core


def _milliseconds(seconds: float) -> int:
    return min(int(seconds * 1000), 2**31 - 1)


def _credentials(tls: Tls) -> Any:
    roots = tls.trusted_ca_file.read_bytes() if tls.trusted_ca_file else None
    return grpc.ssl_server_credentials(
        [(tls.key_file.read_bytes(), tls.cert_file.read_bytes())],
        root_certificates=roots,
        require_client_auth=roots is not None,
    )


def _bind(server: Any, url: ListenUrl, credentials: Any) -> ListenUrl:
    """Binds one address; returns it with its real port. Raises OSError."""
    if url.is_unix:
        # gRPC core would unlink the socket of a live server and take its place.
        _refuse_live_socket(url.path)
        target = f"unix:{url.path}"
    else:
        target = ListenUrl(url.scheme, url.bind_host, url.port).netloc
    try:
        if credentials is None:
            port = server.add_insecure_port(target)
        else:
            port = server.add_secure_port(target, credentials)
    except RuntimeError as error:
        raise _bind_error(url, error) from None
    return url if url.is_unix else ListenUrl(url.scheme, url.host, int(port))


def _refuse_live_socket(path: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except OSError:
            return
    raise OSError(errno.EADDRINUSE, f"listen unix {path}: bind: address already in use")


def _bind_error(url: ListenUrl, error: RuntimeError) -> OSError:
    """gRPC core says only that it failed; the operating system says why."""
    if url.is_unix:
        return OSError(errno.EADDRNOTAVAIL, f"listen unix {url.path}: {error}")
    family = socket.AF_INET6 if ":" in url.bind_host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((url.bind_host, url.port))
        except OSError as why:
            number = why.errno or errno.EADDRNOTAVAIL
            reason = (why.strerror or str(why)).lower()
            return OSError(number, f"listen tcp {url.netloc}: bind: {reason}")
    return OSError(errno.EADDRNOTAVAIL, f"listen tcp {url.netloc}: {error}")


class _Methods(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Finds the handler of a method; the one place that is called for each RPC."""

    def __init__(
        self, service: Service, options: TransportOptions, streams: set[_GrpcStream]
    ) -> None:
        self.request_bytes_max = service.max_request_bytes
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
            handler = grpc.stream_unary_rpc_method_handler(serve)
        else:
            handler = grpc.stream_stream_rpc_method_handler(self._stream(method, kind))
        self._handlers[method] = handler
        return handler

    def _stream(self, method: str, kind: Kind) -> Callable[[Any, Any], Awaitable[None]]:
        async def serve(_requests: Any, context: Any) -> None:
            stream = _GrpcStream(method, kind, context, self._options.stream_room_bytes)
            self._streams.add(stream)
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
) -> Callable[[Any, Any], Awaitable[bytes]]:
    async def serve(_requests: Any, context: Any) -> bytes:
        request = await context.read()
        if request is _EOF:
            context.set_code(grpc.StatusCode.INTERNAL)
            context.set_details(NO_REQUEST)
            return b""
        if len(request) > request_bytes_max:
            context.set_code(grpc.StatusCode.RESOURCE_EXHAUSTED)
            context.set_details(_too_large(len(request), request_bytes_max))
            return b""
        peer = _Peer(context)
        call = _GrpcCall(method, request, peer, context)
        batcher.add(call)
        try:
            return await call.answer
        finally:
            peer.release()

    return serve


def _too_large(size: int, limit: int) -> str:
    return f"grpc: received message larger than max ({size} vs. {limit})"


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
            # "ipv4:127.0.0.1:5000", "ipv6:%5B::1%5D:5000", "unix:"
            text = self._context.peer()
            self._address = unquote(text.partition(":")[2] or text)
        return self._address

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

    __slots__ = ("_context", "answer", "method", "peer", "request")

    def __init__(self, method: str, request: bytes, peer: Peer, context: Any) -> None:
        self.method = method
        self.request = request
        self.peer = peer
        self._context = context
        self.answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    @property
    def cancelled(self) -> bool:
        # gRPC core cancels the handler, and with it the future, when the client cancels or the
        # deadline passes; the second test sees a deadline that core has not come to yet.
        return self.answer.cancelled() or self._context.time_remaining() == 0

    def finish(self, response: bytes) -> None:
        if not self.answer.done():
            self.answer.set_result(response)

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
        while self._open and self._end is None:
            try:
                message = await read()
            except Exception as error:
                log.debug("%s: reading ended: %r", self.method, error)
                return
            if not self._open or self._end is not None:
                return
            if message is _EOF:
                if one_request:
                    self.close(Code.INTERNAL, NO_REQUEST)
                else:
                    self._tell(handler.on_half_close)
                return
            if len(message) > request_bytes_max:
                self.close(Code.RESOURCE_EXHAUSTED, _too_large(len(message), request_bytes_max))
                return
            self._tell(handler.on_messages, (message,))
            if one_request:
                self._tell(handler.on_half_close)
                return
            if self._full:
                await self._has_room.wait()

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
