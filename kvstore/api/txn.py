"""KV.Txn: a request becomes a plan in one pass, and the plan is evaluated on a state.

The plan has checked the request's form in etcd's order, and knows what the transaction may touch
and cost.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from kvstore.api import checks, errors
from kvstore.api.headers import Headers, inner
from kvstore.api.ranges import StoreReader, bounds, get, range_steps
from kvstore.api.requests import Compare, Delete, Op, Txn
from kvstore.api.tally import Tally
from kvstore.api.writes import (
    CallOperation,
    Deleted,
    looks_before,
    make_delete,
    make_delete_steps,
    make_put,
    put_cost_bytes,
)
from kvstore.mvcc.errors import Compacted, FutureRevision, KeyNotFound
from kvstore.mvcc.reader import Reader
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

_VALUE: Final = int(pb.Compare.VALUE)
_MOD: Final = int(pb.Compare.MOD)
_VERSION: Final = int(pb.Compare.VERSION)
_CREATE: Final = int(pb.Compare.CREATE)
_LEASE: Final = int(pb.Compare.LEASE)
_EQUAL: Final = int(pb.Compare.EQUAL)
_NOT_EQUAL: Final = int(pb.Compare.NOT_EQUAL)
_GREATER: Final = int(pb.Compare.GREATER)
_LESS: Final = int(pb.Compare.LESS)


class Plan:
    """What a checked transaction may do, those nested in it included.

    `read_only` in etcd's sense: nothing but ranges, and no nested transaction either. `drains`:
    it touches more than single keys at the current revision (R4). `cost_bytes`: the dearer branch.
    """

    __slots__ = ("cost_bytes", "drains", "read_only", "txn", "writes")

    def __init__(self, txn: Txn) -> None:
        self.txn = txn
        self.cost_bytes = 0
        self.writes = 0
        self.read_only = True
        self.drains = False


class Planner:
    """Makes the plan of one request. Raises ApiError unless the request is well formed."""

    def __init__(self, ops_max: int) -> None:
        self._ops_max = ops_max
        self._left = ops_max * TOTAL_OPS_FACTOR

    def plan(self, txn: Txn) -> Plan:
        """Shapes and counts first, then duplicate keys, in each branch."""
        plan = Plan(txn)
        plan.cost_bytes = self._look(txn, plan, self._ops_max)
        if plan.writes > 1:
            _check_intervals(txn.success)
            _check_intervals(txn.failure)
        return plan

    def _look(self, txn: Txn, plan: Plan, ops_max: int) -> int:
        """Check one level and those below; what it may cost, in bytes."""
        ops = max(len(txn.compares), len(txn.success), len(txn.failure))
        self._left -= len(txn.compares) + len(txn.success) + len(txn.failure)
        if ops > ops_max or self._left < 0:
            raise errors.TOO_MANY_OPS
        for key, range_end, _, _, _ in txn.compares:
            if not key:
                raise errors.EMPTY_KEY
            if range_end:
                plan.drains = True
        then_cost = 0
        for op in txn.success:
            then_cost += self._look_at(op, plan, ops_max - ops)
        else_cost = 0
        for op in txn.failure:
            else_cost += self._look_at(op, plan, ops_max - ops)
        return then_cost if then_cost > else_cost else else_cost

    def _look_at(self, op: Op, plan: Plan, ops_max: int) -> int:
        ranged = op.range
        if ranged is not None:
            checks.check_range(ranged)
            if ranged.range_end or ranged.revision:
                plan.drains = True
            return 0
        plan.read_only = False
        plan.writes += 1
        put, delete, nested = op.put, op.delete, op.txn
        if put is not None:
            checks.check_put(put)
            return put_cost_bytes(put)
        if delete is not None:
            checks.check_delete(delete)
            if delete.range_end:
                plan.drains = True
            return 0
        if nested is None:
            raise errors.KEY_NOT_FOUND
        return self._look(nested, plan, ops_max)


def _check_intervals(ops: Sequence[Op]) -> tuple[set[bytes], checks.Deletes]:
    """Raise DUPLICATE_KEY where puts meet puts or deletes. Returns the puts and deletes.

    As in etcd, a nested transaction's puts are held against the deletes of this level and of
    nested transactions before it, so a put before a delete in a later sibling passes.
    """
    deletes = checks.Deletes()
    puts: set[bytes] = set()
    own: list[bytes] = []
    for op in ops:
        if op.delete is not None:
            deletes.add(op.delete.key, op.delete.range_end)
        elif op.put is not None:
            own.append(op.put.key)
    for op in ops:
        if op.txn is None:
            continue
        puts_then, deletes_then = _check_intervals(op.txn.success)
        puts_else, deletes_else = _check_intervals(op.txn.failure)
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

    __slots__ = ("cost_bytes", "drains", "plan", "tally", "urgent")

    def __init__(self, call: Call, headers: Headers, plan: Plan, tally: Tally) -> None:
        super().__init__(call, headers)
        self.plan = plan
        self.tally = tally
        self.cost_bytes = plan.cost_bytes
        self.urgent = not plan.cost_bytes
        self.drains = plan.drains

    def evaluate(self, draft: Draft) -> bytes:
        """A transaction of single keys: the same as below, and never has to wait."""
        context = _write_context(draft)
        plan = self.plan
        taken: list[bool] = []
        _compare_points(context, plan.txn, taken)
        _check_all(context, plan.txn, iter(taken))
        parts: list[bytes] = []
        _execute_points(context, plan.txn, taken[0], iter(taken[1:]), parts)
        context.count(self.tally)
        return _answer(self.headers.at(context.reader.read_revision), taken[0], parts)

    def evaluate_steps(self, draft: Draft) -> Steps[bytes]:
        """Any transaction: compares, then checks, then operations (R4)."""
        return txn_steps(_write_context(draft), self.plan, self.headers, self.tally)


class Context:
    """What a transaction is evaluated on.

    `reader` is the state, the transaction's own effects included; `draft` takes those, and is None
    for a transaction that only reads: committed state as of one moment. What was done is counted
    in `compared` (previous values that were checked are in it), `ranges` and `writes`.
    """

    __slots__ = (
        "_draft",
        "compact_revision",
        "compared",
        "ranges",
        "reader",
        "revision_before",
        "writes",
    )

    def __init__(self, store: Store, reader: Reader, revision: int, draft: Draft | None) -> None:
        self.reader = reader
        self.revision_before = revision
        self.compact_revision = store.compact_revision
        self._draft = draft
        self.compared = 0
        self.ranges = 0
        self.writes = 0

    def count(self, tally: Tally) -> None:
        """The transaction is evaluated."""
        if self._draft is None:
            tally.add(self.compared + self.ranges, 0)
        else:
            tally.add(self.compared, 0)
            tally.add(self.ranges, self.writes)

    @property
    def draft(self) -> Draft:
        """Where effects go."""
        assert self._draft is not None
        return self._draft


def read_context(store: Store, now: float) -> Context:
    """For a transaction that only reads."""
    return Context(store, StoreReader(store, now), store.revision, None)


def _write_context(draft: Draft) -> Context:
    view = draft.view
    return Context(view.store, view, view.revision - 1, draft)


def txn_steps(context: Context, plan: Plan, headers: Headers, tally: Tally) -> Steps[bytes]:
    """Evaluate a transaction completely. Raises StoreError.

    All compares see the state before the transaction, and so do the checks of the taken
    operations; the operations see what earlier ones made (R4). An operation may fail although
    its check passed (a from-key delete, then ignore_value): etcd crashes there.
    """
    taken: list[bool] = []
    yield from _compare_all(context, plan.txn, taken)
    _check_all(context, plan.txn, iter(taken))
    parts: list[bytes] = []
    yield from _execute(context, plan.txn, taken[0], iter(taken[1:]), parts)
    context.count(tally)
    return _answer(headers.at(context.reader.read_revision), taken[0], parts)


def _answer(header: bytes, succeeded: bool, parts: list[bytes]) -> bytes:
    return b"".join((header, b"\x10\x01" if succeeded else b"", *parts))


# -- compares ------------------------------------------------------------------------------


def _compare_points(context: Context, txn: Txn, taken: list[bool]) -> None:
    """Which branch each transaction takes, in the order of a walk over the taken ones."""
    holds = True
    reader = context.reader
    for compare in txn.compares:
        context.compared += 1
        if not _compare_one(compare, reader.live(compare[0])):
            holds = False
            break
    taken.append(holds)
    for op in txn.success if holds else txn.failure:
        if op.txn is not None:
            _compare_points(context, op.txn, taken)


def _compare_all(context: Context, txn: Txn, taken: list[bool]) -> Steps[None]:
    """The same where a compare may be of a range."""
    holds = True
    reader = context.reader
    for compare in txn.compares:
        context.compared += 1
        if not compare[1]:
            holds = _compare_one(compare, reader.live(compare[0]))
        else:
            holds = yield from _compare_range(reader, compare)
        if not holds:
            break
    taken.append(holds)
    for op in txn.success if holds else txn.failure:
        if op.txn is not None:
            yield from _compare_all(context, op.txn, taken)


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
    if target == _VALUE:
        if version is None:
            return False
        assert isinstance(wanted, bytes)
        value = version.value
        return _holds(result, value == wanted, value < wanted)
    actual = 0
    if version is not None:
        if target == _MOD:
            actual = version.mod
        elif target == _VERSION:
            actual = version.number
        elif target == _CREATE:
            actual = version.create
        elif target == _LEASE:
            actual = version.lease
    assert isinstance(wanted, int)
    return _holds(result, actual == wanted, actual < wanted)


def _holds(result: int, equal: bool, less: bool) -> bool:
    if result == _EQUAL:
        return equal
    if result == _NOT_EQUAL:
        return not equal
    if result == _GREATER:
        return not (equal or less)
    if result == _LESS:
        return less
    return True


# -- checks --------------------------------------------------------------------------------


def _check_all(context: Context, txn: Txn, taken: Iterator[bool]) -> None:
    """etcd's check of the taken operations, on the state before the transaction."""
    for op in txn.success if next(taken) else txn.failure:
        put, ranged = op.put, op.range
        if put is not None:
            if put.lease:
                context.draft.check_lease(put.lease)
            if looks_before(put):
                context.compared += 1
                wants_key = put.ignore_value or put.ignore_lease
                if wants_key and context.reader.live(put.key) is None:
                    raise KeyNotFound
        elif ranged is not None:
            revision = ranged.revision
            if revision > context.revision_before:
                raise FutureRevision
            if revision and revision < context.compact_revision:
                raise Compacted
        elif op.txn is not None:
            _check_all(context, op.txn, taken)


# -- operations ----------------------------------------------------------------------------


def _execute_points(
    context: Context, txn: Txn, succeeded: bool, taken: Iterator[bool], parts: list[bytes]
) -> None:
    """Carry out the taken operations in order; append their ResponseOps to `parts`."""
    for op in txn.success if succeeded else txn.failure:
        if op.txn is not None:
            holds = next(taken)
            body = _nested_head(holds)
            _execute_points(context, op.txn, holds, taken, body)
            _response_op(parts, b"\x22", body)
        else:
            _execute_point(context, op, parts)


def _execute(
    context: Context, txn: Txn, succeeded: bool, taken: Iterator[bool], parts: list[bytes]
) -> Steps[None]:
    """The same where an operation may be of a range, or at a revision."""
    for op in txn.success if succeeded else txn.failure:
        ranged, delete = op.range, op.delete
        if op.txn is not None:
            holds = next(taken)
            body = _nested_head(holds)
            yield from _execute(context, op.txn, holds, taken, body)
            _response_op(parts, b"\x22", body)
        elif ranged is not None and (ranged.range_end or ranged.revision):
            context.ranges += 1
            head = inner(context.reader.read_revision)
            answer = yield from range_steps(context.reader, ranged, head)
            _response_op(parts, b"\x0a", [answer])
        elif delete is not None and delete.range_end:
            _count_delete(context, delete)
            deleted = yield from make_delete_steps(context.draft, delete)
            _deleted_op(context, deleted, parts)
        else:
            _execute_point(context, op, parts)


def _execute_point(context: Context, op: Op, parts: list[bytes]) -> None:
    """An operation on a single key at the current revision."""
    put, ranged, delete = op.put, op.range, op.delete
    if put is not None:
        draft = context.draft
        context.writes += 1
        if looks_before(put):
            context.ranges += 1
        previous = make_put(draft, put)
        body = [inner(draft.view.revision)]
        if previous is not None:
            body.append(previous.framed)
        _response_op(parts, b"\x12", body)
    elif ranged is not None:
        context.ranges += 1
        head = inner(context.reader.read_revision)
        _response_op(parts, b"\x0a", [get(context.reader, ranged, head)])
    else:
        assert delete is not None
        _count_delete(context, delete)
        _deleted_op(context, make_delete(context.draft, delete), parts)


def _count_delete(context: Context, delete: Delete) -> None:
    context.writes += 1
    if delete.prev_kv:
        context.ranges += 1


def _nested_head(succeeded: bool) -> list[bytes]:
    return [b"\x0a\x00\x10\x01" if succeeded else b"\x0a\x00"]


def _deleted_op(context: Context, deleted: Deleted, parts: list[bytes]) -> None:
    header = inner(context.draft.view.read_revision)
    _response_op(parts, b"\x1a", [deleted.answer(header)])


def _response_op(parts: list[bytes], tag: bytes, body: list[bytes]) -> None:
    """One ResponseOp as field 3 of TxnResponse: both lengths, then the body's parts."""
    size = 0
    for part in body:
        size += len(part)
    head = tag + varint(size)
    parts.append(b"\x1a" + varint(len(head) + size) + head)
    parts.extend(body)
