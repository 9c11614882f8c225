"""The store against a dumb model, with every kind of work cut into slices (I2-I5, R4, R8).

Requests are evaluated in the order in which they come, so a write's answer is known when it is
submitted, whenever it is given; a read's, from what is committed when it comes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.api import errors
from kvstore.mvcc.hashing import hash_steps
from kvstore.node.state import State
from kvstore.pb import rpc_pb2 as pb
from kvstore.transport.seam import Code
from tests.property import model as dumb
from tests.property import requests
from tests.property.profiles import moderate
from tests.property.stepper import Stepper, small_slices
from tests.unit.node.world import KV, LEASE, MAINTENANCE, FakeCall

METHODS: dict[type, str] = {
    pb.PutRequest: KV + "Put",
    pb.DeleteRangeRequest: KV + "DeleteRange",
    pb.TxnRequest: KV + "Txn",
    pb.CompactionRequest: KV + "Compact",
    pb.RangeRequest: KV + "Range",
    pb.LeaseGrantRequest: LEASE + "LeaseGrant",
    pb.LeaseRevokeRequest: LEASE + "LeaseRevoke",
    pb.HashKVRequest: MAINTENANCE + "HashKV",
}


REFUSALS = {errors.NO_SPACE.message}
"""What the journal refuses leaves no trace, and all that saw it fails with it (R3)."""


@pytest.fixture(autouse=True)
def slices(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    small_slices(monkeypatch)
    yield


def without_identity(response: Any) -> Any:
    """An answer without what the model does not know."""
    out = type(response)()
    out.CopyFrom(response)
    for name in ("cluster_id", "member_id", "raft_term"):
        out.header.ClearField(name)
    return out


class Comparison:
    """A server and the model, side by side."""

    def __init__(self) -> None:
        self.server = Stepper()
        self.model = dumb.Model()
        self.calls: list[tuple[Any, FakeCall, tuple[int, int]]] = []

    def play(self, seed: int, length: int) -> None:
        """A random history: requests, and steps of what they began."""
        draw = requests.Requests(seed)
        for _ in range(length):
            self.act(draw)

    def act(self, draw: requests.Requests) -> None:
        store = self.server.state.store
        draw.revision, draw.compacted = store.revision, store.compact_revision
        kind = draw.random.random()
        if kind < 0.4:
            self.ask(draw.any())
        elif kind < 0.75:
            self.server.slicer.step(draw.random.randrange(10))
        elif kind < 0.95:
            self.server.append()
        elif kind < 0.96:
            self.server.refuse()
        elif kind < 0.97:
            # Its client goes away: dropped if it only waits, and nothing else otherwise (R12).
            if self.calls:
                draw.random.choice(self.calls[-10:])[1].cancelled = True
        elif kind < 0.99:
            self.server.tick()
        else:
            self.server.snapshot()

    def ask(self, request: Any) -> None:
        store = self.server.state.store
        now = store.revision, store.compact_revision
        call = FakeCall(METHODS[type(request)], request)
        self.calls.append((request, call, now))
        self.server.service.on_calls([call])

    def finish(self) -> None:
        """Take all that is left to its end, and hold every answer against the model's."""
        self.server.settle()
        self.model = dumb.Model()
        writes = [item for item in self.calls if not _is_read(item[0])]
        reads = [item for item in self.calls if _is_read(item[0])]
        for request, call, _ in writes:
            if call.done and (call.message in REFUSALS or "duplicate key" in call.message):
                continue
            if not call.done:
                assert call.cancelled, request
                continue
            self.compare(request, call, self.model.apply(request))
        for request, call, (current, compacted) in reads:
            if isinstance(request, pb.RangeRequest):
                expected = self.model.range(request, current, compacted)
            elif isinstance(request, pb.HashKVRequest):
                expected = self.model.hash_kv(request.revision, current, compacted)
            else:
                reader = dumb.Model(self.model.history, revision=current, compacted=compacted)
                expected = reader.apply(request)
            if not call.cancelled and "duplicate key" not in call.message:
                self.compare(request, call, expected)

    @staticmethod
    def compare(request: Any, call: FakeCall, expected: Any) -> None:
        assert call.done, request
        if isinstance(expected, tuple):
            assert (call.code, call.message) == expected, request
        else:
            assert call.code == Code.OK, (request, call.message, expected)
            assert without_identity(call.response) == expected, request
            assert call.raw == call.response.SerializeToString(), "protobuf's own bytes"

    def check_all_revisions(self) -> None:
        """Every revision that can be read, and each one's hash."""
        model = self.model
        for revision in range(max(model.compacted, 1), model.revision + 1):
            for range_end in (b"\x00", b"a0", b"b0"):
                self.ask(pb.RangeRequest(key=b"a", range_end=range_end, revision=revision))
                self.ask(
                    pb.RangeRequest(
                        key=b"a", range_end=range_end, revision=revision, count_only=True
                    )
                )
            self.ask(pb.HashKVRequest(revision=revision))
        if model.compacted > 1:
            self.ask(pb.RangeRequest(key=b"a", revision=model.compacted - 1))
        self.finish()


def _is_read(request: Any) -> bool:
    if isinstance(request, pb.TxnRequest):
        ops = [*request.success, *request.failure]
        return all(op.HasField("request_range") for op in ops)
    return isinstance(request, pb.RangeRequest | pb.HashKVRequest)


def contents(state: State) -> Any:
    """What a journal determines, physical compaction aside (I5)."""
    store = state.store
    crcs = [_crc(state, revision) for revision in range(1, store.revision + 1)]
    lessor = state.lessor
    leases = {
        x.id: (x.ttl_s, sorted(key for part in x.keys.parts() for key in part))
        for bucket in lessor._leases.buckets()
        for x in bucket.values()
    }
    return store.revision, store.compact_revision, crcs, leases, state.alarms, state.term


def _crc(state: State, revision: int) -> int:
    store = state.store
    if revision < store.compact_revision:
        return 0
    steps = hash_steps(store, revision, store.compact_revision, 0.0)
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            crc: int = stop.value
            return crc


def sizes(state: State) -> Any:
    return [
        (shard.kept_bytes, shard.live_bytes, len(shard.history), len(shard.index))
        for shard in state.store.shards
    ]


@moderate(100)
@given(st.integers(0, 1 << 32), st.integers(100, 500))
def test_every_answer_is_the_models(seed: int, length: int) -> None:
    """And what is left after a restart is what was there (I5)."""
    comparison = Comparison()
    comparison.play(seed, length)
    comparison.finish()
    comparison.check_all_revisions()

    server = comparison.server
    lives = contents(server.state)
    again = Stepper(server.storage)
    assert contents(again.state) == lives
    again.tick()
    again.settle()
    assert contents(again.state) == lives
    assert sizes(again.state) == sizes(server.state), "compaction ends where it ended before"


@moderate(30)
@given(st.integers(0, 1 << 32), st.integers(100, 200), st.integers(0, 100))
def test_replay_needs_no_snapshot_and_any_snapshot_serves(seed: int, length: int, cut: int) -> None:
    """The whole journal gives the same state as a snapshot of any moment with the rest (I5)."""
    comparison = Comparison()
    server = comparison.server
    # Trimming would take away what the test wants to compare with.
    server.storage.trim = lambda before: None  # type: ignore[method-assign]
    comparison.play(seed, cut)
    while not server.snapshot() and (server.slicer.step(0) or server.append()):
        pass
    comparison.play(seed + 1, length - cut)
    comparison.finish()
    lives = contents(server.state)
    while server.storage.snapshots:
        assert contents(Stepper(server.storage).state) == lives
        server.storage.snapshots.pop(max(server.storage.snapshots))
    assert contents(Stepper(server.storage).state) == lives
