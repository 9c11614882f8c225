"""Runs of the load, in rounds that alternate between the servers.

All servers of a scenario run at once and are measured in turn, so that a slow moment of the machine
hits none of them alone; a round that begins with one is followed by a round that begins with the
other. An idle server beside the one that is measured costs next to nothing.
"""

from __future__ import annotations

import json
import shutil
import statistics
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import goclient
from bench.scenarios import Report, Scenario, rate
from bench.servers import Server, Unavailable, running


@dataclass(frozen=True)
class Run:
    """What one run found."""

    scenario: str
    server: str
    round: int
    report: Report


@dataclass(frozen=True)
class Settings:
    """How long and how often. Times in seconds."""

    rounds: int
    duration_s: float
    warmup_s: float
    value_bytes: int


def load(server: Server, options: dict[str, Any]) -> dict[str, Any]:
    """One run of the generator. Raises RuntimeError when the load cannot be made."""
    try:
        import jotd_native
    except ImportError:
        raise Unavailable("the generator is in jotd_native: `make native` (needs Rust)") from None
    # Told to a function, so that an interrupt gets through.
    wanted = {"endpoints": [server.endpoint], "pid": server.pid, **options}
    found: dict[str, Any] = json.loads(jotd_native.load(json.dumps(wanted), lambda *_: None))
    return found


def in_turn(names: Sequence[Server], rounds: int) -> Iterable[tuple[int, Server]]:
    """Round by round, each server once, the order of every other round reversed."""
    for number in range(rounds):
        for server in names if number % 2 == 0 else reversed(names):
            yield number, server


def options_of(
    scenario: Scenario, settings: Settings, number: int, peak: float | None
) -> dict[str, Any]:
    """The generator's options for a round; `peak` is etcd's rate of puts where one is needed."""
    prefix = f"/registry/pods/{scenario.name}{'' if scenario.keeps else number}/"
    options: dict[str, Any] = {
        "value-bytes": settings.value_bytes,
        **scenario.load,
        "prefix": prefix,
        "duration-s": settings.duration_s,
        "warmup-s": settings.warmup_s,
        "fill": number == 0 or not scenario.keeps,
    }
    if scenario.half_of_peak:
        assert peak is not None
        options["rate"] = peak / 2
    return options


def can_measure(scenario: Scenario, name: str) -> bool:
    """Whether the scenario makes sense on that server."""
    return scenario.echo or name != "echo"


def measure(
    scenario: Scenario,
    names: Sequence[str],
    settings: Settings,
    place: Path,
    peak: float | None,
    tell: Callable[[str], None],
) -> tuple[list[Run], dict[str, str]]:
    """All rounds of a scenario, and the versions of the servers.

    `peak` is the rate of puts that etcd was found to do, if it was; where one is needed and there
    is none, a run before the rounds finds it. A server that is not here is left out, and `tell` is
    told. Raises RuntimeError when a server or the load does not work.
    """
    runs = []
    if scenario.go:
        goclient.program()
    with ExitStack() as stack:
        servers = []
        for name in names:
            if not can_measure(scenario, name):
                continue
            try:
                servers.append(stack.enter_context(running(name, place)))
            except Unavailable as error:
                tell(f"left out: {error}")
        if scenario.half_of_peak and peak is None:
            peak = _peak(scenario, servers, settings)
        for number, server in in_turn(servers, settings.rounds):
            options = options_of(scenario, settings, number, peak)
            if scenario.go:
                prefix, duration_s = options["prefix"], settings.duration_s
                report: Report = goclient.load(server, scenario, prefix, duration_s)
            else:
                report = load(server, options)
                if scenario.without is not None:
                    report["without"] = load(server, {**options, **scenario.without})
            for text, count in report["errors"].items():
                tell(f"{server.name} {scenario.name}: {count} x {text}")
            late = report.get("unfinished", 0)
            if late > report["requests"] / 100:
                tell(f"{server.name} {scenario.name}: {late:,} were due and not done at the end")
            runs.append(Run(scenario.name, server.name, number, report))
        versions = {server.name: server.version for server in servers}
    shutil.rmtree(place, ignore_errors=True)
    return runs, versions


def peak_of(runs: Iterable[Run]) -> float | None:
    """The median rate of puts that etcd was found to do in a closed loop, if it was measured."""
    rates = [rate(run.report) for run in runs if (run.scenario, run.server) == ("put", "etcd")]
    return statistics.median(rates) if rates else None


def _peak(scenario: Scenario, servers: Sequence[Server], settings: Settings) -> float:
    # Without etcd, half of what the last of them does is as good as anything.
    server = next((s for s in servers if s.name == "etcd"), servers[-1])
    closed = Scenario(scenario.name, scenario.title, scenario.load, scenario.figures)
    options = options_of(closed, settings, 0, None)
    return rate(load(server, {**options, "prefix": "/registry/pods/peak/"}))
