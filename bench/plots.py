"""Plots of what was measured: latencies, and throughput by clients. Needs matplotlib."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench.measure import Run
from bench.scenarios import CLIENTS, Report, Scenario, rate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {"jotd": "tab:blue", "jotd-grpcio": "tab:cyan", "etcd": "tab:orange", "echo": "tab:gray"}
#: Shares of all requests that the latency axis names.
SHARES = (0.5, 0.9, 0.99, 0.999, 0.9999)


def latencies(reports: Iterable[Report]) -> list[tuple[float, float]]:
    """(share of all requests, latency in microseconds that so many have at most), all rounds
    together."""
    counts: dict[float, int] = {}
    for report in reports:
        before = 0
        for bound, seen in report["latency"].get("cumulative", []):
            counts[bound] = counts.get(bound, 0) + seen - before
            before = seen
    whole = sum(counts.values())
    found, seen = [], 0
    for bound in sorted(counts):
        seen += counts[bound]
        found.append((seen / whole, bound))
    return found


def throughput(runs: Iterable[Run], server: str) -> list[tuple[int, float]]:
    """(clients, median of requests a second) of one server."""
    found = []
    runs = [run for run in runs if run.server == server]
    for scenario in CLIENTS:
        rates = [rate(run.report) for run in runs if run.scenario == scenario.name]
        if rates:
            found.append((int(scenario.load["concurrency"]), statistics.median(rates)))
    return found


def draw(place: Path, scenarios: Sequence[Scenario], runs: Sequence[Run]) -> list[Path]:
    """Writes the plots that the runs have figures for; returns their files.

    Raises ImportError without matplotlib.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    written = []
    names = list(dict.fromkeys(run.server for run in runs))
    by_scenario: dict[str, list[Run]] = {}
    for run in runs:
        by_scenario.setdefault(run.scenario, []).append(run)
    shown = [s for s in scenarios if s not in CLIENTS and not s.go and s.name in by_scenario]
    if shown:
        wide = min(len(shown), 3)
        high = -(-len(shown) // wide)
        figure, grid = pyplot.subplots(high, wide, figsize=(5 * wide, 3.6 * high), squeeze=False)
        for axes in grid.flat[len(shown) :]:
            axes.set_visible(False)
        for scenario, axes in zip(shown, grid.flat, strict=False):
            _latency(axes, scenario, by_scenario[scenario.name], names)
        written.append(place / "latency.svg")
        figure.tight_layout()
        figure.savefig(written[-1])
        pyplot.close(figure)
    series = {name: throughput(runs, name) for name in names}
    if any(series.values()):
        figure, axes = pyplot.subplots(figsize=(6, 4))
        _throughput(axes, series)
        written.append(place / "throughput.svg")
        figure.tight_layout()
        figure.savefig(written[-1])
        pyplot.close(figure)
    return written


def _latency(axes: Axes, scenario: Scenario, runs: Sequence[Run], names: Sequence[str]) -> None:
    for name in names:
        found = latencies(run.report for run in runs if run.server == name)
        # The largest would be at infinity: it stands where one more would be.
        points = [(1 / max(1 - share, 1e-6), us / 1e3) for share, us in found]
        if points:
            axes.plot(*zip(*points, strict=True), label=name, color=COLOURS.get(name))
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(1, 2e4)
    axes.set_xticks(
        [1 / (1 - share) for share in SHARES], [f"{share * 100:g}%" for share in SHARES]
    )
    axes.set_title(scenario.title, fontsize=9)
    axes.set_xlabel("of all requests")
    axes.set_ylabel("ms at most")
    axes.grid(alpha=0.3)
    axes.legend()


def _throughput(axes: Axes, series: Mapping[str, Sequence[tuple[int, float]]]) -> None:
    for name, points in series.items():
        if points:
            axes.plot(*zip(*points, strict=True), marker="o", label=name, color=COLOURS.get(name))
    clients = sorted({count for points in series.values() for count, _ in points})
    axes.set_xscale("log", base=2)
    axes.set_xticks(clients, [str(count) for count in clients])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("clients, each with one request at a time")
    axes.set_ylabel("puts a second")
    axes.grid(alpha=0.3)
    axes.legend()
