"""A whole cluster of real processes: three nats-servers, three nodes, and ways to break them."""

from __future__ import annotations

import asyncio
import shutil
import signal
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from uuid import uuid4

import grpc
import grpc.aio

from kvstore.pb import rpc_pb2
from tests import peers, wire
from tests.crash.lives import Lives, Verdict
from tests.nats import NatsCluster, NatsServer
from tests.peers import Process
from tests.proxy import Way

LEADER_SECONDS_MAX = 40.0


class JotdCluster:
    """`count` nodes that share a journal on a NATS cluster of their own, all on 127.0.0.1."""

    def __init__(
        self,
        directory: Path,
        count: int = 3,
        flags: Iterable[str] = (),
        *,
        nats: NatsCluster,
        cuttable: bool = False,
        command: Sequence[str] | None = None,
    ) -> None:
        """`cuttable`: each node has a `way` of its own to the nats-servers, and no other.

        `command` runs in place of ``jotd``.
        """
        self.nats = nats
        self.name = f"t{uuid4().hex[:8]}"
        self.nodes: list[Process] = []
        self._directory = directory
        self._flags = list(flags)
        self._command = command
        self._ways: dict[str, Way] = {}
        self._cuttable = cuttable
        for _ in range(count):
            self.add()

    def add(self) -> Process:
        """One more node, with nothing of its own."""
        number = len(self.nodes)
        endpoints = self.nats.endpoints
        way = Way([server.port for server in self.nats.servers]) if self._cuttable else None
        if way is not None:
            endpoints = way.endpoints
        node = peers.start_jotd(
            self._directory / f"node-{number}",
            [f"--name=node-{number}", *self._flags],
            journal=f"nats://{endpoints}/{self.name}",
            command=self._command,
            env={"PYTHONPATH": str(peers.ROOT)} if self._command else None,
        )
        self.nodes.append(node)
        if way is not None:
            self._ways[node.endpoint] = way
        return node

    def way(self, node: Process) -> Way:
        """What is between a node and the nats-servers."""
        return self._ways[node.endpoint]

    @property
    def endpoints(self) -> list[str]:
        return [node.endpoint for node in self.nodes]

    async def leader(self, within_s: float = LEADER_SECONDS_MAX, besides: str = "") -> Process:
        """The node that leads and says so itself; waits for one (another than `besides`)."""
        deadline = time.monotonic() + within_s
        while True:
            for node in self.nodes:
                if node.alive and node.endpoint != besides and await _says_it_leads(node):
                    return node
            assert time.monotonic() < deadline, "nobody leads"
            await asyncio.sleep(0.02)

    async def follower(self) -> Process:
        leader = await self.leader()
        return next(node for node in self.nodes if node is not leader and node.alive)

    async def stream_leader(self) -> NatsServer:
        """The nats-server that leads the stream of the data."""
        from journal.nats import config

        stream = config.names(self.name, "data").stream
        return await asyncio.to_thread(self.nats.leader, stream)

    async def restart(self, process: Process) -> None:
        await asyncio.to_thread(process.restart)

    def freeze(self, process: Process) -> None:
        process.signal(signal.SIGSTOP)

    def thaw(self, process: Process) -> None:
        process.signal(signal.SIGCONT)

    def stop(self) -> None:
        for node in self.nodes:
            if node.alive:
                node.signal(signal.SIGCONT)
                node.kill9()
            assert node.data_dir is not None
            shutil.rmtree(node.data_dir, ignore_errors=True)
        for way in self._ways.values():
            way.stop()


async def _says_it_leads(node: Process) -> bool:
    async with wire.Client(node.endpoint) as client:
        try:
            status = await client.call("Status", rpc_pb2.StatusRequest(), timeout=1)
        except grpc.aio.AioRpcError:
            return False
        return bool(status.leader) and status.leader == status.header.member_id


async def status(node: Process) -> rpc_pb2.StatusResponse:
    """What a node says of itself."""
    async with wire.Client(node.endpoint) as client:
        answer: rpc_pb2.StatusResponse = await client.call("Status", rpc_pb2.StatusRequest())
        return answer


async def judged(cluster: JotdCluster, lives: Lives) -> Verdict:
    """What is wrong with a cluster that is whole again: the load's verdict, and equal hashes."""
    verdict = await lives.judge()
    found = await hashes(cluster.endpoints)
    if len(found) > 1:
        verdict.faults.append(f"I5: the nodes' hashes differ: {found}")
    return verdict


async def first_write(endpoint: str, key: bytes = b"probe") -> float:
    """When a write is acknowledged again at an endpoint (time.monotonic)."""
    async with wire.Client(endpoint) as client:
        deadline = time.monotonic() + LEADER_SECONDS_MAX
        while True:
            try:
                await client.put(key, timeout=8)
                return time.monotonic()
            except grpc.aio.AioRpcError:
                assert time.monotonic() < deadline, "no write is taken"
                await asyncio.sleep(0.01)


async def hashes(endpoints: Iterable[str]) -> set[int]:
    """What the nodes, each by itself, say that all they have at the same revision hashes to."""
    endpoints = list(endpoints)
    async with wire.Client(endpoints[0]) as client:
        revision = await client.revision()
    found = set()
    for endpoint in endpoints:
        async with wire.Client(endpoint) as client:
            await client.get(b"\x00")
            async with asyncio.timeout(10):
                while (await client.get(b"\x00", serializable=True)).header.revision < revision:
                    await asyncio.sleep(0.02)
            found.add((await client.hash_kv(revision)).hash)
    return found
