"""The same random operations to an etcd and to jotd: every answer is equal, field by field."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.differential import strategies as some
from tests.differential.conftest import examples
from tests.differential.runner import run_steps, shorter
from tests.oracle.pair import Divergence, Pair
from tests.property.profiles import LONG

SEEDS = 1500 if LONG else 30


@pytest.mark.slow
@examples(80)
@given(steps=st.lists(some.drawn(some.step), min_size=20, max_size=40))
def test_random_operations(servers: Pair, steps: Sequence[some.Step]) -> None:
    """Every answer of every RPC, errors included; then the whole state and its hash."""
    run_steps(servers, steps)


def _seeded(pair: Pair, make: Callable[[some.Source], list[some.Step]], seeds: range) -> None:
    for seed in seeds:
        steps = make(some.Seeded(seed))
        try:
            run_steps(pair, steps)
        except Divergence as first:
            best, error = shorter(steps, lambda those: run_steps(pair, those))
            raise Divergence(f"seed {seed}, {len(best)} steps\n{error or first}") from None


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_many_operations(servers: Pair) -> None:
    """As above, with longer sequences and more of them."""
    _seeded(servers, lambda s: [some.step(s) for _ in range(120)], range(SEEDS))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_many_transactions(servers: Pair) -> None:
    """Transactions of all shapes on a few keys and leases."""

    def make(s: some.Source) -> list[some.Step]:
        grants = [some.Step("grant-any", 5000)]
        grants += [
            some.Step("Lease.LeaseGrant", some.rpc.LeaseGrantRequest(ID=n, TTL=5000))
            for n in (1, 2)
        ]
        puts = [some.Step("KV.Put", some.put_request(s)) for _ in range(10)]
        return grants + puts + [some.Step("KV.Txn", some.txn_request(s)) for _ in range(100)]

    _seeded(servers, make, range(1000, 1000 + SEEDS))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_many_ranges(servers: Pair) -> None:
    """Many questions about one history."""

    def make(s: some.Source) -> list[some.Step]:
        writes = [some.write(s) for _ in range(60)]
        asked = [some.Step("KV.Range", some.range_request(s)) for _ in range(150)]
        streamed = [some.Step("KV.RangeStream", some.range_stream_request(s)) for _ in range(50)]
        return writes + asked + streamed

    _seeded(servers, make, range(2000, 2000 + SEEDS // 2))


def test_a_few_operations(servers: Pair) -> None:
    """A quick look at the same."""
    _seeded(servers, lambda s: [some.step(s) for _ in range(60)], range(3000, 3005))
