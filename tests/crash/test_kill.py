"""kill -9 in a loop under load: what was acknowledged is there, what was refused is not.

I1, I3, I5 and I7, with watchers that live through it all (I2, I4).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import peers, wire
from tests.crash.lives import Lives, Verdict, in_thread_restart, require_sound

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

KILLS = 4


def _judge(verdict: Verdict, seed: int, acked_min: int = 500) -> None:
    require_sound(verdict, seed, acked_min)
    assert verdict.hashes > 3


async def _live_and_die(
    process: peers.Process,
    seed: int,
    kills: int,
    *,
    in_recovery: bool = False,
    compacting: bool = False,
) -> Verdict:
    """`kills` lives under load, each ended by SIGKILL, and two more recoveries to compare."""
    lives = Lives(process.endpoint, seed, compacting=compacting)
    rng = random.Random(seed)
    await lives.start()
    try:
        for _ in range(kills):
            await lives.progress(rng.randrange(100, 400))
            process.kill9()
            if in_recovery:
                for _ in range(rng.randrange(1, 4)):
                    process.start(wait=False)
                    await asyncio.sleep(rng.uniform(0.1, 1.0))
                    process.kill9()
            await in_thread_restart(process)
        await lives.progress(20)
    finally:
        await lives.stop()
    process.kill9()
    await in_thread_restart(process)
    await lives.judge()
    process.kill9()
    # The second recovery of the same journal: the same hashes once more.
    await in_thread_restart(process)
    return await lives.judge()


@pytest.mark.parametrize("seed", wire.seeds(1), ids=str)
def test_kill_under_load(tmp_path: Path, seed: int) -> None:
    with peers.start_jotd(tmp_path / "data", journal="file") as jotd:
        _judge(asyncio.run(_live_and_die(jotd, seed, KILLS * wire.scale())), seed)


@pytest.mark.parametrize("seed", wire.seeds(1), ids=str)
def test_kill_while_snapshots_are_taken(tmp_path: Path, seed: int) -> None:
    """R9: a snapshot every few dozen writes; each kill has a good chance to hit one."""
    with peers.start_jotd(tmp_path / "data", ["--snapshot-count=40"], journal="file") as jotd:
        _judge(asyncio.run(_live_and_die(jotd, seed, KILLS * wire.scale())), seed)


@pytest.mark.parametrize("seed", wire.seeds(1), ids=str)
def test_kill_while_compacting(tmp_path: Path, seed: int) -> None:
    """R8, R9: what compaction leaves, and its revision, survive, by journal and by snapshot."""
    with peers.start_jotd(tmp_path / "data", ["--snapshot-count=60"], journal="file") as jotd:
        run = _live_and_die(jotd, seed, (KILLS + 2) * wire.scale(), compacting=True)
        _judge(asyncio.run(run), seed)


@pytest.mark.parametrize("seed", wire.seeds(1), ids=str)
def test_kill_during_recovery(tmp_path: Path, seed: int) -> None:
    """Recovery may be cut anywhere, as often as it likes, and changes nothing."""
    with peers.start_jotd(tmp_path / "data", ["--snapshot-count=300"], journal="file") as jotd:
        run = _live_and_die(jotd, seed, 2 * wire.scale(), in_recovery=True)
        # Those that die in recovery serve for a moment, or not at all.
        _judge(asyncio.run(run), seed, 200)


@pytest.mark.parametrize("seed", wire.seeds(1), ids=str)
def test_terminate_under_load(tmp_path: Path, seed: int) -> None:
    """SIGTERM: exit 0, and each write that was carried out was answered."""

    async def run() -> Verdict:
        with peers.start_jotd(tmp_path / "data", journal="file") as jotd:
            lives = Lives(jotd.endpoint, seed)
            await lives.start()
            try:
                for _ in range(3):
                    await lives.progress(150)
                    assert await asyncio.to_thread(jotd.stop) == 0, jotd.log_text()[-2000:]
                    await in_thread_restart(jotd)
            finally:
                await lives.stop()
            return await lives.judge()

    verdict = asyncio.run(run())
    _judge(verdict, seed)
    assert not verdict.happened, f"carried out, but not answered: {verdict.happened[0]}"


@pytest.mark.once
@pytest.mark.parametrize("seed", wire.seeds(1), ids=str)
def test_etcd_passes(tmp_path: Path, seed: int) -> None:
    """The harness is right: etcd passes it."""
    with peers.start_etcd(tmp_path) as etcd:
        _judge(asyncio.run(_live_and_die(etcd, seed, 3)), seed)


@pytest.fixture
def forgetful(tmp_path: Path) -> Iterator[peers.Process]:
    """A server that keeps nothing over a restart."""
    with peers.start_jotd(tmp_path / "data", journal="memory") as jotd:
        yield jotd


def test_a_server_that_forgets_is_caught(forgetful: peers.Process) -> None:
    """Negative control: with the memory journal, acknowledged writes are lost and it shows."""

    async def run() -> Verdict:
        lives = Lives(forgetful.endpoint, 1)
        await lives.start()
        try:
            await lives.progress(100)
            forgetful.kill9()
            await in_thread_restart(forgetful)
        finally:
            await lives.stop()
        return await lives.judge()

    verdict = asyncio.run(run())
    assert any(fault.startswith("I1:") for fault in verdict.faults)
    assert any(fault.startswith("I3:") or "I2:" in fault for fault in verdict.faults)
