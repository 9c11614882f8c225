"""Watches from any revision on an etcd and on jotd tell the same stories."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.pb import rpc_pb2 as rpc
from tests.differential import strategies as some
from tests.differential.conftest import LONG, examples, needs_oracle
from tests.differential.watching import watch_example
from tests.oracle.faults import FAIR
from tests.oracle.pair import Pair

pytestmark = needs_oracle(FAIR, "reports progress too early, loses events where it compacts")
SEEDS = 600 if LONG else 40


def _steps(s: some.Source, count: int) -> list[some.Step]:
    """Writes, leases and a compaction now and then."""
    steps = [some.Step("Lease.LeaseGrant", rpc.LeaseGrantRequest(ID=1, TTL=5000))]
    for _ in range(count):
        kind = s.integer(1, 20)
        if kind == 20:
            steps.append(some.Step("KV.Compact", some.compaction(s)))
        elif kind == 19:
            steps.append(some.Step("Lease.LeaseRevoke", rpc.LeaseRevokeRequest(ID=1)))
            steps.append(some.Step("Lease.LeaseGrant", rpc.LeaseGrantRequest(ID=1, TTL=5000)))
        else:
            steps.append(some.write(s))
    return steps


def _example(pair: Pair, s: some.Source) -> None:
    before = _steps(s, 25)
    watches = [some.watch_spec(s) for _ in range(s.integer(1, 15))]
    watch_example(pair, before, watches, _steps(s, 10))


def test_a_few_watches(servers: Pair) -> None:
    """A quick look."""
    for seed in range(3):
        _example(servers, some.Seeded(seed))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_many_watches(servers: Pair) -> None:
    for seed in range(100, 100 + SEEDS):
        try:
            _example(servers, some.Seeded(seed))
        except AssertionError as error:
            error.add_note(f"seed {seed}")
            raise


@pytest.mark.slow
@examples(15)
@given(
    before=st.lists(some.drawn(some.write), min_size=5, max_size=15),
    watches=st.lists(some.drawn(some.watch_spec), min_size=1, max_size=8),
    during=st.lists(some.drawn(some.write), max_size=5),
)
def test_random_watches(
    servers: Pair,
    before: list[some.Step],
    watches: list[some.WatchSpec],
    during: list[some.Step],
) -> None:
    watch_example(servers, before, watches, during)
