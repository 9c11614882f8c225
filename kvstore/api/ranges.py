"""Range: which versions answer a request, and in which bytes.

The pairs of an answer are the stored bytes of the versions, joined (DESIGN §5).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from heapq import merge
from io import BytesIO
from itertools import islice
from typing import Any, Protocol

from kvstore.api import checks
from kvstore.mvcc.store import SLICE, Steps, Store
from kvstore.mvcc.version import Version
from kvstore.mvcc.wire import encode_key_value, varint
from kvstore.pb import rpc_pb2 as pb

Bounds = tuple[bytes, bytes | None]

JOIN_BYTES = 1 << 20
"""Answers above this are put together in slices."""


def bounds(key: bytes, range_end: bytes) -> Bounds:
    """[low, high) of a request's key and range_end; high None: no end."""
    if not range_end:
        return key, key + b"\x00"
    return key, None if range_end == b"\x00" else range_end


class Reader(Protocol):
    """State that ranges are read from: a store at a revision, or a transaction's view."""

    @property
    def read_revision(self) -> int:
        """The revision of the state that is read."""

    def live(self, key: bytes) -> Version | None:
        """The live version of a key."""

    def range_steps(
        self, low: bytes, high: bytes | None, revision: int, limit: int
    ) -> Steps[list[Version]]:
        """Live versions in key order; `revision` 0: of the state itself."""

    def count_steps(self, low: bytes, high: bytes | None, revision: int) -> Steps[int]:
        """Number of live keys."""


class StoreReader:
    """The committed state as of one moment."""

    __slots__ = ("_now", "_store", "read_revision")

    def __init__(self, store: Store, now: float) -> None:
        self._store = store
        self._now = now
        self.read_revision = store.revision

    def live(self, key: bytes) -> Version | None:
        """The live version of a key."""
        return self._store.get(key, self.read_revision)

    def range_steps(
        self, low: bytes, high: bytes | None, revision: int, limit: int
    ) -> Steps[list[Version]]:
        """See Reader."""
        at = revision if revision > 0 else self.read_revision
        return self._store.range_steps(low, high, at, limit, self._now)

    def count_steps(self, low: bytes, high: bytes | None, revision: int) -> Steps[int]:
        """See Reader."""
        at = revision if revision > 0 else self.read_revision
        return self._store.count_steps(low, high, at, self._now)


def range_steps(reader: Reader, request: pb.RangeRequest) -> Steps[list[bytes]]:
    """A RangeResponse without its header, as parts to join.

    The request's revision has been checked. How limit, order, and filters play together is
    etcd's (server/etcdserver/txn/range.go): without an order the limit is applied in key order,
    and what remains is sorted by the target; with an order or filters the limit comes last.
    """
    low, high = bounds(request.key, request.range_end)
    revision = max(request.revision, 0)
    if request.count_only:
        return _ending(False, (yield from reader.count_steps(low, high, revision)))
    limit = max(request.limit, 0)
    filtered = checks.has_revision_filters(request)
    first_come = checks.is_default_order(request) and not filtered
    if not request.range_end and not revision:
        version = reader.live(request.key)
        found = [version] if version is not None else []
        total = len(found)
    else:
        sorts = request.sort_target != pb.RangeRequest.KEY
        wanted = limit + sorts if first_come and limit else 0
        found = yield from reader.range_steps(low, high, revision, wanted)
        if wanted and len(found) >= wanted:
            total = yield from reader.count_steps(low, high, revision)
        else:
            total = len(found)
    if filtered:
        found = yield from _filtered(found, request)
    found = yield from _sorted(found, request)
    more = bool(limit) and len(found) > limit
    if more:
        found = found[:limit]
    elif first_come and limit:
        more = total > len(found)
    parts = yield from key_value_parts(found, request)
    parts.extend(_ending(more, total))
    return parts


def _ending(more: bool, count: int) -> list[bytes]:
    return [b"\x18\x01" if more else b"", b"\x20" + varint(count) if count else b""]


def key_value_parts(found: Sequence[Version], request: pb.RangeRequest) -> Steps[list[bytes]]:
    """The kvs of an answer: stored bytes, or new ones without values for keys_only.

    keys_only leaves out the lease as well, unless the request sorts by value: etcd 3.7 answers
    it from its index, which knows no leases.
    """
    if not request.keys_only:
        if len(found) <= SLICE:
            return [version.framed for version in found]
        return (yield from _sliced(found, lambda version: version.framed))
    if request.sort_target == pb.RangeRequest.VALUE:
        return (yield from _sliced(found, _with_lease_only))
    return (yield from _sliced(found, Version.without_value))


def _with_lease_only(version: Version) -> bytes:
    return encode_key_value(
        version.key, version.create, version.mod, version.number, b"", version.lease
    )


def _sliced(found: Sequence[Version], encode: Callable[[Version], bytes]) -> Steps[list[bytes]]:
    parts: list[bytes] = []
    for at in range(0, len(found), SLICE):
        parts.extend([encode(version) for version in found[at : at + SLICE]])
        if at + SLICE < len(found):
            yield
    return parts


def _filtered(found: list[Version], request: pb.RangeRequest) -> Steps[list[Version]]:
    max_mod, min_mod = request.max_mod_revision, request.min_mod_revision
    max_create, min_create = request.max_create_revision, request.min_create_revision
    kept: list[Version] = []
    for at, version in enumerate(found):
        if not (
            (max_mod and version.mod > max_mod)
            or (min_mod and version.mod < min_mod)
            or (max_create and version.create > max_create)
            or (min_create and version.create < min_create)
        ):
            kept.append(version)
        if at % SLICE == SLICE - 1:
            yield
    return kept


_SORT_KEYS: dict[int, Callable[[Version], Any]] = {
    pb.RangeRequest.KEY: lambda version: version.key,
    pb.RangeRequest.VERSION: lambda version: version.number,
    pb.RangeRequest.CREATE: lambda version: version.create,
    pb.RangeRequest.MOD: lambda version: version.mod,
    pb.RangeRequest.VALUE: lambda version: version.value,
}


def _sorted(found: list[Version], request: pb.RangeRequest) -> Steps[list[Version]]:
    """Sort as asked, in steps that are all short; ties come in any order in etcd."""
    descending = request.sort_order == pb.RangeRequest.DESCEND
    if request.sort_target == pb.RangeRequest.KEY and not descending:
        return found
    key = _SORT_KEYS[request.sort_target]
    if len(found) <= SLICE:
        return sorted(found, key=key, reverse=descending)
    runs: list[Iterator[Version]] = []
    for at in range(0, len(found), SLICE):
        runs.append(iter(sorted(found[at : at + SLICE], key=key, reverse=descending)))
        yield
    merged = merge(*runs, key=key, reverse=descending)
    result: list[Version] = []
    while True:
        part = list(islice(merged, SLICE))
        result.extend(part)
        if len(part) < SLICE:
            return result
        yield


def join_steps(parts: list[bytes]) -> Steps[bytes]:
    """Join parts into one message, in slices if it is long."""
    if len(parts) <= SLICE:
        size = sum(map(len, parts))
        if size <= JOIN_BYTES:
            return b"".join(parts)
    out = BytesIO()
    size = 0
    for at, part in enumerate(parts):
        out.write(part)
        size += len(part)
        if size >= JOIN_BYTES or at % SLICE == SLICE - 1:
            size = 0
            yield
    return out.getvalue()
