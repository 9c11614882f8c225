"""Negative controls: each way in which a store can be untrue to its clients is reported."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest

from kvstore.pb import kv_pb2, rpc_pb2
from tests import history
from tests.history import ACKED, REFUSED, UNKNOWN, Op

pytestmark = pytest.mark.once

Observed = dict[int, list[kv_pb2.Event]]


class Story:
    """A faultless history: what three clients did, and what the server says happened."""

    def __init__(self) -> None:
        self.ops: list[Op] = []
        self.observed: Observed = {}
        self.log = history.Log()
        for n in range(12):
            self.write("Put", rpc_pb2.PutRequest(key=b"k%d" % (n % 4), value=b"%d" % n))
        self.write("Put", rpc_pb2.PutRequest(key=b"k0", value=b"leased", lease=7, prev_kv=True))
        self.write("Put", rpc_pb2.PutRequest(key=b"k9", value=b"leased", lease=7))
        self.read("Range", rpc_pb2.RangeRequest(key=b"k", range_end=b"l"))
        txn = rpc_pb2.TxnRequest()
        txn.compare.add(key=b"k1", target=rpc_pb2.Compare.VERSION, version=3)
        txn.success.add().request_put.CopyFrom(rpc_pb2.PutRequest(key=b"k1", value=b"t"))
        txn.success.add().request_delete_range.CopyFrom(rpc_pb2.DeleteRangeRequest(key=b"k2"))
        self.write("Txn", txn)
        self.write("DeleteRange", rpc_pb2.DeleteRangeRequest(key=b"k3", prev_kv=True))
        # A lease ends; nobody asked.
        self.observe(Op(0, "LeaseRevoke", rpc_pb2.LeaseRevokeRequest(ID=7), 0))
        # Nobody knows whether this one happened (it did), nor that one (it did not).
        self.observe(self.add("Put", rpc_pb2.PutRequest(key=b"k5", value=b"maybe"), UNKNOWN))
        self.add("Put", rpc_pb2.PutRequest(key=b"k5", value=b"or not"), UNKNOWN)
        self.add("Put", rpc_pb2.PutRequest(key=b"k6", value=b"never"), REFUSED)
        self.write("Put", rpc_pb2.PutRequest(key=b"k7", value=b"last"))

    def add(self, method: str, request: object, outcome: str) -> Op:
        op = Op(len(self.ops) % 3, method, request, self.log.last, outcome)
        self.ops.append(op)
        return op

    def observe(self, op: Op) -> None:
        events, answer = history.execute(op, self.log.state, self.log.last + 1)
        assert events
        self.log.append(events)
        self.observed[self.log.last] = events
        if op.outcome == ACKED:
            op.answer = answer
            op.answer.header.revision = self.log.last

    def write(self, method: str, request: object) -> None:
        self.observe(self.add(method, request, ACKED))

    def read(self, method: str, request: object) -> None:
        op = self.add(method, request, ACKED)
        op.answer = history.execute(op, self.log.state, self.log.last)[1]
        op.answer.header.revision = self.log.last

    def faults(self) -> list[str]:
        return history.assemble(self.ops, self.observed, self.log.last).faults

    def find(self, method: str) -> Op:
        return next(op for op in self.ops if op.method == method)


def test_a_true_history_passes() -> None:
    story = Story()
    result = history.assemble(story.ops, story.observed, story.log.last)
    assert result.faults == []
    assert [op.request.value for op in result.happened] == [b"maybe"]
    assert result.log.state == story.log.state
    for revision in (1, 5, story.log.last):
        assert result.log.state_at(revision) == story.log.state_at(revision)


def _lost(story: Story) -> None:
    """The last acknowledged write is gone, revision and all."""
    del story.observed[story.log.last]
    story.log.revisions.pop()


def _replaced(story: Story) -> None:
    """Another write has the revision of an acknowledged one."""
    story.observed[5] = copy.deepcopy(story.observed[5])
    story.observed[5][0].kv.value = b"other"


def _refused_happened(story: Story) -> None:
    story.find("Put").outcome = REFUSED


def _invented(story: Story) -> None:
    story.ops = [op for op in story.ops if getattr(op.request, "value", b"") != b"maybe"]


def _partial_lease(story: Story) -> None:
    events = story.observed[story.log.last - 2]
    assert len(events) == 2
    story.observed[story.log.last - 2] = events[:1]


def _used_twice(story: Story) -> None:
    story.ops[3].answer.header.revision = story.ops[4].answer.header.revision


def _gap(story: Story) -> None:
    del story.observed[story.log.last - 1]


def _stale(story: Story) -> None:
    story.find("Range").answer.header.revision -= 1


def _wrong_read(story: Story) -> None:
    story.find("Range").answer.kvs[0].value = b"stale"


def _wrong_prev(story: Story) -> None:
    story.find("DeleteRange").answer.prev_kvs[0].version += 1


def _wrong_branch(story: Story) -> None:
    story.find("Txn").request.compare[0].version = 2


@pytest.mark.parametrize(
    ("damage", "name"),
    [
        (_lost, "I1"),
        (_replaced, "I1"),
        (_refused_happened, "I1"),
        (_invented, "I1"),
        (_partial_lease, "I1"),
        (_used_twice, "I3"),
        (_gap, "I3"),
        (_stale, "I2"),
        (_wrong_read, "I2"),
        (_wrong_prev, "I2"),
        (_wrong_branch, "I2"),
    ],
)
def test_an_untrue_history_is_caught(damage: Callable[[Story], None], name: str) -> None:
    story = Story()
    damage(story)
    faults = story.faults()
    assert any(fault.startswith(f"{name}:") for fault in faults), faults
