"""The two servers of the differential tests, started once, restarted when they fall out of step.

`JOTD_DIFFERENTIAL_SUBJECT=etcd` puts a second etcd in the place of jotd: a check of the tests
themselves. `HYPOTHESIS_EFFORT=long` searches for longer.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests import peers
from tests.oracle.faults import CURRENT
from tests.oracle.pair import Pair, left_out
from tests.property.profiles import scaled

_COMMON = {
    "deadline": None,
    "suppress_health_check": list(HealthCheck),
    "print_blob": True,
    "database": None,
}
settings.register_profile("differential", max_examples=60, **_COMMON)
settings.register_profile("differential-long", max_examples=2000, **_COMMON)

#: The program that knows the answers, by its name under ``.tools/bin`` or on PATH.
ORACLE = os.environ.get("JOTD_DIFFERENTIAL_ORACLE", "etcd")


def oracle_version() -> tuple[int, ...]:
    return peers.version(ORACLE) or CURRENT


def needs_oracle(version: tuple[int, ...], why: str) -> pytest.MarkDecorator:
    """Skips what an older oracle knows nothing of, by name."""
    found = oracle_version()
    reason = f"the oracle is etcd {'.'.join(map(str, found))}: {why}"
    return pytest.mark.skipif(found < version, reason=reason)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for why, count in left_out.items():
        terminalreporter.line(f"differential: {count} times not compared: {why}")


def examples(count: int) -> settings:
    """Settings for `count` examples; thirty times as many at a long look, a fifth at a short."""
    return settings(max_examples=scaled(count, long=30), **_COMMON)


def subject_is_etcd() -> bool:
    """Whether a second etcd stands in for jotd."""
    return os.environ.get("JOTD_DIFFERENTIAL_SUBJECT", "jotd") == "etcd"


@pytest.fixture(scope="session")
def start_oracle(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], peers.Process]:
    def start() -> peers.Process:
        base = tmp_path_factory.mktemp("oracle")
        return peers.start_etcd(base, ["--unsafe-no-fsync"], program=ORACLE)

    return start


@pytest.fixture(scope="session")
def start_subject(
    tmp_path_factory: pytest.TempPathFactory, start_oracle: Callable[[], peers.Process]
) -> Callable[[], peers.Process]:
    def start() -> peers.Process:
        if subject_is_etcd():
            return start_oracle()
        base = tmp_path_factory.mktemp("subject")
        return peers.start_jotd(Path(base) / "jotd", journal="memory")

    return start


@pytest.fixture(scope="session")
def servers(
    start_oracle: Callable[[], peers.Process], start_subject: Callable[[], peers.Process]
) -> Iterator[Pair]:
    running: list[peers.Process] = []

    def stop() -> None:
        while running:
            running.pop().stop()

    def start() -> tuple[str, str]:
        stop()
        running.append(start_oracle())
        running.append(start_subject())
        return running[0].endpoint, running[1].endpoint

    pair = Pair(start, oracle_version())
    yield pair
    pair.close()
    stop()


@pytest.fixture
def pair(servers: Pair) -> Pair:
    """Both servers, empty and in step."""
    servers.reset()
    return servers
