"""The recorded kube-apiserver traffic gets equal answers (I2, I3, I4 on a real conversation)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import peers
from tests.traces import recording
from tests.traces.recording import Recording, Step
from tests.traces.replay import Replay

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


def _passes(process: peers.Process, data: Recording) -> None:
    differences = asyncio.run(Replay(data, process.endpoint).run())
    assert not differences, "\n\n".join(differences)


@pytest.mark.once
def test_the_recording_is_one_history() -> None:
    """Each revision was made by exactly one recorded write, so that none is replayed blindly."""
    data = recording.load()
    writes = [step.revision for step in data.steps if step.rank == recording.WRITE]
    assert writes == list(range(2, data.last_revision + 1))
    assert all(watch.created for watch in data.watches.values())
    assert sum(len(watch.events) for watch in data.watches.values()) > 1000


@pytest.mark.parametrize("journal", ["memory", "file"])
def test_jotd_answers_as_recorded(tmp_path: Path, journal: str) -> None:
    with peers.start_jotd(tmp_path / "data", journal=journal) as jotd:
        _passes(jotd, recording.load())


def test_jotd_answers_as_recorded_over_a_kill(tmp_path: Path) -> None:
    """I1, I4: the same conversation with a kill -9 in the middle; watches go on where they were."""
    data = recording.load()
    with peers.start_jotd(tmp_path / "data", journal="file") as jotd:

        async def restart() -> None:
            jotd.kill9()
            await asyncio.to_thread(jotd.restart)

        replay = Replay(data, jotd.endpoint)
        differences = asyncio.run(replay.run(break_at=data.last_revision // 2, restart=restart))
    assert not differences, "\n\n".join(differences)


@pytest.mark.once
def test_etcd_answers_as_recorded(tmp_path: Path) -> None:
    """The replay itself is right: the server that was recorded passes it."""
    with peers.start_etcd(tmp_path) as etcd:
        _passes(etcd, recording.load())


def _step(data: Recording, wanted: Callable[[Step], bool]) -> tuple[Step, str]:
    step = next(step for step in data.steps if wanted(step))
    return step, f"line {step.line}: "


def _damage(data: Recording) -> list[str]:
    """Damages a recording in one place of each kind. Returns how its differences begin."""
    read, in_value = _step(data, lambda s: s.method == "Range" and bool(s.answer.kvs))
    read.answer.kvs[0].value += b"x"
    count, in_count = _step(data, lambda s: s.method == "Range" and s.request.count_only)
    count.answer.count += 1
    failed, in_branch = _step(data, lambda s: s.method == "Txn" and not s.answer.succeeded)
    failed.answer.succeeded = True
    put, in_header = _step(data, lambda s: s.method == "Txn" and s.rank == recording.WRITE)
    put.answer.header.revision += 1
    created, in_created = _step(data, lambda s: s.method == "Watch" and s.answer.created)
    created.answer.header.revision += 1
    progress, in_progress = _step(data, lambda s: s.method == "Watch" and s.answer.watch_id == -1)
    progress.answer.header.revision -= 1

    busy = sorted(data.watches.values(), key=lambda watch: -len(watch.events))
    repeated, dropped, swapped = busy[1:4]
    repeated.events.insert(1, repeated.events[0])
    del dropped.events[1]
    swapped.events[0:2] = swapped.events[1::-1]
    next(event for event in busy[0].events if event.HasField("prev_kv")).ClearField("prev_kv")
    return [
        in_value, in_count, in_branch, in_header, in_created, in_progress,
        *(f"watch {watch.stream} of " for watch in busy[:4]),
    ]  # fmt: skip


@pytest.mark.once
def test_a_difference_is_seen(tmp_path: Path) -> None:
    """Negative control: a server that is off by one field or event does not pass.

    The recording is what gets damaged, which is the same to the comparison.
    """
    data = recording.load()
    marks = _damage(data)
    with peers.start_etcd(tmp_path) as etcd:
        replay = Replay(data, etcd.endpoint)
        asyncio.run(replay.run())
    for mark in marks:
        assert any(text.startswith(mark) for text in replay.differences), mark
