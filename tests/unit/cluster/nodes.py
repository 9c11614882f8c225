"""Several nodes on one memory journal, in virtual time, whose ways can be cut."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from journal.contract import Entry, JournalError, Unknown
from journal.memory import MemoryJournal, MemoryStorage
from kvstore.api.routing import RoutingService
from kvstore.api.service import EtcdService, ServiceOptions
from kvstore.cluster.election import Timing
from kvstore.node.node import Node, NodeOptions
from kvstore.pb import rpc_pb2 as pb
from kvstore.transport.seam import Code, RemoteError
from tests.unit.node.world import LEASE, FakeCall, FakeStream, World, table

TIMING = Timing(lease_s=2.0, margin_s=0.2)


class CutJournal(MemoryJournal):
    """A journal whose node may be cut off: nothing answers then."""

    cut = False
    silence_s = 1.0
    """After so long a journal that is cut off says that it is."""
    durable = True
    """False: acknowledges, and loses (a negative control)."""
    fenced = True
    """False: appends whatever the tail is (a negative control)."""

    async def append(self, parts: Sequence[bytes], expected_tail: int) -> int:
        await self._way()
        if not self.fenced:
            expected_tail = self.storage.tail
        if not self.durable:
            return expected_tail + 1
        return await super().append(parts, expected_tail)

    async def read(self, after: int) -> AsyncIterator[Sequence[Entry]]:
        await self._way()
        async for entries in super().read(after):
            yield entries

    async def follow(self, after: int) -> AsyncIterator[Sequence[Entry]]:
        async for entries in super().follow(after):
            await self._way()
            yield entries

    async def tail(self) -> int:
        await self._way()
        return await super().tail()

    async def _way(self) -> None:
        await asyncio.sleep(0.002)
        if self.cut:
            await asyncio.sleep(self.silence_s)
            raise Unknown("the way to the journal is cut")


class Peer:
    address = "test"
    common_name = None
    certificate_names = ()

    def __init__(self, metadata: Sequence[tuple[str, str]] = ()) -> None:
        self._metadata = dict(metadata)

    def metadata(self, key: str) -> str | None:
        return self._metadata.get(key)


class One(World):
    """One node of several, with what stands before its service."""

    routing: RoutingService
    data: CutJournal
    url: str

    def call(self, method: str, request: Any, metadata: Sequence[tuple[str, str]] = ()) -> FakeCall:
        call = FakeCall(method, request)
        call.peer = Peer(metadata)  # type: ignore[assignment]
        self.routing.on_calls([call])
        return call

    def demanding_watch_stream(self) -> FakeStream:
        """Of a client that would rather have an error than no leader."""
        stream = FakeStream("/etcdserverpb.Watch/Watch", pb.WatchResponse)
        stream.peer = Peer([("hasleader", "true")])  # type: ignore[assignment]
        stream.handler = self.routing.on_stream(stream)
        return stream

    def led_keep_alive(self) -> FakeStream:
        """Keep-alives, past what stands before the service."""
        stream = FakeStream(LEASE + "LeaseKeepAlive", pb.LeaseKeepAliveResponse)
        stream.handler = self.routing.on_stream(stream)
        return stream

    def cut(self, cut: bool = True) -> None:
        """Cut the way to both journals, or mend it."""
        self.data.cut = cut
        self.data.control.cut = cut  # type: ignore[union-attr]


class Many:
    """A cluster: `nodes` by name; the one that leads is `leader()`."""

    def __init__(self, **options: Any) -> None:
        self.storage = MemoryStorage(shared=True)
        self.nodes: dict[str, One] = {}
        self.options = options

    async def start(self, name: str) -> One:
        loop = asyncio.get_running_loop()
        data = CutJournal(self.storage)
        assert self.storage.control is not None
        data.control = CutJournal(self.storage.control)
        options = NodeOptions(
            name=name, client_urls=(f"http://{name}",), timing=TIMING, **self.options
        )
        node = Node(data, table(), options, loop, lambda: 0.0, loop.time)
        await node.open()
        service = EtcdService(node, ServiceOptions())
        assert node.cluster is not None
        one = One(node, data, service)  # type: ignore[arg-type]
        one.data, one.url = data, f"http://{name}"
        cluster = node.cluster
        cluster.on_no_leader = service.leader_lost
        one.routing = RoutingService(service, node, cluster, node.member_id, self)
        self.nodes[name] = one
        return one

    def kill(self, one: One) -> None:
        """As kill -9 does: nothing of it goes on, and nobody is told."""
        del self.nodes[one.url.removeprefix("http://")]
        node = one.node
        assert node.cluster is not None
        for task in (node.cluster._task, node.cluster._elector._task, node.appender._task,
                     node.follower._task):  # fmt: skip
            if task is not None:
                task.cancel()
        if node._ticker is not None:
            node._ticker.cancel()

    def leaders(self) -> list[One]:
        return [one for one in self.nodes.values() if one.node.leads()]

    async def leader(self, within_s: float = 10.0) -> One:
        """Who leads; waits until somebody does."""
        deadline = asyncio.get_running_loop().time() + within_s
        while asyncio.get_running_loop().time() < deadline:
            if found := self.leaders():
                assert len(found) == 1
                return found[0]
            await asyncio.sleep(0.01)
        raise AssertionError("nobody leads")

    def others(self, one: One) -> list[One]:
        return [other for other in self.nodes.values() if other is not one]

    async def caught_up(self) -> None:
        """Every node has applied everything."""
        for one in self.nodes.values():
            while one.node.applied < self.storage.tail:
                await asyncio.sleep(0.01)

    async def hashes(self) -> set[int]:
        await self.caught_up()
        found = set()
        for one in self.nodes.values():
            found.add((await one.hash_kv()).response.hash)
        return found

    # -- a seam Remote

    async def unary(
        self,
        url: str,
        method: str,
        request: bytes,
        metadata: list[tuple[str, str]],
        within_s: float,
    ) -> bytes:
        one = self.nodes.get(url.removeprefix("http://"))
        await asyncio.sleep(0.001)
        if one is None:
            raise RemoteError(Code.UNAVAILABLE, "failed to connect to all addresses", unsent=True)
        call = await asyncio.wait_for(_done(one.call(method, request, metadata)), within_s)
        if call.code is not Code.OK:
            raise RemoteError(call.code or Code.UNKNOWN, call.message, unsent=False)
        assert call.raw is not None
        return call.raw

    def stream(self, *_: Any) -> AsyncIterator[bytes]:
        raise JournalError("streams are tested with real processes")


async def _done(call: FakeCall) -> FakeCall:
    await call
    return call


@asynccontextmanager
async def cluster(count: int = 3, **options: Any) -> AsyncIterator[Many]:
    many = Many(**options)
    await asyncio.gather(*(many.start("abcdefg"[n]) for n in range(count)))
    try:
        yield many
    finally:
        for one in many.nodes.values():
            one.cut(False)
        for one in list(many.nodes.values()):
            await one.routing.close()
            await one.node.close()


def range_request(key: bytes, **fields: Any) -> pb.RangeRequest:
    return pb.RangeRequest(key=key, **fields)
