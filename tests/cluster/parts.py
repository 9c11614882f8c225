"""A whole cluster of real processes: three nats-servers, three nodes, and ways to break them."""

from __future__ import annotations

import asyncio
import shutil
import signal
import time
from collections.abc import Iterable
from pathlib import Path
from uuid import uuid4

import grpc
import grpc.aio

from kvstore.pb import rpc_pb2
from tests import peers, wire
from tests.nats import NatsCluster, NatsServer
from tests.peers import Process

LEADER_SECONDS_MAX = 40.0


class JotdCluster:
    """`count` nodes that share a journal on a NATS cluster of their own, all on 127.0.0.1."""

    def __init__(
        self, directory: Path, count: int = 3, flags: Iterable[str] = (), *, nats: NatsCluster
    ) -> None:
        self.nats = nats
        self.name = f"t{uuid4().hex[:8]}"
        self.nodes: list[Process] = [
            peers.start_jotd(
                directory / f"node-{number}",
                [f"--name=node-{number}", *flags],
                journal=nats.url(self.name),
            )
            for number in range(count)
        ]

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


async def _says_it_leads(node: Process) -> bool:
    async with wire.Client(node.endpoint) as client:
        try:
            status = await client.call("Status", rpc_pb2.StatusRequest(), timeout=1)
        except grpc.aio.AioRpcError:
            return False
        return bool(status.leader) and status.leader == status.header.member_id


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
