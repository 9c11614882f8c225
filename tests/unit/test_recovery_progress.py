"""What a server logs while it recovers: how far it is, now and then, snapshot included."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from journal.registry import open_journal
from kvstore import server
from kvstore.api.service import EtcdService, ServiceOptions
from kvstore.cli.config import ServeConfig
from kvstore.node.node import Node, NodeOptions
from kvstore.pb import rpc_pb2 as pb
from kvstore.runtime.collector import CollectorPolicy
from kvstore.server import PROGRESS_S, _Progress, _Server
from tests.unit.cli.test_config import config
from tests.unit.node.world import FakeCall, table

VALUE_BYTES = 100_000


class Clock:
    """Seconds that go by with every look."""

    def __init__(self, step_s: float) -> None:
        self.now = 0.0
        self.step_s = step_s

    def monotonic(self) -> float:
        self.now += self.step_s
        return self.now


def lines(caplog: pytest.LogCaptureFixture, message: str) -> list[dict[str, Any]]:
    return [record.fields for record in caplog.records if record.message == message]  # type: ignore[attr-defined]


async def fill(directory: Path) -> None:
    """A file journal with a snapshot of some size, and entries behind it."""
    loop = asyncio.get_running_loop()
    node = Node(open_journal("file", directory), table(), NodeOptions(), loop)
    await node.open()
    service = EtcdService(node, ServiceOptions())

    async def put(n: int) -> None:
        request = pb.PutRequest(key=b"a/%d" % n, value=b"v" * VALUE_BYTES)
        call = FakeCall("/etcdserverpb.KV/Put", request)
        service.on_calls([call])
        await call

    for n in range(40):
        await put(n)
    node.start_snapshot()
    assert node._snapshot_task is not None
    await node._snapshot_task
    for n in range(40):
        await put(n)
    await node.close()


async def recover(settings: ServeConfig) -> None:
    """What a start does until it serves."""
    node = _Server(settings, CollectorPolicy())._make_node(asyncio.get_running_loop())
    await node.open()
    assert node.snapshot_sequence > 0
    await node.close()


def test_both_the_snapshot_and_the_journal_behind_it_say_how_far_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asyncio.run(fill(tmp_path))
    caplog.set_level("INFO")
    # Each look at the clock is late enough for a line.
    monkeypatch.setattr(server, "time", Clock(PROGRESS_S))
    asyncio.run(recover(config(f"--data-dir={tmp_path}", "--journal=file")))
    loading, reading = lines(caplog, "loading the snapshot"), lines(caplog, "reading the journal")
    for told in (loading, reading):
        assert len(told) > 2
        for line in told:
            assert 0 < line["bytes"] <= line["of"]
            assert line["percent"] == 100 * line["bytes"] // line["of"]
    assert len({line["of"] for line in loading}) == 1
    assert all(a["bytes"] < b["bytes"] for a, b in pairwise(loading))
    assert loading[-1]["of"] > 40 * VALUE_BYTES and loading[-1]["percent"] >= 95


def test_they_say_it_now_and_then_and_not_both_at_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(server, "time", Clock(PROGRESS_S / 4))
    progress = _Progress()
    for n in range(1, 11):
        progress.snapshot(n, 10)
    for n in range(1, 11):
        progress.journal(n, 10)
    assert [line["bytes"] for line in lines(caplog, "loading the snapshot")] == [4, 8]
    assert [line["percent"] for line in lines(caplog, "reading the journal")] == [20, 60, 100]
    progress.journal(0, 0)
