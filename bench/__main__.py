"""Measures jotd beside etcd on one machine: ``python -m bench [SCENARIO ...]``.

Without names: the table of the figures that are asked for, and puts by number of clients for a
plot. Writes table.md, results.json (every round) and plots to bench/results. CPU is the server's
own, threads and kernel included: on a machine that the load shares it says more than the rate does.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import report
from bench.measure import Run, Settings, measure, peak_of
from bench.million import million
from bench.programs import ROOT
from bench.scenarios import ASKED, CLIENTS, FURTHER, SIZED, Scenario
from bench.servers import NAMES, Unavailable

GROUPS = {"asked": ASKED, "clients": CLIENTS}
BY_NAME = {scenario.name: scenario for scenario in (*ASKED, *CLIENTS, *FURTHER)}


def chosen(words: Sequence[str], nodes: int | None = None) -> list[Scenario]:
    """The scenarios of these names and groups, each once; with another number of nodes if one is
    given. Raises ValueError for an unknown name."""
    found: dict[str, Scenario] = {}
    for word in words:
        if word not in GROUPS and word not in BY_NAME:
            raise ValueError(f"no scenario {word!r}")
        for scenario in GROUPS.get(word) or (BY_NAME[word],):
            sized = SIZED.get(scenario.name)
            found[scenario.name] = sized(nodes) if sized and nodes else scenario
    return list(found.values())


def parser() -> argparse.ArgumentParser:
    """The arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description=__doc__,
        epilog="scenarios:\n"
        + "\n".join(f"  {name:<10}{scenario.title}" for name, scenario in BY_NAME.items())
        + "\n  asked     all of the table\n  clients   put-1 to put-1024"
        "\n  million   jotd alone with 1,000,000 keys: memory, holds of the loop, recovery",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("scenarios", nargs="*", metavar="SCENARIO", help="default: asked clients")
    add("--servers", default="jotd,etcd", help=f"of {', '.join(NAMES)}; ratios are of the first")
    add("--rounds", type=int, default=5)
    add("--duration", type=float, default=5.0, metavar="SECONDS", help="of each run")
    add("--warmup", type=float, default=1.0, metavar="SECONDS", help="before each run")
    add("--value-bytes", type=int, default=1024, metavar="N", help="where a scenario has no own")
    add("--nodes", type=int, metavar="N", help="instead of a scenario's own")
    add("--results", type=Path, default=ROOT / "bench" / "results", metavar="DIR")
    return parser


def main(words: Sequence[str] | None = None) -> int:
    """Runs what was asked for; returns the exit code: 0 good, 1 something does not work."""
    arguments = parser()
    options = arguments.parse_args(words)
    wanted = options.scenarios or ["asked", "clients"]
    names = options.servers.split(",")
    if unknown := set(names) - set(NAMES):
        arguments.error(f"no server {', '.join(sorted(unknown))}")
    if options.rounds < 1 or options.duration <= 0:
        arguments.error("wants at least one round, and time for it")
    try:
        scenarios = chosen([word for word in wanted if word != "million"], options.nodes)
    except ValueError as error:
        arguments.error(str(error))
    settings = Settings(options.rounds, options.duration, options.warmup, options.value_bytes)
    place: Path = options.results
    place.mkdir(parents=True, exist_ok=True)
    data = place / "data"
    shutil.rmtree(data, ignore_errors=True)
    try:
        return _run(scenarios, names, settings, place, data, "million" in wanted)
    except (Unavailable, RuntimeError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(data, ignore_errors=True)


def _run(
    scenarios: Sequence[Scenario],
    names: Sequence[str],
    settings: Settings,
    place: Path,
    data: Path,
    with_million: bool,
) -> int:
    runs: list[Run] = []
    versions: dict[str, str] = {}
    extra: dict[str, Any] = {}
    complete = True
    for scenario in scenarios:
        print(scenario.title, file=sys.stderr, flush=True)
        try:
            found, those = measure(
                scenario, names, settings, data / scenario.name, peak_of(runs), _tell
            )
        except Unavailable as error:
            if not scenario.go:
                raise
            _tell(f"left out: {error}")
            complete = False
            continue
        runs += found
        versions |= those
        # After each, so that what a long run has found is not lost with its end.
        report.write_json(place / "results.json", runs, versions, settings, extra)
    if runs:
        measured = [name for name in names if name in versions]
        shown = report.heading(report.machine(), versions, settings)
        for group in (
            [scenario for scenario in scenarios if scenario not in CLIENTS],
            [scenario for scenario in scenarios if scenario in CLIENTS],
        ):
            if lines := report.lines(group, runs, measured):
                shown += "\n" + report.table(lines, measured)
        (place / "table.md").write_text(shown)
        print(f"\n{shown}")
        _draw(place, scenarios, runs)
    if with_million:
        extra["million"] = million(data / "million", settings.value_bytes)
        for name, value in extra["million"].items():
            shown = value if isinstance(value, str) else f"{value:,.{isinstance(value, float):d}f}"
            print(f"{name:<30}{shown:>12}")
        report.write_json(place / "results.json", runs, versions, settings, extra)
    return 0 if complete else 1


def _draw(place: Path, scenarios: Sequence[Scenario], runs: Sequence[Run]) -> None:
    from bench import plots

    try:
        for path in plots.draw(place, scenarios, runs):
            print(f"wrote {path}")
    except ImportError as error:
        _tell(f"no plots: {error}")


def _tell(text: str) -> None:
    print(f"  {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
