"""A client of the etcd v3 API that hides nothing: bytes or messages in, status and message out.

It exists for tests that compare servers, so an error is an answer like any other (no exception, no
retry), and every request can also be sent as raw bytes that no honest client would produce.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import grpc
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from kvstore.pb import rpc_pb2

#: A bound against hanging tests; no test asserts a time.
TIMEOUT_S = 30.0

_OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.enable_retries", 0),
    # Two clients of one test must not share a connection through the global pool.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_metadata_size", 1 << 20),
]


def _methods() -> dict[str, tuple[str, type[Message], type[Message]]]:
    table = {}
    for service in rpc_pb2.DESCRIPTOR.services_by_name.values():
        for method in service.methods:
            table[f"{service.name}.{method.name}"] = (
                f"/{service.full_name}/{method.name}",
                GetMessageClass(method.input_type),
                GetMessageClass(method.output_type),
            )
    return table


#: "KV.Put" -> (path, request class, response class), from the wire contract itself.
METHODS = _methods()


@dataclass(frozen=True)
class Answer:
    """What came back: a status and, if it is OK, the message (or messages, of a stream)."""

    code: int
    text: str = ""
    message: Any = None
    messages: tuple[Any, ...] = ()

    @property
    def ok(self) -> bool:
        return self.code == 0

    def __str__(self) -> str:
        if not self.ok:
            name = next(c.name for c in grpc.StatusCode if c.value[0] == self.code)
            return f"{name}: {self.text}"
        return "OK " + str(self.message if self.message is not None else self.messages)


def _status(error: Any) -> Answer:
    return Answer(error.code().value[0], error.details() or "")


class Pending:
    """A call under way."""

    def __init__(self, future: Any, decode: Callable[[bytes], Message]) -> None:
        self._future = future
        self._decode = decode

    def answer(self) -> Answer:
        try:
            return Answer(0, message=self._decode(self._future.result()))
        except grpc.RpcError as error:
            return _status(error)
        except grpc.FutureCancelledError:
            return Answer(1, "cancelled by the test")

    def cancel(self) -> None:
        self._future.cancel()


class Client:
    """One connection to ``host:port``."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.channel = grpc.insecure_channel(endpoint, options=_OPTIONS)
        self._stubs: dict[str, Any] = {}

    @property
    def port(self) -> int:
        return int(self.endpoint.rsplit(":", 1)[1])

    def close(self) -> None:
        self.channel.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()

    def start(
        self,
        method: str,
        request: Message | bytes,
        *,
        metadata: Sequence[tuple[str, str | bytes]] = (),
        timeout: float = TIMEOUT_S,
    ) -> Pending:
        """Sends a unary request. `method` is a key of `METHODS`."""
        stub, body, response = self._unary(method, request)
        future = stub.future(body, timeout=timeout, metadata=tuple(metadata))
        return Pending(future, response.FromString)

    def call(
        self,
        method: str,
        request: Message | bytes,
        *,
        metadata: Sequence[tuple[str, str | bytes]] = (),
        timeout: float = TIMEOUT_S,
    ) -> Answer:
        """Sends a unary request and waits for its answer."""
        # Not a future: grpc starts a thread for each, which takes longer than the call.
        stub, body, response = self._unary(method, request)
        try:
            answer = stub(body, timeout=timeout, metadata=tuple(metadata))
        except grpc.RpcError as error:
            return _status(error)
        return Answer(0, message=response.FromString(answer))

    def _unary(self, method: str, request: Message | bytes) -> tuple[Any, bytes, type[Message]]:
        path, _, response = METHODS[method]
        body = request if isinstance(request, bytes) else request.SerializeToString()
        stub = self._stubs.get(path)
        if stub is None:
            stub = self._stubs[path] = self.channel.unary_unary(path)
        return stub, body, response

    def raw(self, path: str, body: bytes, *, timeout: float = TIMEOUT_S) -> Answer:
        """Any path, any bytes; the message of the answer is bytes too."""
        try:
            return Answer(0, message=self.channel.unary_unary(path)(body, timeout=timeout))
        except grpc.RpcError as error:
            return _status(error)

    def stream(
        self, method: str, request: Message | bytes, *, timeout: float = TIMEOUT_S
    ) -> Answer:
        """A server-streaming call, read to its end. On an error, what came before is kept."""
        path, _, response = METHODS[method]
        body = request if isinstance(request, bytes) else request.SerializeToString()
        got: list[Message] = []
        try:
            for chunk in self.channel.unary_stream(path)(body, timeout=timeout):
                got.append(response.FromString(chunk))
        except grpc.RpcError as error:
            status = _status(error)
            return Answer(status.code, status.text, messages=tuple(got))
        return Answer(0, messages=tuple(got))

    def open(self, method: str, **how: Any) -> Duplex:
        """A bidirectional stream."""
        return Duplex(self, method, **how)


@dataclass
class Duplex:
    """A bidirectional stream: `send` at any time, `next` for one message or the end."""

    client: Client
    method: str
    metadata: Sequence[tuple[str, str | bytes]] = ()
    timeout: float = 300.0
    end: Answer | None = None
    _out: queue.SimpleQueue[bytes | None] = field(default_factory=queue.SimpleQueue)
    _in: queue.SimpleQueue[Message | Answer] = field(default_factory=queue.SimpleQueue)

    def __post_init__(self) -> None:
        path, _, self._response = METHODS[self.method]
        self._call = self.client.channel.stream_stream(path)(
            self._requests(), timeout=self.timeout, metadata=tuple(self.metadata)
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _requests(self) -> Iterator[bytes]:
        while (body := self._out.get()) is not None:
            yield body

    def _read(self) -> None:
        try:
            for body in self._call:
                self._in.put(self._response.FromString(body))
            self._in.put(Answer(0))
        except grpc.RpcError as error:
            self._in.put(_status(error))

    def send(self, request: Message | bytes) -> None:
        self._out.put(request if isinstance(request, bytes) else request.SerializeToString())

    def half_close(self) -> None:
        """No more requests; the server may still answer."""
        self._out.put(None)

    def next(self, timeout: float = TIMEOUT_S) -> Any:
        """The next message; an `Answer` at the end of the stream; None if nothing came in time."""
        if self.end is not None:
            return self.end
        with contextlib.suppress(queue.Empty):
            got = self._in.get(timeout=timeout)
            if isinstance(got, Answer):
                self.end = got
            return got
        return None

    def until(self, done: Callable[[Any], bool], timeout: float = TIMEOUT_S) -> list[Any]:
        """Messages up to and with the first that is `done`, or to the end of the stream."""
        deadline = time.monotonic() + timeout
        got = []
        while True:
            one = self.next(max(0.0, deadline - time.monotonic()))
            if one is None:
                raise TimeoutError(f"{self.method} on {self.client.endpoint}: only {got}")
            got.append(one)
            if isinstance(one, Answer) or done(one):
                return got

    def close(self) -> None:
        self._call.cancel()
        self._out.put(None)
        self._reader.join(5)

    def __enter__(self) -> Duplex:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()
