"""A deliberately dumb etcd: a full map of all keys for every revision, and nothing clever.

Requests are applied one after the other. Answers are protobuf messages without cluster, member and
term, or `(code, text)`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Any

from google_crc32c import extend

from kvstore.pb import kv_pb2
from kvstore.pb import rpc_pb2 as pb
from kvstore.transport.seam import Code

COMPACTED = (Code.OUT_OF_RANGE, "etcdserver: mvcc: required revision has been compacted")
FUTURE = (Code.OUT_OF_RANGE, "etcdserver: mvcc: required revision is a future revision")
LEASE_NOT_FOUND = (Code.NOT_FOUND, "etcdserver: requested lease not found")
LEASE_EXISTS = (Code.FAILED_PRECONDITION, "etcdserver: lease already exists")
KEY_NOT_FOUND = (Code.INVALID_ARGUMENT, "etcdserver: key not found")

KeyValue = kv_pb2.KeyValue
Keys = dict[bytes, KeyValue]


class Refused(Exception):
    """The request fails; nothing of it stands."""


@dataclass
class Event:
    """One event; `sub` is its place in the revision."""

    revision: int
    sub: int
    kv: KeyValue
    previous: KeyValue | None

    @property
    def is_put(self) -> bool:
        return self.kv.version > 0


def inside(key: bytes, low: bytes, range_end: bytes) -> bool:
    """Whether a request's key and range_end name a key."""
    if not range_end:
        return key == low
    return key >= low and (range_end == b"\x00" or key < range_end)


def select(keys: Keys, low: bytes, range_end: bytes) -> list[KeyValue]:
    return [keys[key] for key in sorted(keys) if inside(key, low, range_end)]


@dataclass
class Model:
    """The state after every request so far."""

    history: dict[int, Keys] = field(default_factory=lambda: {0: {}, 1: {}})
    events: list[Event] = field(default_factory=list)
    leases: set[int] = field(default_factory=set)
    revision: int = 1
    compacted: int = -1

    # -- writes, in order ------------------------------------------------------------------

    def apply(self, request: Any) -> Any:
        """The answer to a write request."""
        try:
            return getattr(self, "_" + type(request).__name__)(request)
        except Refused as refused:
            return refused.args[0]

    def _PutRequest(self, request: pb.PutRequest) -> pb.PutResponse:
        work = _Work(self)
        response = work.put(request, checked=False)
        response.header.revision = work.commit()
        return response

    def _DeleteRangeRequest(self, request: pb.DeleteRangeRequest) -> pb.DeleteRangeResponse:
        work = _Work(self)
        response = work.delete(request)
        response.header.revision = work.commit()
        return response

    def _TxnRequest(self, request: pb.TxnRequest) -> pb.TxnResponse:
        work = _Work(self)
        taken: list[pb.TxnRequest] = []
        work.compare(request, taken)
        work.check(request, taken)
        response = work.execute(request, taken)
        response.header.revision = work.commit()
        return response

    def _CompactionRequest(self, request: pb.CompactionRequest) -> pb.CompactionResponse:
        if request.revision <= self.compacted:
            raise Refused(COMPACTED)
        if request.revision > self.revision:
            raise Refused(FUTURE)
        self.compacted = request.revision
        return pb.CompactionResponse(header=pb.ResponseHeader(revision=self.revision))

    def _LeaseGrantRequest(self, request: pb.LeaseGrantRequest) -> pb.LeaseGrantResponse:
        if request.ID in self.leases:
            raise Refused(LEASE_EXISTS)
        self.leases.add(request.ID)
        header = pb.ResponseHeader(revision=self.revision)
        return pb.LeaseGrantResponse(header=header, ID=request.ID, TTL=max(request.TTL, 2))

    def _LeaseRevokeRequest(self, request: pb.LeaseRevokeRequest) -> pb.LeaseRevokeResponse:
        if request.ID not in self.leases:
            raise Refused(LEASE_NOT_FOUND)
        self.leases.discard(request.ID)
        work = _Work(self)
        for key, kv in sorted(work.keys.items()):
            if kv.lease == request.ID:
                work.remove(key)
        return pb.LeaseRevokeResponse(header=pb.ResponseHeader(revision=work.commit()))

    # -- reads, at a revision that was current once ----------------------------------------

    def range(self, request: pb.RangeRequest, current: int, compacted: int) -> Any:
        """The answer to a Range that came when those were the store's revisions."""
        revision = request.revision if request.revision > 0 else current
        if revision > current:
            return FUTURE
        if revision < compacted:
            return COMPACTED
        response = _range(self.history[revision], request)
        response.header.revision = current
        return response

    def hash_kv(self, asked: int, current: int, compacted: int) -> Any:
        """The answer to a HashKV, from what etcd's algorithm says of the whole history."""
        if asked > current:
            return FUTURE
        if 0 < asked < compacted:
            return COMPACTED
        revision = asked or current
        kept: set[tuple[int, int]] = set()
        at = revision if self.history[revision] else compacted
        newest: dict[bytes, Event] = {}
        for event in self.events:
            if event.revision <= at:
                newest[event.kv.key] = event
        kept = {(e.revision, e.sub) for e in newest.values() if e.is_put}
        crc = extend(0, b"key")
        for event in self.events:
            place = (event.revision, event.sub)
            if event.revision <= revision and (event.revision > compacted or place in kept):
                body = event.kv if event.is_put else KeyValue(key=event.kv.key)
                crc = extend(crc, struct.pack(">Q1sQ", event.revision, b"_", event.sub))
                crc = extend(crc, (b"" if event.is_put else b"t") + body.SerializeToString())
        return pb.HashKVResponse(
            header=pb.ResponseHeader(revision=current),
            hash=crc,
            compact_revision=compacted,
            hash_revision=revision,
        )


class _Work:
    """One write request at work on a copy."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.before = model.history[model.revision]
        self.keys = dict(self.before)
        self.events: list[Event] = []

    def commit(self) -> int:
        """Keep what was made. Returns the answer's revision."""
        model = self.model
        if self.events:
            model.revision += 1
            model.history[model.revision] = self.keys
            model.events += self.events
        return model.revision

    @property
    def _next(self) -> int:
        return self.model.revision + 1

    @property
    def read_revision(self) -> int:
        return self._next if self.events else self.model.revision

    def _note(self, kv: KeyValue) -> None:
        previous = self.before.get(kv.key)
        if kv.version and kv.create_revision == kv.mod_revision:
            previous = None
        self.events.append(Event(self._next, len(self.events), kv, previous))

    def remove(self, key: bytes) -> KeyValue:
        self._note(KeyValue(key=key, mod_revision=self._next))
        return self.keys.pop(key)

    def put(self, request: pb.PutRequest, checked: bool) -> pb.PutResponse:
        if not checked:
            self._check_put(request)
        previous = self.keys.get(request.key)
        if previous is None and (request.ignore_value or request.ignore_lease):
            raise Refused(KEY_NOT_FOUND)
        kv = KeyValue(
            key=request.key,
            create_revision=previous.create_revision if previous else self._next,
            mod_revision=self._next,
            version=previous.version + 1 if previous else 1,
            value=previous.value if previous and request.ignore_value else request.value,
            lease=previous.lease if previous and request.ignore_lease else request.lease,
        )
        self._note(kv)
        self.keys[request.key] = kv
        return pb.PutResponse(prev_kv=previous if request.prev_kv else None)

    def delete(self, request: pb.DeleteRangeRequest) -> pb.DeleteRangeResponse:
        found = select(self.keys, request.key, request.range_end)
        for kv in found:
            self.remove(kv.key)
        return pb.DeleteRangeResponse(deleted=len(found), prev_kvs=found if request.prev_kv else [])

    def _check_put(self, request: pb.PutRequest) -> None:
        if request.lease and request.lease not in self.model.leases:
            raise Refused(LEASE_NOT_FOUND)
        if (request.ignore_value or request.ignore_lease) and request.key not in self.before:
            raise Refused(KEY_NOT_FOUND)

    def compare(self, request: pb.TxnRequest, taken: list[pb.TxnRequest]) -> None:
        """Note which transactions succeed."""
        if all(self._holds(compare) for compare in request.compare):
            taken.append(request)
        for op in request.success if _among(request, taken) else request.failure:
            if op.HasField("request_txn"):
                self.compare(op.request_txn, taken)

    def _holds(self, compare: pb.Compare) -> bool:
        found = select(self.before, compare.key, compare.range_end)
        return all(_compare(compare, kv) for kv in found or [None])

    def check(self, request: pb.TxnRequest, taken: list[pb.TxnRequest]) -> None:
        for op in request.success if _among(request, taken) else request.failure:
            match op.WhichOneof("request"):
                case "request_range":
                    revision = op.request_range.revision
                    if revision > self.model.revision:
                        raise Refused(FUTURE)
                    if revision and revision < self.model.compacted:
                        raise Refused(COMPACTED)
                case "request_put":
                    self._check_put(op.request_put)
                case "request_txn":
                    self.check(op.request_txn, taken)
                case _:
                    pass

    def execute(self, request: pb.TxnRequest, taken: list[pb.TxnRequest]) -> pb.TxnResponse:
        succeeded = _among(request, taken)
        responses = []
        for op in request.success if succeeded else request.failure:
            response = pb.ResponseOp()
            match op.WhichOneof("request"):
                case "request_range":
                    asked = op.request_range
                    past = asked.revision > 0
                    keys = self.model.history[asked.revision] if past else self.keys
                    response.response_range.CopyFrom(_range(keys, asked))
                    response.response_range.header.revision = self.read_revision
                case "request_put":
                    response.response_put.CopyFrom(self.put(op.request_put, checked=True))
                    response.response_put.header.revision = self._next
                case "request_delete_range":
                    response.response_delete_range.CopyFrom(self.delete(op.request_delete_range))
                    response.response_delete_range.header.revision = self.read_revision
                case _:
                    response.response_txn.CopyFrom(self.execute(op.request_txn, taken))
                    response.response_txn.header.SetInParent()
            responses.append(response)
        return pb.TxnResponse(succeeded=succeeded, responses=responses)


def _among(request: pb.TxnRequest, taken: list[pb.TxnRequest]) -> bool:
    return any(request is one for one in taken)


def _compare(compare: pb.Compare, kv: KeyValue | None) -> bool:
    target, given = compare.target, compare.WhichOneof("target_union")
    name = ["version", "create_revision", "mod_revision", "value", "lease"][target]
    if target == pb.Compare.VALUE and kv is None:
        return False
    zero: Any = b"" if target == pb.Compare.VALUE else 0
    actual = getattr(kv, name) if kv is not None else zero
    wanted = getattr(compare, name) if given == name else zero
    return {
        pb.Compare.EQUAL: actual == wanted,
        pb.Compare.NOT_EQUAL: actual != wanted,
        pb.Compare.GREATER: actual > wanted,
        pb.Compare.LESS: actual < wanted,
    }[compare.result]


def _range(keys: Keys, request: pb.RangeRequest) -> pb.RangeResponse:
    r = pb.RangeRequest
    found = select(keys, request.key, request.range_end)
    count = len(found)
    if request.count_only:
        return pb.RangeResponse(count=count)
    limit = max(request.limit, 0)
    lower = {
        "mod_revision": request.min_mod_revision,
        "create_revision": request.min_create_revision,
    }
    upper = {
        "mod_revision": request.max_mod_revision,
        "create_revision": request.max_create_revision,
    }
    filtered = any(lower.values()) or any(upper.values())
    by_key = request.sort_order == r.NONE or (
        request.sort_target == r.KEY and request.sort_order == r.ASCEND
    )
    if by_key and not filtered and limit:
        found = found[: limit + 1]
    for name, bound in lower.items():
        found = [kv for kv in found if not bound or getattr(kv, name) >= bound]
    for name, bound in upper.items():
        found = [kv for kv in found if not bound or getattr(kv, name) <= bound]
    target = ["key", "version", "create_revision", "mod_revision", "value"][request.sort_target]
    found.sort(key=lambda kv: getattr(kv, target), reverse=request.sort_order == r.DESCEND)
    more = bool(limit) and len(found) > limit
    if limit:
        found = found[:limit]
    if request.keys_only:
        lease_too = request.sort_target == r.VALUE
        found = [_key_only(kv, lease_too) for kv in found]
    return pb.RangeResponse(kvs=found, more=more, count=count)


def _key_only(kv: KeyValue, lease_too: bool) -> KeyValue:
    out = KeyValue()
    out.CopyFrom(kv)
    out.ClearField("value")
    if not lease_too:
        out.ClearField("lease")
    return out
