"""A whole server without sockets or waiting: node and service over a memory journal with faults.

Time is the loop's, and the loop's is virtual: when nothing is ready it jumps to the next timer.
Calls and streams are the transport seam's, with the transport's place taken by the test.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from journal.memory import MemoryJournal, MemoryStorage
from journal.testing import FaultyJournal
from kvstore.api.service import EtcdService, ServiceOptions
from kvstore.node.node import Node, NodeOptions
from kvstore.pb import rpc_pb2 as pb
from kvstore.transport.seam import Code
from partitioner import table as partitions

T = TypeVar("T")

KV = "/etcdserverpb.KV/"
LEASE = "/etcdserverpb.Lease/"
MAINTENANCE = "/etcdserverpb.Maintenance/"

TABLE = """
[[shard]]
name = "a"
prefixes = ["a/"]
[[shard]]
name = "b"
prefixes = ["b/"]
[[shard]]
name = "default"
"""


class _Jump(selectors.DefaultSelector):  # type: ignore[valid-type,misc]
    loop: VirtualLoop

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        if ready or timeout == 0:
            return ready
        assert timeout is not None, "everything waits for something that nobody will do"
        self.loop.virtual_now += timeout
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps over every wait."""

    def __init__(self) -> None:
        self.virtual_now = 1000.0
        selector = _Jump()
        selector.loop = self
        super().__init__(selector)

    def time(self) -> float:
        return self.virtual_now


def run(main: Callable[[], Coroutine[Any, Any, T]], within_s: float = 3600.0) -> T:
    """Run a test's coroutine in virtual time; it may take that many virtual seconds."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(asyncio.wait_for(main(), within_s))


class FakePeer:
    address = "test"
    common_name = None
    certificate_names = ()

    def metadata(self, key: str) -> str | None:
        return None


class FakeCall:
    """A unary call and what became of it."""

    def __init__(self, method: str, request: Any) -> None:
        self.method = method
        self.peer = FakePeer()
        self.request: bytes = request if isinstance(request, bytes) else request.SerializeToString()
        self.cancelled = False
        self.raw: bytes | None = None
        self.code: Code | None = None
        self.message = ""
        self._answer: Any = None
        self._done = asyncio.Event()
        self._written: list[bytes] = []

    def write(self, parts: list[bytes]) -> None:
        assert self.code is None, "answered twice"
        self._written.extend(parts)

    def finish(self, response: bytes) -> None:
        assert self.code is None, "answered twice"
        self.raw, self.code = b"".join([*self._written, response]), Code.OK
        self._done.set()

    def fail(self, code: Code, message: str) -> None:
        assert self.code is None, "answered twice"
        self.code, self.message = code, message
        self._done.set()

    @property
    def done(self) -> bool:
        return self.code is not None

    @property
    def response(self) -> Any:
        """The answer, parsed once."""
        assert self.code == Code.OK, f"{self.method}: {self.code} {self.message}"
        if self._answer is None:
            self._answer = RESPONSES[self.method].FromString(self.raw)
        return self._answer

    @property
    def error(self) -> tuple[Code, str]:
        assert self.code not in (None, Code.OK), f"{self.method}: {self.code}"
        assert self.code is not None
        return self.code, self.message

    def __await__(self) -> Any:
        yield from self._done.wait().__await__()
        return self


RESPONSES: dict[str, Any] = {
    KV + "Range": pb.RangeResponse,
    KV + "Put": pb.PutResponse,
    KV + "DeleteRange": pb.DeleteRangeResponse,
    KV + "Txn": pb.TxnResponse,
    KV + "Compact": pb.CompactionResponse,
    LEASE + "LeaseGrant": pb.LeaseGrantResponse,
    LEASE + "LeaseRevoke": pb.LeaseRevokeResponse,
    LEASE + "LeaseTimeToLive": pb.LeaseTimeToLiveResponse,
    LEASE + "LeaseLeases": pb.LeaseLeasesResponse,
    MAINTENANCE + "HashKV": pb.HashKVResponse,
    MAINTENANCE + "Status": pb.StatusResponse,
    MAINTENANCE + "Alarm": pb.AlarmResponse,
}


class FakeStream:
    """A stream with as much room as the test gives it."""

    def __init__(self, method: str, parse: Any, room: int = 1 << 40) -> None:
        self.method = method
        self.peer = FakePeer()
        self.room = room
        self.messages: list[Any] = []
        self.closed: tuple[Code, str] | None = None
        self.handler: Any = None
        self._parse = parse

    def send(self, message: bytes) -> None:
        if self.closed is None:
            self.room -= len(message)
            self.messages.append(self._parse.FromString(message))

    def close(self, code: Code = Code.OK, message: str = "") -> None:
        if self.closed is None:
            self.closed = (code, message)
            if self.handler is not None:
                self.handler.on_closed()

    def say(self, *messages: Any) -> None:
        """Messages from the client."""
        self.handler.on_messages([message.SerializeToString() for message in messages])

    def give_room(self, nbytes: int) -> None:
        had = self.room > 0
        self.room += nbytes
        if not had and self.room > 0 and self.closed is None:
            self.handler.on_room()

    def take(self) -> list[Any]:
        """What came since the last look."""
        taken, self.messages = self.messages, []
        return taken


class World:
    """One server, and short names for requests."""

    def __init__(self, node: Node, journal: FaultyJournal, service: EtcdService) -> None:
        self.node = node
        self.journal = journal
        self.service = service

    @property
    def storage(self) -> MemoryStorage:
        storage: MemoryStorage = self.journal.inner.storage  # type: ignore[attr-defined]
        return storage

    @property
    def revision(self) -> int:
        return self.node.state.store.revision

    def call(self, method: str, request: Any) -> FakeCall:
        call = FakeCall(method, request)
        self.service.on_calls([call])
        return call

    def put(self, key: bytes, value: bytes = b"", **fields: Any) -> FakeCall:
        return self.call(KV + "Put", pb.PutRequest(key=key, value=value, **fields))

    def get(self, key: bytes, range_end: bytes = b"", **fields: Any) -> FakeCall:
        return self.call(KV + "Range", pb.RangeRequest(key=key, range_end=range_end, **fields))

    def delete(self, key: bytes, range_end: bytes = b"", **fields: Any) -> FakeCall:
        request = pb.DeleteRangeRequest(key=key, range_end=range_end, **fields)
        return self.call(KV + "DeleteRange", request)

    def txn(self, compare: Any = (), success: Any = (), failure: Any = ()) -> FakeCall:
        request = pb.TxnRequest(compare=compare, success=success, failure=failure)
        return self.call(KV + "Txn", request)

    def compact(self, revision: int, physical: bool = False) -> FakeCall:
        request = pb.CompactionRequest(revision=revision, physical=physical)
        return self.call(KV + "Compact", request)

    def grant(self, lease_id: int, ttl_s: int = 60) -> FakeCall:
        return self.call(LEASE + "LeaseGrant", pb.LeaseGrantRequest(ID=lease_id, TTL=ttl_s))

    def revoke(self, lease_id: int) -> FakeCall:
        return self.call(LEASE + "LeaseRevoke", pb.LeaseRevokeRequest(ID=lease_id))

    def time_to_live(self, lease_id: int, keys: bool = False) -> FakeCall:
        request = pb.LeaseTimeToLiveRequest(ID=lease_id, keys=keys)
        return self.call(LEASE + "LeaseTimeToLive", request)

    def hash_kv(self, revision: int = 0) -> FakeCall:
        return self.call(MAINTENANCE + "HashKV", pb.HashKVRequest(revision=revision))

    def _stream(self, method: str, parse: Any, room: int) -> FakeStream:
        stream = FakeStream(method, parse, room)
        stream.handler = self.service.on_stream(stream)
        return stream

    def watch_stream(self, room: int = 1 << 40) -> FakeStream:
        return self._stream("/etcdserverpb.Watch/Watch", pb.WatchResponse, room)

    def range_stream(self, room: int = 1 << 40) -> FakeStream:
        return self._stream(KV + "RangeStream", pb.RangeStreamResponse, room)

    def keep_alive(self) -> FakeStream:
        return self._stream(LEASE + "LeaseKeepAlive", pb.LeaseKeepAliveResponse, 1 << 40)


def table() -> partitions.PartitionTable:
    return partitions.parse(TABLE)


async def start(
    storage: MemoryStorage | None = None,
    options: NodeOptions | None = None,
    split: partitions.PartitionTable | None = None,
    service: ServiceOptions | None = None,
    cpu_s: Callable[[], float] = lambda: 0.0,
    **journal: Any,
) -> World:
    """A server on a storage (a new one unless given), idle unless `cpu_s` says otherwise."""
    faulty = FaultyJournal(MemoryJournal(storage, **journal))
    node = Node(
        faulty, split or table(), options or NodeOptions(), asyncio.get_running_loop(), cpu_s
    )
    await node.open()
    return World(node, faulty, EtcdService(node, service or ServiceOptions()))


@asynccontextmanager
async def world(**options: Any) -> AsyncIterator[World]:
    """A server for one test."""
    started = await start(**options)
    try:
        yield started
    finally:
        started.journal.release()
        await started.node.close()


# -- parts of transactions -----------------------------------------------------------------


def put_op(key: bytes, value: bytes = b"", **fields: Any) -> pb.RequestOp:
    return pb.RequestOp(request_put=pb.PutRequest(key=key, value=value, **fields))


def get_op(key: bytes, range_end: bytes = b"", **fields: Any) -> pb.RequestOp:
    return pb.RequestOp(request_range=pb.RangeRequest(key=key, range_end=range_end, **fields))


def delete_op(key: bytes, range_end: bytes = b"", **fields: Any) -> pb.RequestOp:
    return pb.RequestOp(
        request_delete_range=pb.DeleteRangeRequest(key=key, range_end=range_end, **fields)
    )


def txn_op(compare: Any = (), success: Any = (), failure: Any = ()) -> pb.RequestOp:
    return pb.RequestOp(
        request_txn=pb.TxnRequest(compare=compare, success=success, failure=failure)
    )


def mod_is(key: bytes, revision: int, range_end: bytes = b"") -> pb.Compare:
    return pb.Compare(
        target=pb.Compare.MOD,
        result=pb.Compare.EQUAL,
        key=key,
        mod_revision=revision,
        range_end=range_end,
    )


async def settle(turns: int = 5) -> None:
    """Let the loop go round a few times."""
    for _ in range(turns):
        await asyncio.sleep(0)
