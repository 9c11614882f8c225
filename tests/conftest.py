"""What all tests share: ending in order on SIGTERM, and a summary that names what was not there."""

from __future__ import annotations

import re
import signal
from collections import Counter
from types import FrameType
from typing import Any

import pytest

from kvstore.runtime import sources
from tests import peers
from tests.oracle.pair import left_out

# What runs in the tests' own process is driven with doubles and smaller limits, which compiled
# code does not take. Servers are processes of their own and run what is installed.
sources.prefer_sources()


def pytest_configure(config: pytest.Config) -> None:
    # The default action would leave the children of the tests behind.
    def end(number: int, frame: FrameType | None) -> None:
        pytest.exit(signal.strsignal(number) or str(number), 128 + number)

    signal.signal(signal.SIGTERM, end)
    # A shell has what it runs in the background ignore it, and programs that a test interrupts
    # would inherit that: etcdctl then sits out the patience of its test.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    # Before its fixtures, which may be those that start a server.
    peers.is_once = item.get_closest_marker("once") is not None


def pytest_report_header(config: pytest.Config) -> list[str]:
    lines = []
    for name in peers.COMPONENTS:
        found = peers.version(name)
        lines.append(f"{name}: {'.'.join(map(str, found)) if found else 'not found'}")
    form = "compiled" if peers.runs_compiled() else "interpreted"
    return [", ".join(lines), f"jotd is served by: {peers.transport()}, {form}"]


def pytest_sessionfinish(session: pytest.Session) -> None:
    # In a worker of pytest-xdist; the one that started it makes the summary.
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["served"] = dict(peers.served)
        output["left_out"] = dict(left_out)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    output = getattr(node, "workeroutput", {})
    peers.served.update(output.get("served", {}))
    left_out.update(output.get("left_out", {}))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What served; and what could not be had, with what went untested for the lack of it."""
    if peers.served:
        terminalreporter.section("transports")
        for name, count in sorted(peers.served.items()):
            terminalreporter.line(f"servers started on {name}: {count}")
    skipped = Counter(
        found[1]
        for report in terminalreporter.stats.get("skipped", [])
        if (found := re.search(rf"(\S+){re.escape(peers.NOT_HAD)}", str(report.longrepr)))
    )
    absent = [name for name in peers.COMPONENTS if peers.find(name) is None]
    oracle = peers.version("etcd")
    old = oracle is not None and oracle < (3, 6)
    if not absent and not skipped and not old:
        return
    terminalreporter.section("components that could not be had", yellow=True)
    for name in sorted({*absent, *skipped}):
        why = peers.COMPONENTS.get(name, "wanted by a test")
        terminalreporter.line(f"{name}: not found ({why}); tests skipped for it: {skipped[name]}")
    if oracle and old:
        text = ".".join(map(str, oracle))
        terminalreporter.line(f"etcd 3.6 or newer: the oracle is {text}, with its known faults")
    terminalreporter.line("`make tools` builds them where Go is at hand.")
    if "jotd_native" in skipped:
        terminalreporter.line("`make native` builds jotd_native where Rust is at hand.")
