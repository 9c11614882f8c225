"""The native transport: `jotd_native`, a front door in Rust, behind the seam.

HTTP/2, gRPC and TLS live on a thread of the door's own, without the interpreter lock. What comes in
waits there until this module takes it, all at once; answers go back the same way. So a request
costs no task, no future and no wake-up of its own here (DESIGN §9).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
from collections.abc import Awaitable, Callable, Iterable, Sequence
from time import perf_counter
from typing import Any

import jotd_native as door_module

from kvstore.transport.address import ListenUrl
from kvstore.transport.inflow import Inflow
from kvstore.transport.options import TransportOptions
from kvstore.transport.seam import INTERNAL, STOPPED, Code, Kind, Service
from kvstore.transport.unix import make_way

log = logging.getLogger(__name__)

#: Calls handed to the service at once. Answers of one chunk are on their way while the next is
#: being served; much larger, and the two threads would take turns.
CHUNK = 64
#: Requests of a chunk, and the last one of it: a transaction may be work for a hundred others.
CHUNK_BYTES = 64 << 10
#: How long a turn may last before others have theirs (I9). A chunk is not cut, but after one that
#: took longer the next are smaller.
TURN_S = 0.002

#: Connections at once, if there are files enough; and files that are not for connections.
CONNECTIONS_MAX = 16_384
FILES_KEPT = 128

#: Answers an HTTP request that is not gRPC: method, target, headers; status, headers, body.
HttpHandler = Callable[
    [str, str, Sequence[tuple[str, str]]], Awaitable[tuple[int, Sequence[tuple[str, str]], bytes]]
]


class NativeTransport:
    """Serves a `Service` on all addresses of its options. Use on one event loop, once."""

    def __init__(self, options: TransportOptions, methods: Iterable[str]) -> None:
        self.options = options
        self.bound: tuple[ListenUrl, ...] = ()
        """The addresses in use, with the ports that the operating system chose."""
        self.http: HttpHandler | None = None
        """Answers what is not gRPC; without one it is not found."""
        self._door: door_module.Door | None = None
        self._methods = tuple(methods)
        self._service: Service
        self._loop: asyncio.AbstractEventLoop
        self._streams: dict[int, Inflow] = {}
        self._exchanges: set[asyncio.Task[None]] = set()
        self._drained: asyncio.Future[None]
        self._scheduled = False
        self._draining = False
        self._chunk = CHUNK

    async def start(self, service: Service) -> None:
        """Binds all addresses and serves. Raises OSError when one cannot be bound."""
        options = self.options
        kinds = [(name, service.kind(name)) for name in self._methods]
        for url in options.listen:
            if url.is_unix:
                make_way(url.path)
        self._service = service
        self._loop = asyncio.get_running_loop()
        self._drained = self._loop.create_future()
        self._door = door = door_module.Door(
            [_address(url) for url in options.listen],
            [(name, kind.value) for name, kind in kinds if kind is not None],
            tls=_pem(options),
            request_bytes_max=service.max_request_bytes,
            streams_max=min(options.concurrent_streams_max, 2**31 - 1),
            header_bytes_max=options.metadata_hard_bytes,
            room_bytes=options.stream_room_bytes,
            connections_max=_connections_max(),
            keepalive_min_time_s=options.keepalive_min_time_s,
            keepalive_interval_s=options.keepalive_interval_s,
            keepalive_timeout_s=options.keepalive_timeout_s,
        )
        self.bound = tuple(
            url if url.is_unix else ListenUrl(url.scheme, url.host, port)
            for url, port in zip(options.listen, door.ports, strict=True)
        )
        flush, call_soon = door.flush, self._loop.call_soon
        door.set_schedule(lambda: call_soon(flush))
        self._loop.add_reader(door.fileno(), self._ready)

    async def drain(self, grace_s: float) -> None:
        """Takes nothing new; calls under way have `grace_s` to finish; then closes all.

        Bidirectional streams never finish by themselves and are ended at once, behind what was
        sent on them, with etcd's Unavailable; other streams at half of the time.
        """
        door = self._door
        if door is None:
            return
        self._draining = True
        door.drain()
        self._end_streams(lambda kind: kind is Kind.BIDI_STREAM)
        later = self._loop.call_later(grace_s / 2, self._end_streams, lambda kind: True)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(self._drained), grace_s)
        later.cancel()
        for task in self._exchanges:
            task.cancel()
        self._loop.remove_reader(door.fileno())
        # What was answered in this very turn.
        door.flush()
        door.stop()
        for inflow in list(self._streams.values()):
            inflow.closed()
        self._streams.clear()
        for url in self.bound:
            if url.is_unix:
                with contextlib.suppress(OSError):
                    os.unlink(url.path)

    def _end_streams(self, which: Callable[[Kind], bool]) -> None:
        for inflow in list(self._streams.values()):
            if which(inflow.kind):
                inflow.stream.close(Code.UNAVAILABLE, STOPPED)

    # -- what comes in ---------------------------------------------------------------------

    def _ready(self) -> None:
        """One turn: everything that is there, or as much as there is time for."""
        door = self._door
        assert door is not None
        take = door.take
        began = perf_counter()
        until = began + TURN_S
        try:
            while True:
                calls, events = take(self._chunk, CHUNK_BYTES)
                if calls:
                    self._serve(calls)
                elif not events:
                    return
                for kind, key, payload in events:
                    try:
                        self._happened(kind, key, payload)
                    except Exception:
                        # The door signals only to who has taken everything: others' events go on.
                        log.exception("an event of kind %d was not served", kind)
                        if isinstance(payload, door_module.Call):
                            payload.fail(Code.INTERNAL, INTERNAL)
                now = perf_counter()
                took = now - began
                if took > TURN_S:
                    self._chunk = max(self._chunk // 2, 1)
                elif self._chunk < CHUNK:
                    self._chunk = min(2 * self._chunk, CHUNK)
                began = now
                # Another chunk like this one would be too long.
                if now + took >= until:
                    if not self._scheduled:
                        self._scheduled = True
                        self._loop.call_soon(self._again)
                    return
        finally:
            door.flush()

    def _again(self) -> None:
        self._scheduled = False
        self._ready()

    def _serve(self, calls: list[door_module.Call]) -> None:
        try:
            self._service.on_calls(calls)
        except Exception:
            # Which of them the service kept for a later answer is not known. Internal leaves the
            # outcome of a write open, as an error has to (I7); a later answer is a no-op.
            log.exception("a batch of %d calls failed", len(calls))
            for call in calls:
                call.fail(Code.INTERNAL, INTERNAL)

    def _happened(self, kind: int, key: int, payload: Any) -> None:
        if kind == door_module.MESSAGES:
            if inflow := self._streams.get(key):
                inflow.messages(*payload)
        elif kind == door_module.ROOM:
            if inflow := self._streams.get(key):
                inflow.room()
        elif kind == door_module.OPENED:
            self._opened(payload)
        elif kind == door_module.HALF_CLOSED:
            if inflow := self._streams.get(key):
                inflow.half_closed()
        elif kind == door_module.CLOSED:
            if inflow := self._streams.pop(key, None):
                inflow.closed()
        elif kind == door_module.UNKNOWN:
            payload.fail(Code.UNIMPLEMENTED, self._service.unimplemented(payload.method))
        elif kind == door_module.HTTP:
            task = self._loop.create_task(self._exchange(payload))
            self._exchanges.add(task)
            task.add_done_callback(self._exchanges.discard)
        elif kind == door_module.DRAINED and not self._drained.done():
            self._drained.set_result(None)

    def _opened(self, stream: door_module.Stream) -> None:
        kind = self._service.kind(stream.method) or Kind.BIDI_STREAM
        if self._draining and kind is Kind.BIDI_STREAM:
            # The door had taken it when the drain began.
            stream.close(Code.UNAVAILABLE, STOPPED)
            return
        try:
            handler = self._service.on_stream(stream)
        except Exception:
            log.exception("%s: opening the stream failed", stream.method)
            stream.close(Code.INTERNAL, INTERNAL)
            return
        self._streams[stream.key] = Inflow(stream, handler, kind, self._loop.call_soon)

    async def _exchange(self, exchange: door_module.Exchange) -> None:
        if self.http is None:
            exchange.answer(404, [], b"404 page not found\n")
            return
        answer = await self.http(exchange.method, exchange.target, exchange.headers)
        exchange.answer(*answer)

    # -- figures ---------------------------------------------------------------------------

    def stats(self) -> dict[str, int]:
        """The door's own figures, by name; empty before `start`."""
        return self._door.stats() if self._door is not None else {}

    def counts(self) -> list[tuple[str, list[int], list[int]]]:
        """Totals by method, which the door counts; see `jotd_native.Door.counts`."""
        return self._door.counts() if self._door is not None else []


def _connections_max() -> int:
    """As many as there are files for, less what the journal and the rest need."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return CONNECTIONS_MAX
    return max(min(CONNECTIONS_MAX, soft - FILES_KEPT), FILES_KEPT)


def _address(url: ListenUrl) -> tuple[str, str, int, bool]:
    if url.is_unix:
        return "unix", url.path, 0, url.secure
    return "tcp", url.bind_host, url.port, url.secure


def _pem(options: TransportOptions) -> tuple[bytes, bytes, bytes | None] | None:
    secure = [url for url in options.listen if url.secure]
    if not secure:
        return None
    tls = options.tls
    if tls is None:
        raise ValueError(f"{secure[0]} needs a certificate and a key")
    roots = tls.trusted_ca_file.read_bytes() if tls.trusted_ca_file else None
    return tls.cert_file.read_bytes(), tls.key_file.read_bytes(), roots
