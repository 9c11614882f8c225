"""Put, DeleteRange and Txn: from a checked request to effects and an answer."""

from __future__ import annotations

from io import BytesIO
from typing import Protocol

from kvstore.api import checks, errors
from kvstore.api.headers import Headers, inner
from kvstore.api.ranges import Reader, StoreReader, bounds, range_steps
from kvstore.mvcc.errors import Compacted, FutureRevision, KeyNotFound
from kvstore.mvcc.store import Steps, Store
from kvstore.mvcc.version import Version
from kvstore.mvcc.wire import varint
from kvstore.node import records
from kvstore.node.operation import Draft, Operation
from kvstore.pb import rpc_pb2 as pb
from kvstore.transport.seam import Call

STAND_IN_KEYS = 1000
"""A range delete of more keys than this is journaled as the operation (R13)."""


class CallOperation(Operation):
    """A write request that came in as a call."""

    __slots__ = ("call", "headers", "submitted_at")

    def __init__(self, call: Call, headers: Headers) -> None:
        self.call = call
        self.headers = headers

    @property
    def cancelled(self) -> bool:
        """The client is gone."""
        return self.call.cancelled

    def succeed(self, response: bytes) -> None:
        """Answer the call."""
        self.call.finish(response)

    def fail(self, error: Exception) -> None:
        """Answer the call with etcd's error."""
        answer = errors.to_api_error(error)
        self.call.fail(answer.code, answer.message)


def _put(draft: Draft, request: pb.PutRequest) -> Version | None:
    """Make a put. Returns the version before it. Raises LeaseNotFound, KeyNotFound."""
    view = draft.view
    if not (request.prev_kv or request.ignore_value or request.ignore_lease):
        draft.check_lease(request.lease)
        view.put(request.key, request.value, request.lease)
        return None
    draft.check_lease(request.lease)
    previous = view.live(request.key)
    if previous is None and (request.ignore_value or request.ignore_lease):
        raise KeyNotFound
    value, lease = request.value, request.lease
    if previous is not None:
        if request.ignore_value:
            value = previous.value
        if request.ignore_lease:
            lease = previous.lease
    view.put(request.key, value, lease)
    return previous if request.prev_kv else None


def _in_one_step(steps: Steps[bytes]) -> bytes:
    """The result of steps over single keys, which never have to wait."""
    try:
        next(steps)
    except StopIteration as stop:
        response: bytes = stop.value
        return response
    raise AssertionError("an operation on single keys takes one step")


class PutOperation(CallOperation):
    """KV.Put."""

    __slots__ = ("cost_bytes", "request")

    def __init__(self, call: Call, headers: Headers, request: pb.PutRequest) -> None:
        super().__init__(call, headers)
        self.request = request
        self.cost_bytes = checks.put_cost_bytes(request)

    def evaluate(self, draft: Draft) -> bytes:
        """The put's answer: header and, if asked for, the version before."""
        previous = _put(draft, self.request)
        header = self.headers.at(draft.view.revision)
        return header + previous.framed if previous is not None else header


class DeleteOperation(CallOperation):
    """KV.DeleteRange."""

    __slots__ = ("drains", "request")
    urgent = True

    def __init__(self, call: Call, headers: Headers, request: pb.DeleteRangeRequest) -> None:
        super().__init__(call, headers)
        self.request = request
        self.drains = bool(request.range_end)

    def evaluate(self, draft: Draft) -> bytes:
        """Delete one key."""
        return _in_one_step(self.evaluate_steps(draft))

    def evaluate_steps(self, draft: Draft) -> Steps[bytes]:
        """Delete a range."""
        draft.view.one_pass = True
        deleted = yield from _delete(draft, self.request)
        if deleted.count > STAND_IN_KEYS:
            low, high = bounds(self.request.key, self.request.range_end)
            draft.stand_in = records.delete_range(low, high, draft.view.revision)
        return deleted.answer(self.headers.at(draft.view.read_revision))


class _Deleted:
    """What a DeleteRange deleted: a count and, if asked for, the pairs."""

    __slots__ = ("_out", "_prev_kv", "count")

    def __init__(self, prev_kv: bool) -> None:
        self.count = 0
        self._prev_kv = prev_kv
        self._out = BytesIO()

    def add(self, versions: list[Version]) -> None:
        """Versions that were deleted."""
        self.count += len(versions)
        if self._prev_kv:
            self._out.write(b"".join([b"\x1a" + version.framed[1:] for version in versions]))

    def answer(self, header: bytes) -> bytes:
        """A DeleteRangeResponse."""
        if not self.count:
            return header
        return b"%b\x10%b%b" % (header, varint(self.count), self._out.getvalue())


def _delete(draft: Draft, request: pb.DeleteRangeRequest) -> Steps[_Deleted]:
    deleted = _Deleted(request.prev_kv)
    if request.range_end:
        low, high = bounds(request.key, request.range_end)
        yield from draft.view.delete_range_steps(low, high, deleted.add)
    else:
        version = draft.view.delete(request.key)
        if version is not None:
            deleted.add([version])
    return deleted


def is_read_only(request: pb.TxnRequest) -> bool:
    """Whether a transaction has nothing but ranges, in etcd's sense: no nested ones either."""
    return all(
        op.WhichOneof("request") == "request_range"
        for branch in (request.success, request.failure)
        for op in branch
    )


def _needs_drain(request: pb.TxnRequest) -> bool:
    """Whether a transaction touches more than single keys at the current revision (R4)."""
    for compare in request.compare:
        if compare.range_end:
            return True
    for branch in (request.success, request.failure):
        for op in branch:
            match op.WhichOneof("request"):
                case "request_range":
                    if op.request_range.range_end or op.request_range.revision:
                        return True
                case "request_delete_range":
                    if op.request_delete_range.range_end:
                        return True
                case "request_txn":
                    if _needs_drain(op.request_txn):
                        return True
                case _:
                    pass
    return False


class TxnOperation(CallOperation):
    """KV.Txn with writes."""

    __slots__ = ("cost_bytes", "drains", "request", "urgent")

    def __init__(self, call: Call, headers: Headers, request: pb.TxnRequest) -> None:
        super().__init__(call, headers)
        self.request = request
        self.cost_bytes = checks.txn_cost_bytes(request)
        self.urgent = not self.cost_bytes
        self.drains = _needs_drain(request)

    def evaluate(self, draft: Draft) -> bytes:
        """A transaction of single keys."""
        return _in_one_step(self.evaluate_steps(draft))

    def evaluate_steps(self, draft: Draft) -> Steps[bytes]:
        """Any transaction: compares, then checks, then operations (R4)."""
        return (yield from txn_steps(_WriteContext(draft), self.request, self.headers))


class Context(Protocol):
    """What a transaction is evaluated on."""

    @property
    def reader(self) -> Reader:
        """The state, the transaction's own effects included."""

    @property
    def revision_before(self) -> int:
        """The revision before the transaction."""

    @property
    def compact_revision(self) -> int:
        """The compacted revision."""

    @property
    def draft(self) -> Draft:
        """Where effects go; only asked for by transactions that write."""


class _WriteContext:
    __slots__ = ("compact_revision", "draft", "reader", "revision_before")

    def __init__(self, draft: Draft) -> None:
        self.draft = draft
        self.reader: Reader = draft.view
        self.revision_before = draft.view.revision - 1
        self.compact_revision = draft.view.store.compact_revision


class ReadContext:
    """A read-only transaction: committed state as of one moment."""

    __slots__ = ("compact_revision", "reader", "revision_before")

    def __init__(self, store: Store, now: float) -> None:
        self.reader: Reader = StoreReader(store, now)
        self.revision_before = store.revision
        self.compact_revision = store.compact_revision

    @property
    def draft(self) -> Draft:
        """Never asked for."""
        raise AssertionError("a read-only transaction writes nothing")


class _Path:
    """Which branch each transaction takes, in the order of etcd's walk, nested ones included."""

    __slots__ = ("_at", "_taken")

    def __init__(self, taken: list[bool]) -> None:
        self._taken = taken
        self._at = 0

    def next(self) -> bool:
        """The outcome of the next transaction's compares."""
        self._at += 1
        return self._taken[self._at - 1]

    def peek(self) -> bool:
        """The same, without going on."""
        return self._taken[self._at]


def txn_steps(context: Context, request: pb.TxnRequest, headers: Headers) -> Steps[bytes]:
    """Evaluate a transaction completely. Raises StoreError, ApiError.

    All compares see the state before the transaction, and so do the checks of the taken
    operations; the operations see what earlier ones made (R4). An operation may fail although
    its check passed (a from-key delete, then ignore_value): etcd crashes there.
    """
    taken: list[bool] = []
    yield from _compare_all(context.reader, request, taken)
    _check_all(context, request, _Path(taken))
    parts: list[bytes] = []
    yield from _execute(context, request, _Path(taken), parts)
    header = headers.at(context.reader.read_revision)
    succeeded = b"\x10\x01" if taken[0] else b""
    return b"".join([header, succeeded, *parts])


def _compare_all(reader: Reader, request: pb.TxnRequest, taken: list[bool]) -> Steps[None]:
    holds = True
    for compare in request.compare:
        if not (yield from _holds(reader, compare)):
            holds = False
            break
    taken.append(holds)
    for op in request.success if holds else request.failure:
        if op.HasField("request_txn"):
            yield from _compare_all(reader, op.request_txn, taken)


def _holds(reader: Reader, compare: pb.Compare) -> Steps[bool]:
    if not compare.range_end:
        version = reader.live(compare.key)
        return _compare_one(compare, version)
    low, high = bounds(compare.key, compare.range_end)
    verdicts: list[bool] = []

    def hold(found: list[Version]) -> None:
        verdicts.append(all(_compare_one(compare, version) for version in found))

    yield from reader.range_steps(low, high, 0, 0, hold)
    return all(verdicts) if verdicts else _compare_one(compare, None)


def _compare_one(compare: pb.Compare, version: Version | None) -> bool:
    """Hold one key against one compare. A field that is not set counts as zero or empty.

    A value compare on a missing key never holds; any other takes zeros for it.
    """
    target = compare.target
    given = compare.WhichOneof("target_union")
    actual: int | bytes
    wanted: int | bytes
    if target == pb.Compare.VALUE:
        if version is None:
            return False
        actual = version.value
        wanted = compare.value if given == "value" else b""
        return _ordered(compare.result, (actual > wanted) - (actual < wanted))
    if target == pb.Compare.MOD:
        actual = version.mod if version is not None else 0
        wanted = compare.mod_revision if given == "mod_revision" else 0
    elif target == pb.Compare.VERSION:
        actual = version.number if version is not None else 0
        wanted = compare.version if given == "version" else 0
    elif target == pb.Compare.CREATE:
        actual = version.create if version is not None else 0
        wanted = compare.create_revision if given == "create_revision" else 0
    elif target == pb.Compare.LEASE:
        actual = version.lease if version is not None else 0
        wanted = compare.lease if given == "lease" else 0
    else:
        actual = wanted = 0
    return _ordered(compare.result, (actual > wanted) - (actual < wanted))


def _ordered(result: int, sign: int) -> bool:
    if result == pb.Compare.EQUAL:
        return sign == 0
    if result == pb.Compare.GREATER:
        return sign > 0
    if result == pb.Compare.LESS:
        return sign < 0
    if result == pb.Compare.NOT_EQUAL:
        return sign != 0
    return True


def _check_all(context: Context, request: pb.TxnRequest, path: _Path) -> None:
    """etcd's check of the taken operations, on the state before the transaction."""
    for op in request.success if path.next() else request.failure:
        match op.WhichOneof("request"):
            case "request_range":
                revision = op.request_range.revision
                if revision > context.revision_before:
                    raise FutureRevision
                if revision and revision < context.compact_revision:
                    raise Compacted
            case "request_put":
                put = op.request_put
                context.draft.check_lease(put.lease)
                ignores = put.ignore_value or put.ignore_lease
                if ignores and context.reader.live(put.key) is None:
                    raise KeyNotFound
            case "request_txn":
                _check_all(context, op.request_txn, path)
            case _:
                pass


def _execute(
    context: Context, request: pb.TxnRequest, path: _Path, parts: list[bytes]
) -> Steps[None]:
    """Carry out the taken operations in order; append their ResponseOps to `parts`."""
    for op in request.success if path.next() else request.failure:
        match op.WhichOneof("request"):
            case "request_range":
                reader = context.reader
                head = inner(reader.read_revision)
                answer = yield from range_steps(reader, op.request_range, head)
                _response_op(parts, b"\x0a", [answer])
            case "request_put":
                previous = _put(context.draft, op.request_put)
                body = [inner(context.draft.view.revision)]
                if previous is not None:
                    body.append(previous.framed)
                _response_op(parts, b"\x12", body)
            case "request_delete_range":
                deleted = yield from _delete(context.draft, op.request_delete_range)
                header = inner(context.draft.view.read_revision)
                _response_op(parts, b"\x1a", [deleted.answer(header)])
            case "request_txn":
                body = []
                succeeded = path.peek()
                yield from _execute(context, op.request_txn, path, body)
                body.insert(0, b"\x0a\x00\x10\x01" if succeeded else b"\x0a\x00")
                _response_op(parts, b"\x22", body)
            case _:
                pass


def _response_op(parts: list[bytes], tag: bytes, body: list[bytes]) -> None:
    """One ResponseOp as field 3 of TxnResponse: both lengths, then the body's parts."""
    size = sum(map(len, body))
    head = tag + varint(size)
    parts.append(b"\x1a%b%b" % (varint(len(head) + size), head))
    parts.extend(body)
