"""Which form of the hot modules a process runs."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from kvstore.runtime import sources
from tests import peers

PROBE = """
import partitioner.table, kvstore.mvcc.view, kvstore.api.txn, journal.contract
from kvstore.runtime.sources import is_compiled
for module in (kvstore.mvcc.view, kvstore.api.txn, journal.contract):
    print(module.__file__.rpartition(".")[2])
print(is_compiled())
"""


def _probe(**extra: str) -> list[str]:
    environ = {key: value for key, value in os.environ.items() if key != sources.VARIABLE}
    done = subprocess.run(
        [sys.executable, "-c", PROBE],
        env={**environ, **extra},
        cwd=peers.ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout.split()


def test_the_variable_has_the_sources_run() -> None:
    assert _probe(**{sources.VARIABLE: "1"}) == ["py", "py", "py", "False"]


def test_compiled_modules_run_where_they_are() -> None:
    if not peers.runs_compiled({}):
        pytest.skip("nothing is compiled here: pip does it where there is a C compiler")
    assert _probe() == ["so", "so", "py", "True"]


def test_the_tests_run_from_the_sources() -> None:
    import kvstore.mvcc.view

    assert kvstore.mvcc.view.__file__.endswith(".py")
    assert not sources.is_compiled()
