"""I4: watch guarantees under random workloads, with compaction, lease expiry and broken streams."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests import peers, wire
from tests.watch import scenario
from tests.watch.scenario import Size, Verdict

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

PROGRESS = "--watch-progress-notify-interval=300ms"
FAULTS_SHOWN_MAX = 10


def _judge(verdict: Verdict, seed: int) -> None:
    shown = "\n".join(verdict.faults[:FAULTS_SHOWN_MAX])
    assert not verdict.faults, (
        f"{len(verdict.faults)} faults; JOTD_TEST_SEED={seed} runs this workload again\n{shown}"
    )
    print(verdict)
    # A run in which nothing happened proves nothing.
    assert verdict.revisions > 300
    assert verdict.events > 1000
    assert verdict.bookmarks > 10
    assert verdict.ended_leases > 0


def _size() -> Size:
    return Size(requests_per_writer=150 * wire.scale())


@pytest.mark.parametrize("seed", wire.seeds(2), ids=str)
def test_jotd_keeps_the_watch_guarantees(tmp_path: Path, seed: int) -> None:
    with peers.start_jotd(tmp_path / "data", [PROGRESS]) as jotd:
        _judge(asyncio.run(scenario.run(jotd.endpoint, seed, _size())), seed)


@pytest.mark.once
@pytest.mark.parametrize("seed", wire.seeds(1), ids=str)
def test_etcd_keeps_the_watch_guarantees(tmp_path: Path, seed: int) -> None:
    """The harness is right: etcd passes it, but for what `scenario.run` says of it."""
    with peers.start_etcd(tmp_path, [PROGRESS]) as etcd:
        run = scenario.run(etcd.endpoint, seed, _size(), etcd_faults=True)
        _judge(asyncio.run(run), seed)
