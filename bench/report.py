"""Medians, ratios, and the table and the JSON that they are written to."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.measure import Run, Settings
from bench.scenarios import Figure, Report, Scenario, cpu_us, memory_mib


@dataclass(frozen=True)
class Line:
    """One figure of one scenario: the median of the rounds, by server."""

    scenario: Scenario
    figure: Figure
    values: Mapping[str, float]
    cpu_us: Mapping[str, float]
    memory_mib: Mapping[str, float]


def median(runs: Iterable[Run], server: str, of: Callable[[Report], float]) -> float | None:
    """The median of a number over the rounds of one server; None if it has no rounds."""
    values = [of(run.report) for run in runs if run.server == server]
    return statistics.median(values) if values else None


def lines(scenarios: Sequence[Scenario], runs: Sequence[Run], names: Sequence[str]) -> list[Line]:
    """All figures of the scenarios that were measured, in order."""
    found = []
    for scenario in scenarios:
        own = [run for run in runs if run.scenario == scenario.name]

        def medians(of: Callable[[Report], float], own: Sequence[Run] = own) -> dict[str, float]:
            all_of_them = {name: median(own, name, of) for name in names}
            return {name: value for name, value in all_of_them.items() if value is not None}

        if own:
            used, memory = medians(cpu_us), medians(memory_mib)
            for figure in scenario.figures:
                found.append(Line(scenario, figure, medians(figure.of), used, memory))
    return found


def baseline(names: Sequence[str]) -> str | None:
    """What the first server is compared with: etcd, else the last one."""
    others = names[1:]
    return "etcd" if "etcd" in others else others[-1] if others else None


def ratio(line: Line, subject: str, other: str | None) -> float | None:
    """The subject's number divided by the other's; None if one is missing or nothing."""
    mine, theirs = line.values.get(subject), line.values.get(other or "")
    return mine / theirs if mine is not None and theirs else None


def met(line: Line, subject: str, other: str | None) -> bool | None:
    """Whether what is asked of the figure is reached; None if nothing is, or it is not known."""
    figure = line.figure
    if figure.at_least is None and figure.at_most is None:
        return None
    found = line.values.get(subject) if figure.absolute else ratio(line, subject, other)
    if found is None:
        return None
    enough = figure.at_least is None or found >= figure.at_least
    return enough and (figure.at_most is None or found <= figure.at_most)


def asked(figure: Figure) -> str:
    """What is asked of a figure, in a few characters."""
    form = figure.form.format if figure.absolute else "{:g}".format
    parts = [f"≥ {form(figure.at_least)}"] if figure.at_least is not None else []
    parts += [f"≤ {form(figure.at_most)}"] if figure.at_most is not None else []
    return ", ".join(parts) + (" (jotd)" if parts and figure.absolute else "")


def table(all_lines: Sequence[Line], names: Sequence[str]) -> str:
    """The figures as a Markdown table."""
    subject, other = names[0], baseline(names)
    heads = ["scenario", "figure", *names]
    # What is asked is asked of jotd, against etcd.
    goals = (subject, other) == ("jotd", "etcd")
    heads += [f"{subject} / {other}"] if other else []
    heads += ["asked", "reached"] if goals else []
    heads += [f"CPU us a request, {name}" for name in names]
    heads += [f"memory MiB, {name}" for name in names]
    rows = []
    for line in all_lines:
        form = line.figure.form.format
        row = [line.scenario.title, line.figure.label, *_cells(line.values, names, form)]
        if other:
            found = ratio(line, subject, other)
            row.append("-" if found is None else f"{found:.2f}")
        if goals:
            verdict = {True: "yes", False: "**no**", None: ""}[met(line, subject, other)]
            row += [asked(line.figure), verdict]
        row += _cells(line.cpu_us, names, "{:,.1f}".format)
        row += _cells(line.memory_mib, names, "{:,.0f}".format)
        rows.append(row)
    return _markdown(heads, rows, texts=2)


def _cells(
    values: Mapping[str, float], names: Sequence[str], form: Callable[[float], str]
) -> list[str]:
    return [form(values[name]) if name in values else "-" for name in names]


def _markdown(heads: Sequence[str], rows: Sequence[Sequence[str]], texts: int) -> str:
    """Columns after the first `texts` are numbers, and aligned as such."""
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if at < texts else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return f"| {' | '.join(padded)} |"

    rule = [
        "-" * width if at < texts else "-" * (width - 1) + ":" for at, width in enumerate(widths)
    ]
    return "\n".join([line(heads), line(rule), *map(line, rows)]) + "\n"


def machine() -> dict[str, Any]:
    """What was measured on."""
    model = ""
    for text in Path("/proc/cpuinfo").read_text().splitlines():
        if text.startswith("model name"):
            model = text.partition(":")[2].strip()
            break
    return {
        "cpus": len(os.sched_getaffinity(0)),
        "cpu": model,
        "kernel": platform.release(),
        "memory_mib": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2**20,
        "python": platform.python_version(),
    }


def heading(about: Mapping[str, Any], versions: Mapping[str, str], settings: Settings) -> str:
    """One line that says where and how the figures were found."""
    servers = ", ".join(f"{name} {version}".strip() for name, version in versions.items())
    return (
        f"{servers}; medians of {settings.rounds} rounds of {settings.duration_s:g} s; "
        f"{about['cpus']} processors ({about['cpu']}), Python {about['python']}, "
        f"Linux {about['kernel']}\n"
    )


def write_json(
    path: Path,
    runs: Sequence[Run],
    versions: Mapping[str, str],
    settings: Settings,
    extra: Mapping[str, Any],
) -> None:
    """All rounds, and what they were measured with."""
    found = {
        "machine": machine(),
        "versions": dict(versions),
        "settings": asdict(settings),
        **extra,
        "runs": [asdict(run) for run in runs],
    }
    path.write_text(json.dumps(found) + "\n")
