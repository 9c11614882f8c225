"""What the plots show, as numbers; and that they can be drawn."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import plots
from bench.measure import Run
from bench.scenarios import ASKED, CLIENTS


def found(rate: float, cumulative: list[list[float]]) -> dict[str, object]:
    return {"rate": rate, "latency": {"cumulative": cumulative}}


def test_latencies_of_all_rounds_are_one_distribution() -> None:
    rounds = [found(1.0, [[10.0, 1], [30.0, 4]]), found(1.0, [[10.0, 2], [20.0, 4]])]
    assert plots.latencies(rounds) == [(3 / 8, 10.0), (5 / 8, 20.0), (1.0, 30.0)]
    assert plots.latencies([]) == []


def test_throughput_is_the_median_by_clients() -> None:
    runs = [Run("put-4", "jotd", n, found(value, [])) for n, value in enumerate((5.0, 1.0, 3.0))]
    runs += [Run("put-1", "jotd", 0, found(2.0, [])), Run("put-1", "etcd", 0, found(9.0, []))]
    assert plots.throughput(runs, "jotd") == [(1, 2.0), (4, 3.0)]


@pytest.mark.slow
def test_plots_are_drawn_of_what_there_is(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    runs = [
        Run(name, server, 0, found(10.0, [[10.0, 1], [500.0, 90], [2000.0, 91]]))
        for name in ("put", "txn", "list", "watch", "put-1", "put-64")
        for server in ("jotd", "etcd")
    ]
    written = plots.draw(tmp_path, [*ASKED, *CLIENTS], runs)
    assert [path.name for path in written] == ["latency.svg", "throughput.svg"]
    assert all("jotd" in path.read_text() or path.stat().st_size > 5_000 for path in written)
    assert plots.draw(tmp_path, ASKED, []) == []
