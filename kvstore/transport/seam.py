"""The transport seam: what a transport and the services behind it promise each other.

Services know nothing of gRPC (DESIGN §9). A transport terminates HTTP/2, and hands over
*batches* of unary calls and *streams* of messages, all as bytes. Everything here runs on
one event-loop thread; nothing blocks, nothing is a coroutine, so a batch of a thousand calls
costs no task and no future per call.

Order is kept within a stream and nowhere else (R12).
"""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from kvstore.transport.address import ListenUrl

STOPPED = "etcdserver: server stopped"
"""What etcd's clients read as "this member goes away, try another" (rpctypes.ErrGRPCStopped)."""

INTERNAL = "internal error; the server's log has the details"
"""What a client is told of a fault of ours."""


class Code(enum.IntEnum):
    """gRPC status codes, by their numbers on the wire."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class Kind(enum.Enum):
    """How a method talks."""

    UNARY = "unary"
    SERVER_STREAM = "server_stream"
    BIDI_STREAM = "bidi_stream"


class Peer(Protocol):
    """What is known of the other end of a call or stream."""

    @property
    def address(self) -> str:
        """The client's address, for logs."""

    @property
    def common_name(self) -> str | None:
        """The common name in the certificate that the client showed; None without one."""

    @property
    def certificate_names(self) -> Sequence[str]:
        """All names in that certificate, the common name first; empty without one."""

    def metadata(self, key: str) -> str | None:
        """The first value of a metadata key (lower case), or None."""


class Call(Protocol):
    """One unary request and the place for its answer.

    Exactly one of `finish` and `fail` is called, once, now or later, on the loop's thread. Both
    are no-ops when the client is gone, and so is `write`.
    """

    @property
    def method(self) -> str:
        """The full name, such as "/etcdserverpb.KV/Put"."""

    @property
    def request(self) -> bytes:
        """The message."""

    @property
    def peer(self) -> Peer:
        """Who asks."""

    @property
    def cancelled(self) -> bool:
        """True once the client cancelled the call or its deadline has passed.

        A service drops such a call before it is proposed, and not after (R12).
        """

    def write(self, parts: list[bytes]) -> None:
        """Parts of a message that is too long to be one object: `finish` has the last one.

        Ten thousand of them at most in one call. A transport that can sends these very objects,
        so that a long answer costs no copy here and no memory; the list stays the caller's.
        """

    def finish(self, response: bytes) -> None:
        """Answer with a message, which begins with what `write` was given."""

    def fail(self, code: Code, message: str) -> None:
        """Answer with an error."""


class Stream(Protocol):
    """One open stream: messages out, and room for them."""

    @property
    def method(self) -> str:
        """The full name, such as "/etcdserverpb.Watch/Watch"."""

    @property
    def peer(self) -> Peer:
        """Who asks."""

    @property
    def room(self) -> int:
        """Bytes that may be sent before the client has to catch up; 0 or less: none (I8).

        `send` accepts messages beyond that, so that one answer need not be cut to measure; a
        service that streams looks here before each message and otherwise waits for
        `StreamHandler.on_room`.
        """

    def send(self, message: bytes) -> None:
        """Queue a message for the client. A no-op when the stream is closed."""

    def close(self, code: Code = Code.OK, message: str = "") -> None:
        """End the stream with a status, behind everything sent. A no-op the second time."""


class StreamHandler(Protocol):
    """A service's side of one stream. No call comes after `on_closed`."""

    def on_messages(self, messages: Sequence[bytes]) -> None:
        """Messages from the client, in order."""

    def on_half_close(self) -> None:
        """The client will send no more; it may still listen."""

    def on_room(self) -> None:
        """There is room again after there was none."""

    def on_closed(self) -> None:
        """The stream is over, whoever ended it. Always called, once."""


class Service(Protocol):
    """What a transport serves."""

    max_request_bytes: int
    """Longest message taken in (etcd's `--max-request-bytes` plus its gRPC overhead, 512 KiB).

    A longer one is refused by its raw length: ResourceExhausted, `grpc: received message larger
    than max (N vs. M)`.
    """

    def kind(self, method: str) -> Kind | None:
        """How a method talks; None if there is no such method."""

    def unimplemented(self, method: str) -> str:
        """The message for a method that does not exist, as grpc-go words it."""

    def on_calls(self, calls: Sequence[Call]) -> None:
        """A batch of unary calls. Answers may come at once, later, and in any order."""

    def on_stream(self, stream: Stream) -> StreamHandler:
        """A stream was opened. Its request (server streaming) arrives as its one message."""


class Transport(Protocol):
    """A running front door."""

    @property
    def bound(self) -> Sequence[ListenUrl]:
        """The addresses in use, with the ports that the operating system chose."""

    async def start(self, service: Service) -> None:
        """Bind all addresses and serve. Raises OSError when one cannot be bound."""

    async def drain(self, grace_s: float) -> None:
        """Take no new connection or call, let those under way finish, close (SIGTERM)."""


class RemoteError(Exception):
    """What another node, or the way there, answered."""

    def __init__(self, code: Code, message: str, *, unsent: bool) -> None:
        """`unsent`: the request certainly was not taken."""
        super().__init__(message)
        self.code = code
        self.message = message
        self.unsent = unsent


class Remote(Protocol):
    """The way to other nodes. Messages are bytes as they came; RemoteError says what failed."""

    async def unary(
        self,
        url: str,
        method: str,
        request: bytes,
        metadata: list[tuple[str, str]],
        within_s: float,
    ) -> bytes: ...

    def stream(
        self,
        url: str,
        method: str,
        requests: AsyncIterator[bytes],
        metadata: list[tuple[str, str]],
    ) -> AsyncIterator[bytes]: ...
