"""The leader alone loses the journal, and both go on living: what clients of either side may see.

The node that is cut off has clients, watchers and a clock; its writes may still arrive when the cut
heals. Another node leads by then.
"""

from __future__ import annotations

import asyncio
import random
import time

import grpc
import grpc.aio
import pytest

from kvstore.pb import rpc_pb2
from tests import wire
from tests.cluster.parts import JotdCluster, judged, status
from tests.crash.lives import Lives, Verdict, require_sound
from tests.peers import Process
from tests.watch.checks import Session

pytestmark = [pytest.mark.slow, pytest.mark.timeout(200)]

ANOTHER_LEADS_S = 5.0
HEALED_S = 12.0
"""A connection that stalled is noticed by its pings, and the next one has to come about."""
CUT_REVISIONS = 40


class Prober:
    """Linearizable reads of one node, each against what was acknowledged before it was sent."""

    def __init__(self, node: Process, lives: Lives) -> None:
        self._node = node
        self._lives = lives
        self.answered_at = 0.0
        self.refused = 0
        self.faults: list[str] = []

    async def run(self) -> None:
        async with wire.Client(self._node.endpoint) as client, asyncio.TaskGroup() as group:
            # Several, for each of them may have to wait.
            for _ in range(4):
                group.create_task(self._read(client))

    async def _read(self, client: wire.Client) -> None:
        request = rpc_pb2.RangeRequest(key=b"\x00", range_end=b"\x00", count_only=True)
        while True:
            known = self._lives.recorder.known
            try:
                answer = await client.call("Range", request, timeout=1.0)
            except grpc.aio.AioRpcError:
                self.refused += 1
                continue
            self.answered_at = time.monotonic()
            if answer.header.revision < known:
                self.faults.append(
                    f"I2: read at {answer.header.revision}, {known} was acknowledged before"
                )
            await asyncio.sleep(0.005)


def _sessions(lives: Lives, node: Process) -> list[Session]:
    return next(f.sessions for f in lives.followers if f.endpoint == node.endpoint)


async def leader_is_cut(cluster: JotdCluster, lives: Lives, kind: str) -> None:
    cut = await cluster.leader()
    way = cluster.way(cut)
    prober = Prober(cut, lives)
    probing = asyncio.create_task(prober.run())
    watching = len(_sessions(lives, cut))
    await lives.progress(20)
    assert prober.answered_at, "the leader has to answer reads while it leads"
    getattr(way, kind)()
    cut_at = time.monotonic()
    try:
        other = await cluster.leader(ANOTHER_LEADS_S, besides=cut.endpoint)
        led_at = time.monotonic()
        print(f"{kind}: another leads after {led_at - cut_at:.1f} s")
        await lives.progress(CUT_REVISIONS)
        assert prober.refused
        assert prober.answered_at < led_at, "it cannot know what is true"
        async with wire.Client(cut.endpoint) as client, wire.Client(other.endpoint) as there:
            old = await client.get(b"\x00", serializable=True)
            assert old.header.revision < await there.revision()
            await _watches(client)
        said = await status(cut)
        assert said.leader == 0 and "etcdserver: no leader" in said.errors
    finally:
        way.heal()
    healed_at = time.monotonic()
    async with asyncio.timeout(HEALED_S):
        while prober.answered_at < healed_at:
            await asyncio.sleep(0.02)
    print(f"{kind}: forwards {prober.answered_at - healed_at:.1f} s after it healed")
    probing.cancel()
    await asyncio.wait({probing})
    assert not prober.faults, prober.faults[:5]
    await lives.progress(20)
    assert (await status(cut)).leader == (await status(other)).leader
    assert len(_sessions(lives, cut)) == watching, "its watches go on"


async def _watches(client: wire.Client) -> None:
    """A watch that begins at a node without a journal gets what the node has."""
    call = client.stream("Watch")
    create = rpc_pb2.WatchCreateRequest(key=b"\x00", range_end=b"\x00", start_revision=2)
    await call.write(rpc_pb2.WatchRequest(create_request=create))
    async with asyncio.timeout(5):
        assert (await call.read()).created
        assert (await call.read()).events
    call.cancel()


@pytest.mark.parametrize("seed", wire.seeds(1), ids=str)
def test_the_leader_alone_is_cut_off_from_the_journal(cuttable: JotdCluster, seed: int) -> None:
    """I2, I6, R6: connections that are reset and refused; then a black hole."""

    async def run() -> Verdict:
        lives = Lives(cuttable.endpoints, seed, clients=6, pause_s=0.01)
        await cuttable.leader()
        await lives.start()
        try:
            kinds = ["refuse", "stall"]
            random.Random(seed).shuffle(kinds)
            for kind in kinds:
                await leader_is_cut(cuttable, lives, kind)
        finally:
            await lives.stop()
        return await judged(cuttable, lives)

    require_sound(asyncio.run(run()), seed, 200)
