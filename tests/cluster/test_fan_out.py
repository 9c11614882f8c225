"""The bench's watchers of a follower, on a real cluster: what it counts is what was written."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import members
from bench.fanout import WATCHERS, fan_out
from tests.peers import require, require_native

pytestmark = [pytest.mark.slow, pytest.mark.timeout(150)]


def test_every_watcher_of_a_follower_gets_what_is_written_at_the_leader(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    require("nats-server")
    require_native()
    with members.jotd(tmp_path) as nodes:
        found = fan_out({"jotd": nodes}, 1, 2.0)
    assert list(found) == ["200 puts a second", "1000 puts a second"]
    for row in found.values():
        one = row["jotd"]
        assert one["puts"] > 0 and one["cpu_us"] > 0 and one["p99_us"] >= one["p50_us"]
        # All watchers have all of it, but for what is under way when it begins and ends.
        assert one["events"] == pytest.approx(one["puts"] * WATCHERS, rel=0.5)
    assert f"{WATCHERS} watchers of a follower of jotd, 200 puts/s due" in capsys.readouterr().out
