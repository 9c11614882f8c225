"""The store that end-to-end tests run against: jotd, or with JOTD_E2E_STORE=etcd a real etcd.

Against etcd the tests are checked themselves: what they demand is what etcd does.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import peers

STORE = os.environ.get("JOTD_E2E_STORE", "jotd")
if STORE not in ("jotd", "etcd"):
    raise pytest.UsageError(f"JOTD_E2E_STORE is jotd or etcd, not {STORE!r}")

StartStore = Callable[..., peers.Process]


def pytest_report_header() -> str:
    return f"end-to-end store: {STORE}"


def start_store(tmp_path: Path, *extra_args: str) -> peers.Process:
    """A store with an empty data directory under `tmp_path`."""
    if STORE == "etcd":
        return peers.start_etcd(tmp_path, extra_args)
    return peers.start_jotd(tmp_path / "jotd", extra_args)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[peers.Process]:
    """One store for all tests of a module."""
    with start_store(tmp_path_factory.mktemp("store")) as process:
        yield process
