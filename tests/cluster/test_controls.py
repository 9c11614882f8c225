"""Negative controls: the judge of the cluster's tests finds what a broken journal does.

Real processes, the usual load, a leader that freezes and one that dies; see `broken` for the modes.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from tests import wire
from tests.cluster.parts import JotdCluster, judged
from tests.crash.lives import Lives
from tests.nats import NatsCluster

pytestmark = [pytest.mark.slow, pytest.mark.timeout(200)]

STOPS = "the node stops: "
BACK_S = 0.5
"""What the deposed leader has to do harm when it is back."""


def _stopped(cluster: JotdCluster) -> list[str]:
    """What nodes found in the journal that made them stop (I10)."""
    return [
        f"{node.log.name}: {line.partition(STOPS)[2]}"
        for node in cluster.nodes
        for line in node.log.read_text().splitlines()
        if STOPS in line
    ]


async def _ordeal(cluster: JotdCluster, lives: Lives) -> None:
    """The leader freezes while another takes over, and comes back; the next one dies."""
    await lives.progress(150)
    first = await cluster.leader()
    cluster.freeze(first)
    try:
        await cluster.leader(besides=first.endpoint)
        await lives.progress(50)
    finally:
        cluster.thaw(first)
    await asyncio.sleep(BACK_S)
    await lives.progress(50)
    second = await cluster.leader()
    second.kill9()
    await cluster.leader(besides=second.endpoint)
    await cluster.restart(second)
    await lives.progress(50)


async def _found(cluster: JotdCluster, seed: int) -> list[str]:
    """What is wrong, according to the nodes or to the judge."""
    lives = Lives(cluster.endpoints, seed, clients=9)
    await cluster.leader()
    await lives.start()
    ordeal = asyncio.create_task(_ordeal(cluster, lives))
    while not ordeal.done():
        await asyncio.wait({ordeal}, timeout=0.1)
        if found := _stopped(cluster):
            ordeal.cancel()
            await asyncio.wait({ordeal})
            await lives.abandon()
            return found
    try:
        await ordeal
    except BaseException:
        await lives.abandon()
        raise
    await lives.stop()
    return (await judged(cluster, lives)).faults + _stopped(cluster)


@pytest.mark.parametrize("seed", wire.seeds(1), ids=str)
@pytest.mark.parametrize("mode", ["unbroken", "unfenced", "early"])
def test_the_judge_finds_what_is_broken(
    tmp_path: Path, nats: NatsCluster, mode: str, seed: int
) -> None:
    command = [sys.executable, "-m", "tests.cluster.broken", mode]
    cluster = JotdCluster(tmp_path, nats=nats, command=command)
    try:
        found = asyncio.run(_found(cluster, seed))
    finally:
        cluster.stop()
    shown = "\n".join(found[:5])
    print(f"{len(found)} found\n{shown}")
    assert bool(found) == (mode != "unbroken"), f"JOTD_TEST_SEED={seed} again\n{shown}"
