"""What all tests share: ending in order on SIGTERM, and a summary that names what was not there."""

from __future__ import annotations

import signal
import sys
from types import FrameType

import pytest

from tests import peers


def pytest_configure(config: pytest.Config) -> None:
    # The default action would leave the children of the tests behind.
    def end(number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, end)


def pytest_report_header(config: pytest.Config) -> list[str]:
    lines = []
    for name in peers.COMPONENTS:
        found = peers.version(name)
        lines.append(f"{name}: {'.'.join(map(str, found)) if found else 'not found'}")
    return [", ".join(lines)]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """A component that could not be had is named, with what went untested for the lack of it."""
    absent = {name: why for name, why in peers.COMPONENTS.items() if peers.find(name) is None}
    absent.update({name: "wanted by a test" for name in peers.missing if name not in absent})
    oracle = peers.version("etcd")
    if not absent and oracle is not None and oracle >= (3, 6):
        return
    terminalreporter.section("components that could not be had", yellow=True)
    for name, why in absent.items():
        skipped = peers.missing.get(name, 0)
        terminalreporter.line(f"{name}: not found ({why}); {skipped} tests skipped for it here")
    if oracle is not None and oracle < (3, 6):
        text = ".".join(map(str, oracle))
        terminalreporter.line(f"etcd 3.6 or newer: the oracle is {text}, with its known faults")
    terminalreporter.line("`make tools` builds them where Go is at hand.")
