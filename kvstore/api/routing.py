"""Routing between nodes: what this one answers, and what the leader does.

Any endpoint serves any client. A node that leads answers everything. Another one answers what its
own memory is enough for (serializable reads, watches, what a member says about itself) and passes
the rest on, with the client's own bytes in both directions. While it is not clear who leads, calls
wait for as long as etcd would let them.

What may be tried again is tried again: reads, and writes that certainly did not reach a leader. A
write that may have been taken is answered Unavailable (I7).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine, Sequence
from typing import Any, Protocol

from google.protobuf.message import DecodeError

from kvstore.api import errors
from kvstore.api.errors import ApiError
from kvstore.api.watch import wants_leader
from kvstore.cluster.election import Member
from kvstore.node.proposer import REQUEST_TIMEOUT_S
from kvstore.pb import rpc_pb2 as pb
from kvstore.transport.seam import (
    Call,
    Code,
    Kind,
    Remote,
    RemoteError,
    Service,
    Stream,
    StreamHandler,
)

log = logging.getLogger(__name__)

FORWARDED = "jotd-forwarded"
"""Metadata key of what one node passes on to another, which never passes it on again. The value
is what is left of the time for finding a leader, in milliseconds."""

PASSED_ON = ("authorization", "client-api-version", "token")
"""Metadata of the client's that the leader has to see."""

FORWARDED_MAX = 20_000
"""Calls that one node has waiting for another (I8)."""

PAUSE_S = 0.02
"""Between two tries to reach a leader."""

KV = "/etcdserverpb.KV/"
LEASE = "/etcdserverpb.Lease/"
MAINTENANCE = "/etcdserverpb.Maintenance/"

KEEP_ALIVE = LEASE + "LeaseKeepAlive"

LOCAL = frozenset(
    (
        "/etcdserverpb.Cluster/MemberList",
        MAINTENANCE + "Defragment",
        MAINTENANCE + "Hash",
        MAINTENANCE + "HashKV",
        MAINTENANCE + "MoveLeader",
        MAINTENANCE + "Status",
        "/grpc.health.v1.Health/Check",
        "/grpc.health.v1.Health/Watch",
        "/etcdserverpb.Watch/Watch",
    )
)
"""What a member answers for itself."""

READS = frozenset((KV + "Range", LEASE + "LeaseTimeToLive", LEASE + "LeaseLeases"))
"""What may be asked twice."""

LONG = READS | {KV + "Compact"}
LONG_S = 600.0
"""What may take longer than etcd's limit on writes, and how long."""


class Roles(Protocol):
    """What routing has to know of the node."""

    def leads(self) -> bool: ...


class Leaders(Protocol):
    """What routing has to know of the cluster."""

    is_leaderless: bool

    @property
    def leader(self) -> Member | None: ...

    def changed(self) -> asyncio.Future[None]: ...


class RoutingService:
    """An EtcdService among others (a seam Service)."""

    def __init__(
        self, inner: Service, node: Roles, cluster: Leaders, me: int, remote: Remote
    ) -> None:
        self._inner = inner
        self._node = node
        self._cluster = cluster
        self._me = me
        self._remote = remote
        self._tasks: set[asyncio.Task[None]] = set()
        self.max_request_bytes = inner.max_request_bytes
        self.forwarded: dict[str, int] = {}
        """Calls and streams passed on, by method."""

    def kind(self, method: str) -> Kind | None:
        """See seam.Service."""
        return self._inner.kind(method)

    def unimplemented(self, method: str) -> str:
        """See seam.Service."""
        return self._inner.unimplemented(method)

    def on_calls(self, calls: Sequence[Call]) -> None:
        """See seam.Service. The lease is looked at after the batch was taken (R6)."""
        if self._node.leads():
            self._inner.on_calls(calls)
            return
        here: list[Call] = []
        for call in calls:
            if wants_leader(call.peer) and self._cluster.is_leaderless:
                _fail(call, errors.NO_LEADER)
            elif call.method in LOCAL or (
                call.method == KV + "Range" and _is_serializable(call.request)
            ):
                here.append(call)
            elif len(self._tasks) >= FORWARDED_MAX:
                _fail(call, errors.TOO_MANY_REQUESTS)
            else:
                self._start(self._place(call))
        if here:
            self._inner.on_calls(here)

    def on_stream(self, stream: Stream) -> StreamHandler:
        """See seam.Service."""
        if wants_leader(stream.peer) and self._cluster.is_leaderless:
            _close(stream, errors.NO_LEADER)
            return _Closed()
        if stream.method in LOCAL:
            return self._inner.on_stream(stream)
        if len(self._tasks) >= FORWARDED_MAX:
            _close(stream, errors.TOO_MANY_REQUESTS)
            return _Closed()
        return _LeaderStream(self, stream)

    async def close(self) -> None:
        """Give up what waits for another node."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _place(self, call: Call) -> None:
        """Have a call answered by whoever leads."""
        try:
            await self._answer(call)
        except ApiError as error:
            _fail(call, error)
        except asyncio.CancelledError:
            _fail(call, errors.STOPPED)
            raise
        except Exception:
            log.exception("%s could not be passed on", call.method)
            call.fail(Code.INTERNAL, "forwarding failed")

    async def _answer(self, call: Call) -> None:
        deadline = asyncio.get_running_loop().time() + _patience_s(call)
        while not call.cancelled:
            url = await self._leader(deadline, forwarded=_is_forwarded(call))
            if url is None:
                self._inner.on_calls([call])
                return
            try:
                response = await self._ask(url, call, deadline)
            except RemoteError as error:
                if error.message == errors.NOT_LEADER.message or error.unsent:
                    await asyncio.sleep(PAUSE_S)
                elif error.code is Code.DEADLINE_EXCEEDED:
                    raise errors.TIMEOUT from error
                elif not _is_lost(error):
                    call.fail(error.code, error.message)
                    return
                elif call.method not in READS:
                    raise errors.LEADER_FAILED from error
                else:
                    await asyncio.sleep(PAUSE_S)
            else:
                self._count(call.method)
                call.finish(response)
                return

    async def _ask(self, url: str, call: Call, deadline: float) -> bytes:
        """Have the node at `url` answer. Raises RemoteError.

        Writes get what is left of etcd's limit. What may take as long as it has to, a list of
        gigabytes for one, gets its time; a read is given up when another node leads, for the
        one that is asked may be frozen.
        """
        metadata = self._metadata(call, deadline)
        if call.method not in LONG:
            within_s = deadline - asyncio.get_running_loop().time()
            return await self._remote.unary(url, call.method, call.request, metadata, within_s)
        asking = asyncio.ensure_future(
            self._remote.unary(url, call.method, call.request, metadata, LONG_S)
        )
        try:
            while not asking.done():
                changed = self._cluster.changed()
                await asyncio.wait((asking, changed), return_when=asyncio.FIRST_COMPLETED)
                leader = self._cluster.leader
                gone = leader is not None and url not in leader.client_urls
                if gone and not asking.done() and call.method in READS:
                    raise RemoteError(Code.UNAVAILABLE, "another node leads", unsent=True)
            return asking.result()
        finally:
            asking.cancel()

    async def _leader(self, deadline: float, *, forwarded: bool) -> str | None:
        """Where the leader is; None: here, with its lease in force. Waits for one.

        Raises ApiError: NO_LEADER, or NOT_LEADER if the call must not be passed on again.
        """
        loop = asyncio.get_running_loop()
        while True:
            if self._node.leads():
                return None
            leader = self._cluster.leader
            remaining = deadline - loop.time()
            if remaining <= 0:
                raise errors.NO_LEADER if leader is None else errors.TIMEOUT
            if leader is not None and leader.id != self._me:
                if forwarded:
                    raise errors.NOT_LEADER
                if leader.client_urls:
                    return leader.client_urls[0]
            try:
                await asyncio.wait_for(self._cluster.changed(), remaining)
            except TimeoutError:
                continue

    def _metadata(self, call: Call | Stream, deadline: float) -> list[tuple[str, str]]:
        left_s = deadline - asyncio.get_running_loop().time()
        found = [(key, call.peer.metadata(key)) for key in PASSED_ON]
        left = (FORWARDED, str(max(1, round(left_s * 1000))))
        return [left, *((key, value) for key, value in found if value is not None)]

    def _count(self, method: str) -> None:
        self.forwarded[method] = self.forwarded.get(method, 0) + 1


class _LeaderStream:
    """A stream that the leader serves (a seam StreamHandler): keep-alives, and RangeStream.

    Which node that is is decided when the first message comes; serializable reads stay here. A
    stream of keep-alives ends with the lead of its node: only the leader ends leases, so to renew
    one anywhere else would be a promise that nobody keeps.
    """

    def __init__(self, routing: RoutingService, stream: Stream) -> None:
        self._routing = routing
        self._stream = stream
        self._handler: StreamHandler | None = None
        self._requests: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None
        self._room = asyncio.Event()

    def on_messages(self, messages: Sequence[bytes]) -> None:
        """From the client."""
        leads = self._routing._node.leads()
        if self._handler is not None:
            if self._stream.method == KEEP_ALIVE and not leads:
                _close(self._stream, errors.LEADER_CHANGED)
            else:
                self._handler.on_messages(messages)
            return
        if self._task is None:
            if leads or (self._stream.method != KEEP_ALIVE and _is_serializable(messages[0])):
                self._handler = self._routing._inner.on_stream(self._stream)
                self._handler.on_messages(messages)
                return
            self._task = self._routing._start(self._pass_on())
        if self._requests.qsize() > FORWARDED_MAX:
            _close(self._stream, errors.TOO_MANY_REQUESTS)
            return
        for message in messages:
            self._requests.put_nowait(message)

    def on_half_close(self) -> None:
        """The client asks for nothing more."""
        if self._handler is not None:
            self._handler.on_half_close()
        elif self._task is None:
            self._stream.close()
        else:
            self._requests.put_nowait(None)

    def on_room(self) -> None:
        """The client caught up."""
        if self._handler is not None:
            self._handler.on_room()
        self._room.set()

    def on_closed(self) -> None:
        """The stream is over."""
        if self._handler is not None:
            self._handler.on_closed()
        if self._task is not None:
            self._task.cancel()

    async def _pass_on(self) -> None:
        stream, routing = self._stream, self._routing
        deadline = asyncio.get_running_loop().time() + _patience_s(stream)
        try:
            url = await routing._leader(deadline, forwarded=_is_forwarded(stream))
            if url is None:
                self._serve_here()
                return
            routing._count(stream.method)
            metadata = routing._metadata(stream, deadline)
            async for message in routing._remote.stream(url, stream.method, self._each(), metadata):
                stream.send(message)
                while stream.room <= 0:
                    self._room.clear()
                    await self._room.wait()
            stream.close()
        except ApiError as error:
            _close(stream, error)
        except RemoteError as error:
            if _is_lost(error):
                _close(stream, errors.LEADER_CHANGED)
            else:
                stream.close(error.code, error.message)

    def _serve_here(self) -> None:
        """This node has come to lead meanwhile."""
        handler = self._handler = self._routing._inner.on_stream(self._stream)
        waiting: list[bytes] = []
        half_closed = False
        while not self._requests.empty():
            message = self._requests.get_nowait()
            if message is None:
                half_closed = True
            else:
                waiting.append(message)
        if waiting:
            handler.on_messages(waiting)
        if half_closed:
            handler.on_half_close()

    async def _each(self) -> AsyncIterator[bytes]:
        while True:
            message = await self._requests.get()
            if message is None:
                return
            yield message


class _Closed:
    """The handler of a stream that was refused."""

    def on_messages(self, messages: Sequence[bytes]) -> None:
        """Nobody listens."""

    def on_half_close(self) -> None:
        """Nobody listens."""

    def on_room(self) -> None:
        """Nothing is to be sent."""

    def on_closed(self) -> None:
        """It is over."""


def _is_serializable(request: bytes) -> bool:
    try:
        return pb.RangeRequest.FromString(request).serializable
    except DecodeError:
        return True  # Whoever looks at it refuses it.


def _is_forwarded(call: Call | Stream) -> bool:
    return call.peer.metadata(FORWARDED) is not None


def _patience_s(call: Call | Stream) -> float:
    """How long a leader is waited for: etcd's limit, or what is left of it to the sender."""
    left = call.peer.metadata(FORWARDED)
    if left is None or not left.isdecimal():
        return REQUEST_TIMEOUT_S
    return min(int(left[:9]) / 1000, REQUEST_TIMEOUT_S)


def _is_lost(error: RemoteError) -> bool:
    """Whether it was the way or the other process that failed, and not the request."""
    return error.code in (Code.UNAVAILABLE, Code.CANCELLED) and not error.message.startswith(
        "etcdserver: "
    )


def _fail(call: Call, error: ApiError) -> None:
    call.fail(error.code, error.message)


def _close(stream: Stream, error: ApiError) -> None:
    stream.close(error.code, error.message)
