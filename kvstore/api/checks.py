"""What a request must look like, whatever the state of the store.

The order of the checks is etcd's (server/etcdserver/api/v3rpc/key.go), because it decides
which of several errors a client sees.
"""

from __future__ import annotations

from sortedcontainers import SortedDict

from kvstore.api import errors
from kvstore.api.requests import Delete, Put, Range
from kvstore.pb import rpc_pb2 as pb

RAFT_OVERHEAD_BYTES = 17
"""What etcd wraps around a write request before it compares it with --max-request-bytes."""


def check_range(request: Range) -> None:
    """Raise ApiError unless a Range is well formed."""
    if not request.key:
        raise errors.EMPTY_KEY
    if not 0 <= request.sort_order <= 2 or not 0 <= request.sort_target <= 4:
        raise errors.INVALID_SORT_OPTION


def check_put(put: Put) -> None:
    """Raise ApiError unless a put is well formed."""
    if not put.key:
        raise errors.EMPTY_KEY
    if put.ignore_value and put.value:
        raise errors.VALUE_PROVIDED
    if put.ignore_lease and put.lease:
        raise errors.LEASE_PROVIDED


def check_delete(delete: Delete) -> None:
    """Raise ApiError unless a delete is well formed."""
    if not delete.key:
        raise errors.EMPTY_KEY


def is_default_order(request: Range) -> bool:
    """Whether a range comes in key order as etcd sees it."""
    return request.sort_order == pb.RangeRequest.NONE or (
        request.sort_target == pb.RangeRequest.KEY and request.sort_order == pb.RangeRequest.ASCEND
    )


def has_revision_filters(request: Range) -> bool:
    """Whether any of the four revision filters is set."""
    return bool(
        request.min_mod_revision
        or request.max_mod_revision
        or request.min_create_revision
        or request.max_create_revision
    )


def check_range_stream(request: Range) -> None:
    """Raise ApiError unless a RangeStream is well formed."""
    check_range(request)
    if not is_default_order(request):
        raise errors.STREAM_SORT
    if has_revision_filters(request):
        raise errors.STREAM_FILTERS


class Deletes:
    """The ranges that a transaction deletes, for the question whether a put falls into one.

    etcd takes a range end literally here, so "from key on" (a zero byte) is an inverted range, and
    those clash with nothing.
    """

    __slots__ = ("_merged", "_points")

    def __init__(self) -> None:
        self._points: set[bytes] = set()
        self._merged: SortedDict = SortedDict()  # start -> end of disjoint ranges

    def add(self, low: bytes, high: bytes) -> None:
        """Note a delete of key `low`, or with `high` of a range."""
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

    def update(self, other: Deletes) -> None:
        """Note all deletes of a nested transaction."""
        self._points |= other._points
        for low, high in other._merged.items():
            self._add_range(low, high)

    def __contains__(self, key: bytes) -> bool:
        if key in self._points:
            return True
        at = self._merged.bisect_right(key) - 1
        return at >= 0 and bool(key < self._merged.peekitem(at)[1])


def check_size(raw: bytes, request_bytes_max: int) -> None:
    """Raise ApiError if a write request is longer than --max-request-bytes allows."""
    if len(raw) + RAFT_OVERHEAD_BYTES > request_bytes_max:
        raise errors.REQUEST_TOO_LARGE
