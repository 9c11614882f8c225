"""A cluster under load while its parts die, freeze and come back; then everything is judged.

No acknowledged write is lost (I1), none is there twice (I3), no read is stale (I2), watches are
complete, ordered and unique over every change (I4), all nodes have the same hashes (I5).
"""

from __future__ import annotations

import asyncio
import random
import time

import pytest

from tests import wire
from tests.cluster.parts import JotdCluster, judged
from tests.crash.lives import Lives, Verdict, require_sound

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

FREEZE_S = 4.0
"""Longer than a lease: another node leads by then."""


async def leader_dies(cluster: JotdCluster, lives: Lives, rng: random.Random) -> None:
    node = await cluster.leader()
    node.kill9()
    await cluster.leader(besides=node.endpoint)
    await cluster.restart(node)


async def follower_dies(cluster: JotdCluster, lives: Lives, rng: random.Random) -> None:
    node = await cluster.follower()
    node.kill9()
    await asyncio.sleep(rng.uniform(0.1, 1.0))
    await cluster.restart(node)


async def leader_freezes(cluster: JotdCluster, lives: Lives, rng: random.Random) -> None:
    node = await cluster.leader()
    cluster.freeze(node)
    try:
        await cluster.leader(besides=node.endpoint)
        await asyncio.sleep(rng.uniform(0.0, FREEZE_S / 4))
    finally:
        cluster.thaw(node)


async def nats_server_dies(cluster: JotdCluster, lives: Lives, rng: random.Random) -> None:
    server = rng.choice(cluster.nats.servers)
    server.kill9()
    await asyncio.sleep(rng.uniform(0.5, 2.0))
    await asyncio.to_thread(server.restart)
    await asyncio.to_thread(cluster.nats.wait_ready)


async def stream_leader_dies(cluster: JotdCluster, lives: Lives, rng: random.Random) -> None:
    """The journal stalls for an election of NATS; jotd's leader stays."""
    server = await cluster.stream_leader()
    server.kill9()
    await lives.progress(30)
    await asyncio.to_thread(server.restart)
    await asyncio.to_thread(cluster.nats.wait_ready)


async def all_nodes_die(cluster: JotdCluster, lives: Lives, rng: random.Random) -> None:
    for node in cluster.nodes:
        node.kill9()
    for node in cluster.nodes:
        node.start(wait=False)
    for node in cluster.nodes:
        await asyncio.to_thread(node.wait_ready)


async def leader_leaves(cluster: JotdCluster, lives: Lives, rng: random.Random) -> None:
    node = await cluster.leader()
    assert await asyncio.to_thread(node.stop) == 0
    await cluster.leader(besides=node.endpoint)
    await cluster.restart(node)


FAULTS = [
    leader_dies,
    follower_dies,
    leader_freezes,
    nats_server_dies,
    stream_leader_dies,
    all_nodes_die,
    leader_leaves,
]


@pytest.mark.parametrize("seed", wire.seeds(1), ids=str)
def test_every_fault_under_load(cluster: JotdCluster, seed: int) -> None:
    async def run() -> Verdict:
        rng = random.Random(seed)
        lives = Lives(cluster.endpoints, seed, clients=6, pause_s=0.01)
        await cluster.leader()
        await lives.start()
        try:
            for fault in rng.sample(FAULTS, len(FAULTS)):
                await lives.progress(rng.randrange(60, 150))
                began = time.monotonic()
                await fault(cluster, lives, rng)
                print(f"{fault.__name__}: {time.monotonic() - began:.1f} s")
            await lives.progress(50)
        finally:
            await lives.stop()
        return await judged(cluster, lives)

    require_sound(asyncio.run(run()), seed, 500)
