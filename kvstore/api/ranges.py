"""Range: which versions answer a request, and in which bytes.

The pairs of an answer are the stored bytes of the versions, joined (DESIGN §5).
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import merge
from io import BytesIO
from itertools import islice
from typing import Any, Protocol

from kvstore.api import checks
from kvstore.api.requests import Range
from kvstore.mvcc.reader import Reader
from kvstore.mvcc.store import SLICE, Sink, Steps, Store
from kvstore.mvcc.version import Version
from kvstore.mvcc.wire import encode_key_value, varint
from kvstore.pb import rpc_pb2 as pb

Bounds = tuple[bytes, bytes | None]

GATHER_BYTES = 32 << 10
"""From this length on the transport gets the stored bytes themselves; below, a copy is cheaper."""
JOIN_BYTES = 512 << 10
"""Where they have to be put together here, that is done in pieces of about this size."""


def bounds(key: bytes, range_end: bytes) -> Bounds:
    """[low, high) of a request's key and range_end; high None: no end."""
    if not range_end:
        return key, key + b"\x00"
    return key, None if range_end == b"\x00" else range_end


def is_plain_get(request: Range) -> bool:
    """Whether a request for a single key wants it as it is now, and whole.

    Such a request is answered by the stored bytes. Its order and its limit say nothing.
    """
    return not (
        request.revision > 0
        or request.keys_only
        or request.count_only
        or checks.has_revision_filters(request)
    )


class Spill(Protocol):
    """Takes the parts of a long answer, all but the last."""

    def write(self, parts: list[bytes], /) -> object:
        """Take the next parts; the list stays the caller's."""


class StoreReader(Reader):
    """The committed state as of one moment."""

    __slots__ = ("_now", "_revision", "_store")

    def __init__(self, store: Store, now: float) -> None:
        self._store = store
        self._now = now
        self._revision = store.revision

    @property
    def read_revision(self) -> int:
        """See Reader."""
        return self._revision

    def live(self, key: bytes) -> Version | None:
        """The live version of a key."""
        return self._store.get(key, self._revision)

    def range_steps(
        self, low: bytes, high: bytes | None, revision: int, limit: int, sink: Sink
    ) -> Steps[int]:
        """See Reader."""
        at = revision if revision > 0 else self._revision
        return self._store.range_steps(low, high, at, limit, self._now, sink)

    def count_steps(self, low: bytes, high: bytes | None, revision: int) -> Steps[int]:
        """See Reader."""
        at = revision if revision > 0 else self._revision
        return self._store.count_steps(low, high, at, self._now)


class KeyValues:
    """Collects the kvs of an answer, behind a head, as bytes.

    With a `spill`, that gets all but the end of a long answer.

    keys_only leaves out the lease as well as the value, unless the request sorts by value:
    etcd 3.7 answers it from its index, which knows no leases.
    """

    __slots__ = ("_encode", "_own", "_parts", "_piece_bytes", "_size", "_spill")

    def __init__(self, request: Range, head: bytes, spill: Spill | None = None) -> None:
        self._parts: list[bytes] = [head]
        self._size = len(head)
        self._spill = spill
        self._piece_bytes = JOIN_BYTES if spill is None else GATHER_BYTES
        self._own: BytesIO | None = None
        self._encode: Callable[[Version], bytes] | None = None
        if request.keys_only:
            by_value = request.sort_target == pb.RangeRequest.VALUE
            self._encode = _with_lease_only if by_value else Version.without_value

    def add(self, versions: list[Version]) -> None:
        """Add pairs; about SLICE of them make one step."""
        parts, encode = self._parts, self._encode
        size = 0
        for version in versions:
            part = version.framed if encode is None else encode(version)
            size += len(part)
            parts.append(part)
        self._size += size
        if self._size >= self._piece_bytes or len(parts) > SLICE + 1:
            if self._spill is not None:
                self._spill.write(parts)
            else:
                if self._own is None:
                    self._own = BytesIO()
                self._own.write(b"".join(parts))
            parts.clear()
            self._size = 0

    def finish(self, more: bool, count: int) -> bytes:
        """The whole answer, or what the spill has not got."""
        parts = self._parts
        if more:
            parts.append(b"\x18\x01")
        if count:
            parts.append(b"\x20" + varint(count))
        if self._own is None:
            return b"".join(parts)
        self._own.write(b"".join(parts))
        return self._own.getvalue()


def _with_lease_only(version: Version) -> bytes:
    return encode_key_value(
        version.key, version.create, version.mod, version.number, b"", version.lease
    )


def range_steps(
    reader: Reader, request: Range, head: bytes, spill: Spill | None = None
) -> Steps[bytes]:
    """A RangeResponse whose header is `head`, or the end of a long one if there is a spill.

    The request's revision has been checked. How limit, order, and filters play together is
    etcd's (server/etcdserver/txn/range.go): without an order the limit is applied in key order,
    and what remains is sorted by the target; with an order or filters the limit comes last.
    """
    revision = max(request.revision, 0)
    if not request.range_end and not revision:
        return get(reader, request, head)
    low, high = bounds(request.key, request.range_end)
    answer = KeyValues(request, head, spill)
    if request.count_only:
        return answer.finish(False, (yield from reader.count_steps(low, high, revision)))
    limit = max(request.limit, 0)
    first_come = checks.is_default_order(request) and not checks.has_revision_filters(request)
    if not (first_come and request.sort_target == pb.RangeRequest.KEY):
        return (yield from _sorted_steps(reader, request, first_come, answer))
    count = yield from reader.range_steps(low, high, revision, limit, answer.add)
    total = count
    if limit and count >= limit:
        total = yield from reader.count_steps(low, high, revision)
    return answer.finish(total > count, total)


def get(reader: Reader, request: Range, head: bytes) -> bytes:
    """The RangeResponse for one key at the newest revision, which may be in flight (R4).

    Whatever else is asked for, it has to come from `Reader.live`: ranges see no overlay.
    """
    version = reader.live(request.key)
    answer = KeyValues(request, head)
    if version is None:
        return answer.finish(False, 0)
    wanted = _filter(request)
    if not request.count_only and (wanted is None or wanted(version)):
        answer.add([version])
    return answer.finish(False, 1)


_SORT_KEYS: dict[int, Callable[[Version], Any]] = {
    pb.RangeRequest.KEY: lambda version: version.key,
    pb.RangeRequest.VERSION: lambda version: version.number,
    pb.RangeRequest.CREATE: lambda version: version.create,
    pb.RangeRequest.MOD: lambda version: version.mod,
    pb.RangeRequest.VALUE: lambda version: version.value,
}


def _sorted_steps(
    reader: Reader, request: Range, first_come: bool, answer: KeyValues
) -> Steps[bytes]:
    """Ranges with an order or filters: sorted in runs, then merged, so each step is short."""
    low, high = bounds(request.key, request.range_end)
    revision, limit = max(request.revision, 0), max(request.limit, 0)
    descending = request.sort_order == pb.RangeRequest.DESCEND
    key = _SORT_KEYS[request.sort_target]
    wanted = _filter(request)
    runs: list[list[Version]] = []

    def collect(found: list[Version]) -> None:
        if wanted is not None:
            found = [version for version in found if wanted(version)]
        found.sort(key=key, reverse=descending)
        runs.append(found)

    taken = limit + 1 if first_come and limit else 0
    total = yield from reader.range_steps(low, high, revision, taken, collect)
    if taken and total >= taken:
        total = yield from reader.count_steps(low, high, revision)
    kept = sum(map(len, runs))
    more = bool(limit) and kept > limit
    merged = islice(merge(*runs, key=key, reverse=descending), limit if more else None)
    while part := list(islice(merged, SLICE)):
        answer.add(part)
        if len(part) == SLICE:
            yield
    return answer.finish(more, total)


def _filter(request: Range) -> Callable[[Version], bool] | None:
    if not checks.has_revision_filters(request):
        return None
    max_mod, min_mod = request.max_mod_revision, request.min_mod_revision
    max_create, min_create = request.max_create_revision, request.min_create_revision

    def wanted(version: Version) -> bool:
        return not (
            (max_mod and version.mod > max_mod)
            or (min_mod and version.mod < min_mod)
            or (max_create and version.create > max_create)
            or (min_create and version.create < min_create)
        )

    return wanted
