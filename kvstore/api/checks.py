"""What a request must look like, whatever the state of the store.

The order of the checks is etcd's (server/etcdserver/api/v3rpc/key.go), because it decides
which of several errors a client sees.
"""

from __future__ import annotations

from collections.abc import Sequence

from sortedcontainers import SortedDict

from kvstore.api import errors
from kvstore.pb import rpc_pb2 as pb

TOTAL_OPS_FACTOR = 32
"""A transaction holds at most this many times `--max-txn-ops`, nested ones included.

etcd counts along each path only, so tens of thousands of operations pass its check (DESIGN §10).
"""

RAFT_OVERHEAD_BYTES = 17
"""What etcd wraps around a write request before it compares it with --max-request-bytes."""


def check_range(request: pb.RangeRequest) -> None:
    """Raise ApiError unless a Range is well formed."""
    if not request.key:
        raise errors.EMPTY_KEY
    if not 0 <= request.sort_order <= 2 or not 0 <= request.sort_target <= 4:
        raise errors.INVALID_SORT_OPTION


def is_default_order(request: pb.RangeRequest) -> bool:
    """Whether a range comes in key order as etcd sees it."""
    return request.sort_order == pb.RangeRequest.NONE or (
        request.sort_target == pb.RangeRequest.KEY and request.sort_order == pb.RangeRequest.ASCEND
    )


def has_revision_filters(request: pb.RangeRequest) -> bool:
    """Whether any of the four revision filters is set."""
    return bool(
        request.min_mod_revision
        or request.max_mod_revision
        or request.min_create_revision
        or request.max_create_revision
    )


def check_range_stream(request: pb.RangeRequest) -> None:
    """Raise ApiError unless a RangeStream is well formed."""
    check_range(request)
    if not is_default_order(request):
        raise errors.STREAM_SORT
    if has_revision_filters(request):
        raise errors.STREAM_FILTERS


def check_put(request: pb.PutRequest) -> None:
    """Raise ApiError unless a Put is well formed."""
    if not request.key:
        raise errors.EMPTY_KEY
    if request.ignore_value and request.value:
        raise errors.VALUE_PROVIDED
    if request.ignore_lease and request.lease:
        raise errors.LEASE_PROVIDED


def check_delete_range(request: pb.DeleteRangeRequest) -> None:
    """Raise ApiError unless a DeleteRange is well formed."""
    if not request.key:
        raise errors.EMPTY_KEY


def check_txn(request: pb.TxnRequest, ops_max: int) -> None:
    """Raise ApiError unless a Txn is well formed: shapes, counts, then duplicate keys."""
    total = _check_txn_shape(request, ops_max, 0, ops_max * TOTAL_OPS_FACTOR)
    if total > 1:
        _check_intervals(request.success)
        _check_intervals(request.failure)


def _check_txn_shape(request: pb.TxnRequest, ops_max: int, total: int, total_max: int) -> int:
    """Check one level and those below. Returns the number of operations seen so far."""
    ops = max(len(request.compare), len(request.success), len(request.failure))
    total += len(request.compare) + len(request.success) + len(request.failure)
    if ops > ops_max or total > total_max:
        raise errors.TOO_MANY_OPS
    for compare in request.compare:
        if not compare.key:
            raise errors.EMPTY_KEY
    for branch in (request.success, request.failure):
        for op in branch:
            match op.WhichOneof("request"):
                case "request_range":
                    check_range(op.request_range)
                case "request_put":
                    check_put(op.request_put)
                case "request_delete_range":
                    check_delete_range(op.request_delete_range)
                case "request_txn":
                    total = _check_txn_shape(op.request_txn, ops_max - ops, total, total_max)
                case _:
                    raise errors.KEY_NOT_FOUND
    return total


class _Deletes:
    """The ranges that a transaction deletes, for the question whether a put falls into one.

    etcd takes a range end literally here, so "from key on" (a zero byte) is an inverted range, and
    those clash with nothing.
    """

    __slots__ = ("_merged", "_points")

    def __init__(self) -> None:
        self._points: set[bytes] = set()
        self._merged: SortedDict = SortedDict()  # start -> end of disjoint ranges

    def add(self, request: pb.DeleteRangeRequest) -> None:
        """Note one delete."""
        low, high = request.key, request.range_end
        if not high:
            self._points.add(low)
        elif low < high:
            self._add_range(low, high)

    def _add_range(self, low: bytes, high: bytes) -> None:
        merged = self._merged
        at = merged.bisect_right(low) - 1
        if at >= 0 and merged.peekitem(at)[1] >= low:
            low, end = merged.popitem(at)
            high = max(high, end)
        else:
            at += 1
        while at < len(merged) and merged.peekitem(at)[0] <= high:
            high = max(high, merged.popitem(at)[1])
        merged[low] = high

    def update(self, other: _Deletes) -> None:
        """Note all deletes of a nested transaction."""
        self._points |= other._points
        for low, high in other._merged.items():
            self._add_range(low, high)

    def __contains__(self, key: bytes) -> bool:
        if key in self._points:
            return True
        at = self._merged.bisect_right(key) - 1
        return at >= 0 and bool(key < self._merged.peekitem(at)[1])


def _check_intervals(ops: Sequence[pb.RequestOp]) -> tuple[set[bytes], _Deletes]:
    """Raise DUPLICATE_KEY where puts meet puts or deletes. Returns the puts and deletes.

    As in etcd, a nested transaction's puts are held against the deletes of this level and of
    nested transactions before it, so a put before a delete in a later sibling passes.
    """
    deletes = _Deletes()
    puts: set[bytes] = set()
    nested: list[pb.TxnRequest] = []
    own: list[bytes] = []
    for op in ops:
        match op.WhichOneof("request"):
            case "request_delete_range":
                deletes.add(op.request_delete_range)
            case "request_txn":
                nested.append(op.request_txn)
            case "request_put":
                own.append(op.request_put.key)
            case _:
                pass
    for txn in nested:
        puts_then, deletes_then = _check_intervals(txn.success)
        puts_else, deletes_else = _check_intervals(txn.failure)
        for key in puts_then:
            if key in puts or key in deletes:
                raise errors.DUPLICATE_KEY
        for key in puts_else:
            if key in puts or key in deletes:
                raise errors.DUPLICATE_KEY
        puts |= puts_then
        puts |= puts_else
        deletes.update(deletes_then)
        deletes.update(deletes_else)
    for key in own:
        if key in puts or key in deletes:
            raise errors.DUPLICATE_KEY
        puts.add(key)
    return puts, deletes


def check_size(raw: bytes, request_bytes_max: int) -> None:
    """Raise ApiError if a write request is longer than --max-request-bytes allows."""
    if len(raw) + RAFT_OVERHEAD_BYTES > request_bytes_max:
        raise errors.REQUEST_TOO_LARGE


def put_cost_bytes(request: pb.PutRequest) -> int:
    """What a put counts for against the quota before it is made (etcd's costPut)."""
    return 256 + len(request.key) + len(request.value)


def txn_cost_bytes(request: pb.TxnRequest) -> int:
    """What a transaction counts for: the dearer of its branches (etcd's costTxn)."""
    return max(_branch_cost(request.success), _branch_cost(request.failure))


def _branch_cost(ops: Sequence[pb.RequestOp]) -> int:
    cost = 0
    for op in ops:
        match op.WhichOneof("request"):
            case "request_put":
                cost += put_cost_bytes(op.request_put)
            case "request_txn":
                cost += txn_cost_bytes(op.request_txn)
            case _:
                pass
    return cost
