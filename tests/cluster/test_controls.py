"""Negative controls: the judge of the cluster's tests finds what a broken journal does.

Real processes and the usual load; see `broken` for the modes. Each break gets the fault that brings
it out, and what is not broken gets them all.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Sequence
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


async def leader_freezes(cluster: JotdCluster, lives: Lives) -> None:
    """Another takes over meanwhile, and the one before comes back with what it had in hand."""
    node = await cluster.leader()
    cluster.freeze(node)
    try:
        await cluster.leader(besides=node.endpoint)
        await lives.progress(30)
    finally:
        cluster.thaw(node)
    await asyncio.sleep(BACK_S)


async def leader_is_cut(cluster: JotdCluster, lives: Lives) -> None:
    """The same, of the network: what the leader has in hand is certainly not stored yet."""
    node = await cluster.leader()
    cluster.way(node).stall()
    try:
        await cluster.leader(besides=node.endpoint)
        await lives.progress(20)
    finally:
        cluster.way(node).heal()
    await asyncio.sleep(BACK_S)


async def leader_dies(cluster: JotdCluster, lives: Lives) -> None:
    node = await cluster.leader()
    node.kill9()
    await cluster.leader(besides=node.endpoint)
    await cluster.restart(node)


Fault = Callable[[JotdCluster, Lives], Awaitable[None]]


async def _verdict(cluster: JotdCluster, lives: Lives, faults: Sequence[Fault]) -> list[str]:
    for fault in faults:
        await lives.progress(100)
        await fault(cluster, lives)
    await lives.progress(30)
    await lives.stop()
    return (await judged(cluster, lives)).faults


async def _found(cluster: JotdCluster, faults: Sequence[Fault], seed: int) -> list[str]:
    """What is wrong, according to the nodes or to the judge."""
    lives = Lives(cluster.endpoints, seed, clients=9)
    await cluster.leader()
    await lives.start()
    judging = asyncio.create_task(_verdict(cluster, lives, faults))
    # A node may stop at any time, also under the judge's hands.
    while not judging.done() and not _stopped(cluster):
        await asyncio.wait({judging}, timeout=0.1)
    if found := _stopped(cluster):
        judging.cancel()
        await asyncio.wait({judging})
        await lives.abandon()
        return found
    if judging.exception() is not None:
        await lives.abandon()
    return judging.result()


@pytest.mark.parametrize("seed", wire.seeds(1), ids=str)
@pytest.mark.parametrize(
    ("mode", "faults"),
    [
        # The other two are what test_partition.py and test_faults.py do.
        ("unbroken", [leader_freezes]),
        # Once is enough mostly, and then it ends.
        ("unfenced", [leader_is_cut, leader_freezes] * 3),
        ("early", [leader_dies]),
    ],
    ids=["unbroken", "unfenced", "early"],
)
def test_the_judge_finds_what_is_broken(
    tmp_path: Path, nats: NatsCluster, mode: str, faults: Sequence[Fault], seed: int
) -> None:
    command = [sys.executable, "-m", "tests.cluster.broken", mode]
    cluster = JotdCluster(tmp_path, nats=nats, command=command, cuttable=True)
    try:
        found = asyncio.run(_found(cluster, faults, seed))
    finally:
        cluster.stop()
    shown = "\n".join(fault[:200] for fault in found[:5])
    print(f"{len(found)} found\n{shown}")
    assert bool(found) == (mode != "unbroken"), f"JOTD_TEST_SEED={seed} again\n{shown}"
