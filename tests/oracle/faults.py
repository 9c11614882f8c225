"""What older oracles cannot do, or do wrong. Where no current etcd is at hand, this is left out.

The reference is etcd 3.7, whose version jotd reports. 3.6 is a fair oracle for all but what is new;
3.5.1, the one that a Python package index has, is the last resort.
"""

from __future__ import annotations

from google.protobuf.message import Message

from kvstore.pb import rpc_pb2 as rpc
from tests.oracle.client import Answer

Version = tuple[int, ...]

CURRENT: Version = (3, 7)
FAIR: Version = (3, 6)


def unable(version: Version, method: str) -> str | None:
    """Why this oracle has no answer to a method that is worth comparing with; None if it has."""
    if version < CURRENT and method == "KV.RangeStream":
        return "RangeStream is new in 3.7"
    if version < CURRENT and method == "Maintenance.Status":
        return "Status has fields that are new in 3.7"
    if version < FAIR and method == "Maintenance.HashKV":
        return "HashKV left out tombstones that later versions count, until 3.5.16"
    return None


def bearable(version: Version, request: Message) -> str | None:
    """Takes out of a request what this oracle answers in another way; says why if it did."""
    if version >= CURRENT:
        return None
    why = None
    for message in _ranges(request):
        if message.keys_only:
            message.keys_only = False
            why = "keys_only kept the lease until 3.7"
        if version < FAIR and not 0 <= message.sort_target <= 4:
            message.sort_target = rpc.RangeRequest.KEY
            why = "3.5.1 dies of a sort target that does not exist"
        if version < FAIR and not 0 <= message.sort_order <= 2:
            message.sort_order = rpc.RangeRequest.NONE
            why = "3.5.1 takes sort orders that do not exist"
    return why


def same_refusal(version: Version, method: str, left: Answer, right: Answer) -> str | None:
    """Why two different errors are as good as equal; None if they are not."""
    if method != "KV.Txn" or version >= CURRENT:
        return None
    either = {"etcdserver: key not found", "etcdserver: requested lease not found"}
    if version < FAIR:
        either.add("etcdserver: mvcc: required revision has been compacted")
        either.add("etcdserver: mvcc: required revision is a future revision")
    if {left.text, right.text} <= either:
        return "the operations of a transaction were checked in another order until 3.7"
    return None


def _ranges(request: Message) -> list[rpc.RangeRequest]:
    if isinstance(request, rpc.RangeRequest):
        return [request]
    if not isinstance(request, rpc.TxnRequest):
        return []
    found: list[rpc.RangeRequest] = []
    for op in [*request.success, *request.failure]:
        if op.HasField("request_range"):
            found.append(op.request_range)
        elif op.HasField("request_txn"):
            found += _ranges(op.request_txn)
    return found
