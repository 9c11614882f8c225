"""Watches from any revision on an etcd and on jotd tell the same stories."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.pb import rpc_pb2 as rpc
from tests import peers
from tests.differential import strategies as some
from tests.differential.conftest import (
    ORACLE,
    examples,
    needs_oracle,
    oracle_version,
    subject_is_etcd,
)
from tests.differential.watching import PROGRESS, cancel, create, watch_example
from tests.oracle.client import Duplex
from tests.oracle.faults import FAIR
from tests.oracle.pair import Pair
from tests.property.profiles import LONG

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


@pytest.fixture
def restless(tmp_path: Path) -> Iterator[Pair]:
    """A pair that reports progress ten times a second to watches that want it."""
    running: list[peers.Process] = []
    args = ["--watch-progress-notify-interval=100ms"]

    def start() -> tuple[str, str]:
        running.append(peers.start_etcd(tmp_path, args, program=ORACLE))
        if subject_is_etcd():
            running.append(peers.start_etcd(tmp_path, args, program=ORACLE))
        else:
            running.append(peers.start_jotd(tmp_path / "jotd", args, journal="memory"))
        return running[0].endpoint, running[1].endpoint

    pair = Pair(start, oracle_version())
    pair.fresh()
    yield pair
    pair.close()
    for process in running:
        process.stop()


def _quiet(stream: Duplex, seconds: float) -> bool:
    """Whether nothing comes for a while. (Too short a while only makes the test blind.)"""
    return stream.next(seconds) is None


@pytest.mark.slow
@needs_oracle((3, 6), "another flag")
def test_progress_on_a_timer(restless: Pair) -> None:
    """Only to watches that asked for it, with the current revision, between events."""
    restless.call("KV.Put", rpc.PutRequest(key=b"a"))
    streams = restless.watch()
    for stream in streams:
        stream.send(create(rpc.WatchCreateRequest(key=b"a", watch_id=1, progress_notify=True)))
        stream.send(create(rpc.WatchCreateRequest(key=b"b", watch_id=2)))
        # The timer does not wait for the second one.
        for _ in range(2):
            stream.until(lambda one: one.created)
    for _ in range(2):
        put = restless.call("KV.Put", rpc.PutRequest(key=b"other"))
        revision = put.message.header.revision
        for stream in streams:
            seen = stream.until(lambda one, wanted=revision: one.header.revision >= wanted)
            for one in seen:
                assert (one.watch_id, len(one.events), one.created, one.canceled) == (1, 0, 0, 0)
            assert seen[-1].header.revision == revision
    for stream in streams:
        # A watch from the future is told nothing, and asking for all gets no answer for its sake.
        stream.send(create(rpc.WatchCreateRequest(key=b"c", watch_id=3, start_revision=10_000)))
        stream.until(lambda one: one.created)
        stream.send(PROGRESS)
        assert all(one.watch_id == 1 for one in [stream.next() for _ in range(5)])
        stream.send(cancel(3))
        stream.until(lambda one: one.canceled)
        stream.send(PROGRESS)
        assert stream.until(lambda one: one.watch_id == -1)[-1].header.revision == revision
        stream.send(cancel(1))
        stream.until(lambda one: one.canceled)
        # etcd may have had one more of these under way.
        assert _quiet(stream, 0.5) or (stream is streams[0] and _quiet(stream, 0.5))
        stream.send(PROGRESS)
        assert stream.next().watch_id == -1
        stream.send(cancel(2))
        assert stream.next().canceled
        # Nobody is there to report for.
        stream.send(PROGRESS)
        assert _quiet(stream, 0.5)
        stream.close()


MESSAGE_BYTES_MAX = 2 << 20


def test_fragments(pair: Pair) -> None:
    """A revision of 2.5 MB: in one message, or in fragments for a watch that asked for them."""
    value = b"x" * 10_000
    for _ in range(2):
        puts = [some.wrap(rpc.PutRequest(key=b"f%03d" % n, value=value)) for n in range(128)]
        big = pair.call("KV.Txn", rpc.TxnRequest(success=puts)).message.header.revision
    cuts, told = [], []
    for stream in pair.watch():
        watch = rpc.WatchCreateRequest(
            key=b"f", range_end=b"g", start_revision=big, prev_kv=True, watch_id=1
        )
        stream.send(create(watch))
        whole = stream.until(lambda one: one.events)[-1]
        assert (len(whole.events), whole.fragment) == (128, False)
        watch.watch_id, watch.fragment = 2, True
        stream.send(create(watch))
        parts = stream.until(lambda one: one.events and not one.fragment)[1:]
        assert [one.fragment for one in parts] == [True] * (len(parts) - 1) + [False]
        assert all(one.ByteSize() <= MESSAGE_BYTES_MAX for one in parts)
        assert [event for one in parts for event in one.events] == list(whole.events)
        assert {one.header.revision for one in parts} == {big}
        cuts.append(len(parts))
        told.append(list(whole.events))
        stream.close()
    assert cuts[0] == cuts[1] == 2
    assert told[0] == told[1]
