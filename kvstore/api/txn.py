"""KV.Txn: a request becomes a plan in one pass, and the plan is evaluated on a state.

The plan has checked the request's form in etcd's order, knows what the transaction may touch and
cost, and holds compares as plain values, so that nothing is asked of protobuf twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from kvstore.api import checks, errors
from kvstore.api.headers import Headers, inner
from kvstore.api.ranges import Reader, StoreReader, bounds, range_steps
from kvstore.api.writes import CallOperation, delete_steps, in_one_step, make_put
from kvstore.mvcc.errors import Compacted, FutureRevision, KeyNotFound
from kvstore.mvcc.store import Steps, Store
from kvstore.mvcc.version import Version
from kvstore.mvcc.wire import varint
from kvstore.node.operation import Draft
from kvstore.pb import rpc_pb2 as pb
from kvstore.transport.seam import Call

TOTAL_OPS_FACTOR = 32
"""A transaction holds at most this many times `--max-txn-ops`, nested ones included.

etcd counts along each path only, so tens of thousands of operations pass its check (DESIGN §10).
"""

Compare = tuple[bytes, bytes, int, int, int | bytes]
"""(key, range_end, target, result, value to compare with)."""

Op = tuple[str, pb.RangeRequest | pb.PutRequest | pb.DeleteRangeRequest, "Plan | None"]
"""(name of the request in RequestOp, the request, the plan of a nested transaction)."""

_NO_REQUEST = pb.RangeRequest()

_UNION_OF: dict[int, str] = {
    pb.Compare.VERSION: "version",
    pb.Compare.CREATE: "create_revision",
    pb.Compare.MOD: "mod_revision",
    pb.Compare.VALUE: "value",
    pb.Compare.LEASE: "lease",
}


@dataclass(slots=True)
class Plan:
    """A checked transaction, or a nested one.

    `read_only` in etcd's sense: nothing but ranges, and no nested transaction either. `drains`:
    it touches more than single keys at the current revision (R4).
    """

    compares: list[Compare] = field(default_factory=list)
    success: list[Op] = field(default_factory=list)
    failure: list[Op] = field(default_factory=list)
    cost_bytes: int = 0
    writes: int = 0
    read_only: bool = True
    drains: bool = False


class Planner:
    """Makes the plan of one request. Raises ApiError unless the request is well formed."""

    def __init__(self, ops_max: int) -> None:
        self._ops_max = ops_max
        self._left = ops_max * TOTAL_OPS_FACTOR

    def plan(self, request: pb.TxnRequest) -> Plan:
        """Shapes and counts first, then duplicate keys, in each branch."""
        plan = self._plan(request, self._ops_max)
        if plan.writes > 1:
            _check_intervals(plan.success)
            _check_intervals(plan.failure)
        return plan

    def _plan(self, request: pb.TxnRequest, ops_max: int) -> Plan:
        compares, success, failure = request.compare, request.success, request.failure
        lengths = len(compares), len(success), len(failure)
        ops = max(lengths)
        self._left -= sum(lengths)
        if ops > ops_max or self._left < 0:
            raise errors.TOO_MANY_OPS
        plan = Plan()
        for compare in compares:
            key, range_end, target = compare.key, compare.range_end, compare.target
            if not key:
                raise errors.EMPTY_KEY
            if range_end:
                plan.drains = True
            plan.compares.append((key, range_end, target, compare.result, _wanted(compare, target)))
        for op in success:
            plan.success.append(self._op(op, plan, ops_max - ops))
        then_cost = plan.cost_bytes
        plan.cost_bytes = 0
        for op in failure:
            plan.failure.append(self._op(op, plan, ops_max - ops))
        if then_cost > plan.cost_bytes:
            plan.cost_bytes = then_cost
        return plan

    def _op(self, op: pb.RequestOp, plan: Plan, ops_max: int) -> Op:
        kind = op.WhichOneof("request")
        if kind == "request_range":
            ranged = op.request_range
            checks.check_range(ranged)
            if ranged.range_end or ranged.revision:
                plan.drains = True
            return kind, ranged, None
        plan.read_only = False
        plan.writes += 1
        if kind == "request_put":
            put = op.request_put
            checks.check_put(put)
            plan.cost_bytes += checks.put_cost_bytes(put)
            return kind, put, None
        if kind == "request_delete_range":
            deleted = op.request_delete_range
            checks.check_delete_range(deleted)
            if deleted.range_end:
                plan.drains = True
            return kind, deleted, None
        if kind == "request_txn":
            nested = self._plan(op.request_txn, ops_max)
            plan.drains = plan.drains or nested.drains
            plan.writes += nested.writes
            plan.cost_bytes += nested.cost_bytes
            return kind, _NO_REQUEST, nested
        raise errors.KEY_NOT_FOUND


def _wanted(compare: pb.Compare, target: int) -> int | bytes:
    """What a compare compares with. A union that is not set, or another's, is zero or empty."""
    given = compare.WhichOneof("target_union")
    if given is None or _UNION_OF.get(target) != given:
        return b"" if target == pb.Compare.VALUE else 0
    wanted: int | bytes = getattr(compare, given)
    return wanted


def _check_intervals(ops: Sequence[Op]) -> tuple[set[bytes], checks.Deletes]:
    """Raise DUPLICATE_KEY where puts meet puts or deletes. Returns the puts and deletes.

    As in etcd, a nested transaction's puts are held against the deletes of this level and of
    nested transactions before it, so a put before a delete in a later sibling passes.
    """
    deletes = checks.Deletes()
    puts: set[bytes] = set()
    own: list[bytes] = []
    for kind, request, _ in ops:
        if kind == "request_delete_range":
            assert isinstance(request, pb.DeleteRangeRequest)
            deletes.add(request)
        elif kind == "request_put":
            own.append(request.key)
    for _, _, nested in ops:
        if nested is None:
            continue
        puts_then, deletes_then = _check_intervals(nested.success)
        puts_else, deletes_else = _check_intervals(nested.failure)
        for key in (*puts_then, *puts_else):
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


class TxnOperation(CallOperation):
    """KV.Txn with writes."""

    __slots__ = ("cost_bytes", "drains", "plan", "urgent")

    def __init__(self, call: Call, headers: Headers, plan: Plan) -> None:
        super().__init__(call, headers)
        self.plan = plan
        self.cost_bytes = plan.cost_bytes
        self.urgent = not plan.cost_bytes
        self.drains = plan.drains

    def evaluate(self, draft: Draft) -> bytes:
        """A transaction of single keys."""
        return in_one_step(self.evaluate_steps(draft))

    def evaluate_steps(self, draft: Draft) -> Steps[bytes]:
        """Any transaction: compares, then checks, then operations (R4)."""
        return txn_steps(_WriteContext(draft), self.plan, self.headers)


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


def txn_steps(context: Context, plan: Plan, headers: Headers) -> Steps[bytes]:
    """Evaluate a transaction completely. Raises StoreError.

    All compares see the state before the transaction, and so do the checks of the taken
    operations; the operations see what earlier ones made (R4). An operation may fail although
    its check passed (a from-key delete, then ignore_value): etcd crashes there.
    """
    taken: list[bool] = []
    yield from _compare_all(context.reader, plan, taken)
    _check_all(context, plan, iter(taken))
    parts: list[bytes] = []
    yield from _execute(context, plan, taken[0], iter(taken[1:]), parts)
    header = headers.at(context.reader.read_revision)
    return b"".join((header, b"\x10\x01" if taken[0] else b"", *parts))


def _compare_all(reader: Reader, plan: Plan, taken: list[bool]) -> Steps[None]:
    """Which branch each transaction takes, in the order of a walk over the taken ones."""
    holds = True
    for compare in plan.compares:
        if not compare[1]:
            holds = _compare_one(compare, reader.live(compare[0]))
        else:
            holds = yield from _compare_range(reader, compare)
        if not holds:
            break
    taken.append(holds)
    for _, _, nested in plan.success if holds else plan.failure:
        if nested is not None:
            yield from _compare_all(reader, nested, taken)


def _compare_range(reader: Reader, compare: Compare) -> Steps[bool]:
    """A range compare holds if it holds for every key; without keys as for a missing one."""
    verdicts: list[bool] = []

    def hold(found: list[Version]) -> None:
        verdicts.append(all(_compare_one(compare, version) for version in found))

    low, high = bounds(compare[0], compare[1])
    yield from reader.range_steps(low, high, 0, 0, hold)
    return all(verdicts) if verdicts else _compare_one(compare, None)


def _compare_one(compare: Compare, version: Version | None) -> bool:
    """Hold one key against one compare.

    A value compare on a missing key never holds; any other takes zeros for it.
    """
    _, _, target, result, wanted = compare
    actual: int | bytes = 0
    if version is None:
        if target == pb.Compare.VALUE:
            return False
    elif target == pb.Compare.MOD:
        actual = version.mod
    elif target == pb.Compare.VERSION:
        actual = version.number
    elif target == pb.Compare.CREATE:
        actual = version.create
    elif target == pb.Compare.VALUE:
        actual = version.value
    elif target == pb.Compare.LEASE:
        actual = version.lease
    if result == pb.Compare.EQUAL:
        return actual == wanted
    if result == pb.Compare.NOT_EQUAL:
        return actual != wanted
    if result == pb.Compare.GREATER:
        return actual > wanted  # type: ignore[operator]
    if result == pb.Compare.LESS:
        return actual < wanted  # type: ignore[operator]
    return True


def _check_all(context: Context, plan: Plan, taken: Iterator[bool]) -> None:
    """etcd's check of the taken operations, on the state before the transaction."""
    for kind, request, nested in plan.success if next(taken) else plan.failure:
        if nested is not None:
            _check_all(context, nested, taken)
        elif kind == "request_put":
            assert isinstance(request, pb.PutRequest)
            context.draft.check_lease(request.lease)
            if (request.ignore_value or request.ignore_lease) and (
                context.reader.live(request.key) is None
            ):
                raise KeyNotFound
        elif kind == "request_range":
            assert isinstance(request, pb.RangeRequest)
            revision = request.revision
            if revision > context.revision_before:
                raise FutureRevision
            if revision and revision < context.compact_revision:
                raise Compacted


def _execute(
    context: Context, plan: Plan, succeeded: bool, taken: Iterator[bool], parts: list[bytes]
) -> Steps[None]:
    """Carry out the taken operations in order; append their ResponseOps to `parts`."""
    for kind, request, nested in plan.success if succeeded else plan.failure:
        if kind == "request_put":
            assert isinstance(request, pb.PutRequest)
            previous = make_put(context.draft, request)
            body = [inner(context.draft.view.revision)]
            if previous is not None:
                body.append(previous.framed)
            _response_op(parts, b"\x12", body)
        elif kind == "request_range":
            assert isinstance(request, pb.RangeRequest)
            head = inner(context.reader.read_revision)
            answer = yield from range_steps(context.reader, request, head)
            _response_op(parts, b"\x0a", [answer])
        elif nested is not None:
            nested_succeeded = next(taken)
            body = [b"\x0a\x00\x10\x01" if nested_succeeded else b"\x0a\x00"]
            yield from _execute(context, nested, nested_succeeded, taken, body)
            _response_op(parts, b"\x22", body)
        else:
            assert isinstance(request, pb.DeleteRangeRequest)
            deleted = yield from delete_steps(context.draft, request)
            header = inner(context.draft.view.read_revision)
            _response_op(parts, b"\x1a", [deleted.answer(header)])


def _response_op(parts: list[bytes], tag: bytes, body: list[bytes]) -> None:
    """One ResponseOp as field 3 of TxnResponse: both lengths, then the body's parts."""
    size = sum(map(len, body))
    head = tag + varint(size)
    parts.append(b"\x1a%b%b" % (varint(len(head) + size), head))
    parts.extend(body)
