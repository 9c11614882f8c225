"""The native front door: HTTP/2 and gRPC off the interpreter lock, in batches.

One thread of Rust serves all connections. Requests wait in a queue until `Door.take`; answers go
back through another that `Door.flush` (or a call of it that the door schedules by itself) brings
to that thread's notice. All objects belong to the event loop's thread. Only
`kvstore.transport.native` should need this module; services see `kvstore.transport.seam`.
"""

from collections.abc import Callable, Sequence
from os import PathLike
from typing import Final, final

__version__: Final[str]

# The kinds of events, and what comes with each.
OPENED: Final[int]
"""A stream was opened; with the `Stream`."""
MESSAGES: Final[int]
"""Messages of a stream; with a list of them, and their credit for `Stream.taken`."""
HALF_CLOSED: Final[int]
"""The client will send no more on a stream; with None."""
ROOM: Final[int]
"""There is room on a stream again after there was none; with None."""
CLOSED: Final[int]
"""A stream is over; the last event with its key; with None."""
UNKNOWN: Final[int]
"""A call of a method that does not exist, and wants to be failed; with a `Call`."""
HTTP: Final[int]
"""An HTTP request that is not gRPC; with an `Exchange`."""
DRAINED: Final[int]
"""After `Door.drain`: nothing is under way any more; with None. May come again."""

@final
class Peer:
    """The other end of a call or stream (`seam.Peer`)."""

    @property
    def address(self) -> str:
        """ "127.0.0.1:5000"; empty for a unix socket."""
    @property
    def common_name(self) -> str | None:
        """The common name in the certificate that the client showed."""
    @property
    def certificate_names(self) -> list[str]:
        """All names in that certificate, the common name first."""
    def metadata(self, key: str) -> str | None:
        """The first value of a metadata key (lower case), or None."""

@final
class Call:
    """One unary call (`seam.Call`). One that is dropped without an answer gets Internal."""

    @property
    def method(self) -> str: ...
    @property
    def request(self) -> bytes: ...
    @property
    def peer(self) -> Peer: ...
    @property
    def cancelled(self) -> bool: ...
    def write(self, parts: list[bytes]) -> None: ...
    def finish(self, response: bytes) -> None: ...
    def fail(self, code: int, message: str) -> None: ...

@final
class Stream:
    """One open stream (`seam.Stream`)."""

    @property
    def key(self) -> int:
        """Names the stream in events."""
    @property
    def method(self) -> str: ...
    @property
    def peer(self) -> Peer: ...
    @property
    def room(self) -> int: ...
    @property
    def full(self) -> bool:
        """True from when there was no room until half of it is free, which ROOM then tells."""
    @property
    def closed(self) -> bool:
        """True once `close` was called."""
    def taken(self, credit: int) -> None:
        """Messages were served: the client may send so many bytes again."""
    def send(self, message: bytes) -> None: ...
    def close(self, code: int = 0, message: str = "") -> None: ...

@final
class Exchange:
    """An HTTP request that is not gRPC. One that is dropped without an answer gets a 500."""

    @property
    def method(self) -> str: ...
    @property
    def target(self) -> str:
        """Path and query as they came."""
    @property
    def headers(self) -> list[tuple[str, str]]:
        """Names in lower case, and values."""
    @property
    def body(self) -> bytes: ...
    @property
    def address(self) -> str: ...
    def answer(self, status: int, headers: Sequence[tuple[str, str]], body: bytes) -> None:
        """Answers; Content-Length is added."""

@final
class Door:
    """A running front door.

    `listen`: ("tcp", IP address, port, TLS?) or ("unix", path, 0, TLS?). `methods`: full name and
    "unary", "server_stream" or "bidi_stream"; any other method comes as UNKNOWN. `tls`: certificate
    chain, key, and the CA that clients' certificates have to be signed by, all PEM. Sizes are in
    bytes; 0 stands for no limit (`streams_max`), the default (`connections_max`), or never
    (`keepalive_interval_s`). Raises OSError when an address cannot be bound, ValueError for what is
    wrong with an argument or a certificate.
    """

    def __new__(
        cls,
        listen: Sequence[tuple[str, str, int, bool]],
        methods: Sequence[tuple[str, str]],
        *,
        tls: tuple[bytes, bytes, bytes | None] | None = None,
        request_bytes_max: int,
        streams_max: int = 0,
        header_bytes_max: int = 16384,
        room_bytes: int = 1048576,
        connections_max: int = 0,
        handshake_max_s: float = 10.0,
        keepalive_min_time_s: float = 5.0,
        keepalive_interval_s: float = 7200.0,
        keepalive_timeout_s: float = 20.0,
    ) -> Door: ...
    @property
    def ports(self) -> list[int]:
        """The ports in use, in the order of `listen`; 0 for unix sockets."""
    def fileno(self) -> int:
        """A file descriptor that is readable when there is something to take."""
    def set_schedule(self, schedule: Callable[[], object] | None) -> None:
        """What schedules a call of `flush` on the loop, for answers given outside of a turn."""
    def take(self, max: int, bytes: int) -> tuple[list[Call], list[tuple[int, int, object]]]:
        """At most `max` calls and events each. An event: kind, key of the stream, what comes along.

        No more calls follow once their requests are `bytes` long. A turn begins, which `flush` has
        to end. When both are empty, what comes next makes the file descriptor readable; until then
        it need not.
        """
    def flush(self) -> None:
        """Has the door's thread see all answers that were given."""
    def drain(self) -> None:
        """Takes no new connections and tells clients to go elsewhere."""
    def stop(self) -> None:
        """Closes everything and waits for the door's thread to end."""
    def stats(self) -> dict[str, int]:
        """Counters by name.

        Each limit at which the door refuses or ends something has one, but for streams above
        `streams_max`, which h2 refuses by itself, and HTTP bodies that are too long (413).
        """
    def counts(self) -> list[tuple[str, list[int], list[int]]]:
        """Totals by method.

        Started, messages and bytes received, messages and bytes sent; and calls that ended, by
        status code. Of streams only what was sent is counted.
        """

@final
class SyncWriter:
    """A thread that writes and syncs files, without the interpreter lock.

    For one event loop. Raises OSError when there can be no thread or no file descriptor for it.
    """

    def __new__(cls) -> SyncWriter: ...
    def fileno(self) -> int:
        """A file descriptor that is readable when there is something to take."""
    def submit(self, path: str | PathLike[str], offset: int, parts: Sequence[bytes]) -> None:
        """Writes `parts`, one after the other, at `offset` of a file that is there; then fdatasync.

        Jobs are done in order, and none is left out because one before it failed. RuntimeError
        after `stop`.
        """
    def take(self) -> list[tuple[int, float, float]]:
        """How jobs went, in order: 0 or an errno, and the seconds of write and sync."""
    def stop(self) -> None:
        """Does what was submitted, and ends the thread; blocks."""

def load(options: str, progress: Callable[[int, float], object] | None = None) -> str:
    """Makes load on etcd v3 endpoints, without the interpreter lock; takes as long as it is told.

    `options`: a JSON object with the names that ``jotd-loadgen --help`` lists (native/load);
    returns the report, JSON too. `progress` is told a few times a second the units of work done,
    and the part of the time that is over (none while keys are written for the load, or all there is
    to tell of a fill); what it raises ends the run and is raised here. Raises
    ValueError for options that make no sense, RuntimeError when the load cannot be made.
    """
