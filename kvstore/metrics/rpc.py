"""Counting calls where they pass: a `Service` around the real one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from time import perf_counter

from kvstore.metrics.histogram import HANDLING_S, Histogram
from kvstore.transport.seam import Call, Code, Kind, Service, Stream, StreamHandler

_OK = int(Code.OK)

#: What grpc-prometheus calls the kinds.
TYPES = {
    Kind.UNARY: "unary",
    Kind.SERVER_STREAM: "server_stream",
    Kind.BIDI_STREAM: "bidi_stream",
}


class MethodCounters:
    """Totals of one method."""

    __slots__ = (
        "codes",
        "handling_s",
        "kind",
        "received",
        "received_bytes",
        "sent",
        "sent_bytes",
        "started",
    )

    def __init__(self, kind: Kind, timed: bool) -> None:
        self.kind = kind
        self.started = 0
        self.received = 0
        self.received_bytes = 0
        self.sent = 0
        self.sent_bytes = 0
        self.codes = [0] * len(Code)
        """Calls that ended, by status code."""
        self.handling_s = Histogram(HANDLING_S) if timed else None


class RpcCounters:
    """Totals by method. Only methods that exist get here, so it does not grow."""

    def __init__(self, *, timed: bool = False) -> None:
        self.timed = timed
        self.methods: dict[str, MethodCounters] = {}
        self.refresh: Callable[[], None] = lambda: None
        """Brings counters up to date that are kept elsewhere; called before they are read."""

    def of(self, method: str, kind: Kind) -> MethodCounters:
        found = self.methods.get(method)
        if found is None:
            found = self.methods[method] = MethodCounters(kind, self.timed)
        return found

    def prepare(self, service: Service, methods: Iterable[str]) -> None:
        """Starts at 0 what is served of `methods`, so that a scrape shows them before the first
        call (an alert on a rate needs the 0)."""
        for method in methods:
            kind = service.kind(method)
            if kind is not None:
                self.of(method, kind)


class CountingService:
    """Serves what another service does, and counts.

    `calls`: count unary calls too, and what is sent on streams. A transport that counts those
    itself saves an object a call, and a call a message.
    """

    def __init__(self, service: Service, counters: RpcCounters, *, calls: bool = True) -> None:
        self._service = service
        self._counters = counters
        self._calls = calls
        self.max_request_bytes = service.max_request_bytes

    def kind(self, method: str) -> Kind | None:
        return self._service.kind(method)

    def unimplemented(self, method: str) -> str:
        return self._service.unimplemented(method)

    def on_calls(self, calls: Sequence[Call]) -> None:
        if not self._calls:
            self._service.on_calls(calls)
            return
        of = self._counters.of
        now = perf_counter() if self._counters.timed else 0.0
        self._service.on_calls([_Counted(c, of(c.method, Kind.UNARY), now) for c in calls])

    def on_stream(self, stream: Stream) -> StreamHandler:
        kind = self._service.kind(stream.method) or Kind.BIDI_STREAM
        counters = self._counters.of(stream.method, kind)
        counters.started += 1
        counted = _CountedStream(stream, counters, sent=self._calls)
        counted.handler = self._service.on_stream(counted)
        return counted


class _Counted:
    """A call that counts its answer."""

    __slots__ = ("_call", "_counters", "_since", "method", "peer", "request")

    def __init__(self, call: Call, counters: MethodCounters, since: float) -> None:
        self._call = call
        self._counters = counters
        self._since = since
        self.method = call.method
        self.request = call.request
        self.peer = call.peer
        counters.started += 1
        counters.received += 1
        counters.received_bytes += len(call.request)

    @property
    def cancelled(self) -> bool:
        return self._call.cancelled

    def write(self, parts: list[bytes]) -> None:
        self._counters.sent_bytes += sum(map(len, parts))
        self._call.write(parts)

    def finish(self, response: bytes) -> None:
        counters = self._counters
        counters.codes[_OK] += 1
        counters.sent += 1
        counters.sent_bytes += len(response)
        if counters.handling_s is not None:
            counters.handling_s.observe(perf_counter() - self._since)
        self._call.finish(response)

    def fail(self, code: Code, message: str) -> None:
        counters = self._counters
        counters.codes[code] += 1
        if counters.handling_s is not None:
            counters.handling_s.observe(perf_counter() - self._since)
        self._call.fail(code, message)


class _CountedStream:
    """A stream, and between it and its handler, that counts (`sent`: what is sent, too)."""

    __slots__ = ("_code", "_counters", "_since", "_stream", "handler", "method", "peer", "send")

    def __init__(self, stream: Stream, counters: MethodCounters, *, sent: bool) -> None:
        self._stream = stream
        self.send: Callable[[bytes], None] = self._send if sent else stream.send
        self._counters = counters
        self._code: Code | None = None
        self._since = perf_counter()
        self.method = stream.method
        self.peer = stream.peer
        self.handler: StreamHandler

    # The service's view.

    @property
    def room(self) -> int:
        return self._stream.room

    def _send(self, message: bytes) -> None:
        self._counters.sent += 1
        self._counters.sent_bytes += len(message)
        self._stream.send(message)

    def close(self, code: Code = Code.OK, message: str = "") -> None:
        if self._code is None:
            self._code = code
        self._stream.close(code, message)

    # The transport's view.

    def on_messages(self, messages: Sequence[bytes]) -> None:
        self._counters.received += len(messages)
        self._counters.received_bytes += sum(map(len, messages))
        self.handler.on_messages(messages)

    def on_half_close(self) -> None:
        self.handler.on_half_close()

    def on_room(self) -> None:
        self.handler.on_room()

    def on_closed(self) -> None:
        # Not closed by the service: the client left, or the transport ended it.
        self._counters.codes[Code.CANCELLED if self._code is None else self._code] += 1
        if self._counters.handling_s is not None:
            self._counters.handling_s.observe(perf_counter() - self._since)
        self.handler.on_closed()
