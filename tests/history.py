"""What concurrent clients did, put into one order by revision and checked against a plain model.

Clients record each request with its outcome (`Op`). Each acknowledged write names its revision, so
the order needs no search: `assemble` executes the writes one by one on a model of the store and
compares every answer with what the model says. Revisions that no client was told of have to be
explained by one of the requests whose outcome is unknown, or by a lease that ended.

The result is the event log (`Log`), the reference for watch guarantees and for recovery.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from kvstore.pb import kv_pb2, rpc_pb2

ACKED, REFUSED, UNKNOWN = "acked", "refused", "unknown"

Events = list[kv_pb2.Event]
State = dict[bytes, kv_pb2.KeyValue]

SNAPSHOT_EVERY = 256

#: What may make a revision.
WRITES = {"Put", "DeleteRange", "Txn", "LeaseRevoke"}


@dataclass
class Op:
    """One request of one client.

    `known` is the highest revision that any client had been answered when this one was sent.
    """

    client: int
    method: str
    request: Any
    known: int
    outcome: str = UNKNOWN
    answer: Any = None
    error: str = ""

    @property
    def revision(self) -> int:
        return int(self.answer.header.revision) if self.answer is not None else 0

    def __str__(self) -> str:
        text = str(self.request).replace("\n", " ")
        return f"{self.method}({text}) of client {self.client}: {self.outcome} at {self.revision}"


def in_range(key: bytes, start: bytes, end: bytes) -> bool:
    """Whether `key` lies in etcd's range [start, end)."""
    if not end:
        return key == start
    return key >= start and (end == b"\x00" or key < end)


def wrote(op: Op) -> bool | None:
    """Whether an acknowledged request made a revision; None: only the model can tell (revoke)."""
    if op.method == "Put":
        return True
    if op.method == "DeleteRange":
        return bool(op.answer.deleted)
    if op.method == "Txn":
        return _txn_wrote(op.request, op.answer)
    if op.method == "LeaseRevoke":
        return None
    return False


def _txn_wrote(request: rpc_pb2.TxnRequest, answer: rpc_pb2.TxnResponse) -> bool:
    operations = request.success if answer.succeeded else request.failure
    for operation, result in zip(operations, answer.responses, strict=True):
        kind = operation.WhichOneof("request")
        if kind == "request_put":
            return True
        if kind == "request_delete_range" and result.response_delete_range.deleted:
            return True
        if kind == "request_txn" and _txn_wrote(operation.request_txn, result.response_txn):
            return True
    return False


class _Execution:
    """One request evaluated on a state: its events, and the answer without headers."""

    def __init__(self, before: State, revision: int) -> None:
        self.before = before
        self.revision = revision
        self.changed: dict[bytes, kv_pb2.KeyValue | None] = {}
        self.events: Events = []

    def run(self, method: str, request: Any) -> Any:
        return {
            "Put": self._put,
            "DeleteRange": self._delete,
            "Txn": self._txn,
            "Range": self._range,
        }[method](request)

    def delete_keys(self, keys: Iterable[bytes]) -> None:
        for key in sorted(keys):
            self._drop(key)

    def _get(self, key: bytes) -> kv_pb2.KeyValue | None:
        return self.changed[key] if key in self.changed else self.before.get(key)

    def _matching(self, start: bytes, end: bytes) -> list[kv_pb2.KeyValue]:
        keys = {key for key in self.before if in_range(key, start, end)}
        keys |= {key for key in self.changed if in_range(key, start, end)}
        found = (self._get(key) for key in sorted(keys))
        return [kv for kv in found if kv is not None]

    def _put(self, request: rpc_pb2.PutRequest) -> rpc_pb2.PutResponse:
        old = self._get(request.key)
        kv = kv_pb2.KeyValue(
            key=request.key,
            value=request.value,
            lease=request.lease,
            create_revision=old.create_revision if old else self.revision,
            mod_revision=self.revision,
            version=old.version + 1 if old else 1,
        )
        if old is not None and request.ignore_value:
            kv.value = old.value
        if old is not None and request.ignore_lease:
            kv.lease = old.lease
        self.changed[request.key] = kv
        self.events.append(kv_pb2.Event(kv=kv, prev_kv=old))
        return rpc_pb2.PutResponse(prev_kv=old if request.prev_kv else None)

    def _drop(self, key: bytes) -> None:
        gone = kv_pb2.KeyValue(key=key, mod_revision=self.revision)
        self.events.append(kv_pb2.Event(type=kv_pb2.Event.DELETE, kv=gone, prev_kv=self._get(key)))
        self.changed[key] = None

    def _delete(self, request: rpc_pb2.DeleteRangeRequest) -> rpc_pb2.DeleteRangeResponse:
        found = self._matching(request.key, request.range_end)
        for kv in found:
            self._drop(kv.key)
        return rpc_pb2.DeleteRangeResponse(
            deleted=len(found), prev_kvs=found if request.prev_kv else []
        )

    def _range(self, request: rpc_pb2.RangeRequest) -> rpc_pb2.RangeResponse:
        found = self._matching(request.key, request.range_end)
        answer = rpc_pb2.RangeResponse(count=len(found))
        if not request.count_only:
            kvs = found[: request.limit] if request.limit else found
            answer.kvs.extend(kvs)
            answer.more = len(kvs) < len(found)
        return answer

    def _compare(self, compare: rpc_pb2.Compare) -> bool:
        """Compares only what the workloads here use: one key, four targets."""
        kv = self.before.get(compare.key) or kv_pb2.KeyValue()
        name = compare.WhichOneof("target_union")
        assert name is not None and not compare.range_end
        if name == "value" and not kv.mod_revision:
            return False
        mine, theirs = getattr(kv, name), getattr(compare, name)
        return bool(
            {
                rpc_pb2.Compare.EQUAL: mine == theirs,
                rpc_pb2.Compare.NOT_EQUAL: mine != theirs,
                rpc_pb2.Compare.GREATER: mine > theirs,
                rpc_pb2.Compare.LESS: mine < theirs,
            }[compare.result]
        )

    def _txn(self, request: rpc_pb2.TxnRequest) -> rpc_pb2.TxnResponse:
        answer = rpc_pb2.TxnResponse(succeeded=all(map(self._compare, request.compare)))
        for operation in request.success if answer.succeeded else request.failure:
            result = answer.responses.add()
            match operation.WhichOneof("request"):
                case "request_put":
                    result.response_put.CopyFrom(self._put(operation.request_put))
                case "request_delete_range":
                    result.response_delete_range.CopyFrom(
                        self._delete(operation.request_delete_range)
                    )
                case "request_range":
                    result.response_range.CopyFrom(self._range(operation.request_range))
                case "request_txn":
                    result.response_txn.CopyFrom(self._txn(operation.request_txn))
        return answer


class Log:
    """All events by revision, from revision 2 on, and the states that they make."""

    def __init__(self) -> None:
        self.revisions: list[Events] = []
        self.state: State = {}
        self._snapshots: dict[int, State] = {1: {}}

    @property
    def last(self) -> int:
        """The current revision."""
        return len(self.revisions) + 1

    def append(self, events: Events) -> None:
        """Adds the events of the next revision."""
        self.revisions.append(events)
        _apply(self.state, events)
        if self.last % SNAPSHOT_EVERY == 0:
            self._snapshots[self.last] = dict(self.state)

    def at(self, revision: int) -> Events:
        """The events of one revision."""
        return self.revisions[revision - 2] if 2 <= revision <= self.last else []

    def state_at(self, revision: int) -> State:
        """All keys at a revision."""
        base = max(known for known in self._snapshots if known <= revision)
        state = dict(self._snapshots[base])
        for number in range(base + 1, revision + 1):
            _apply(state, self.at(number))
        return state

    def watched(
        self, key: bytes, end: bytes, start: int, filters: Iterable[int] = ()
    ) -> Iterator[kv_pb2.Event]:
        """What a watch of [key, end) from revision `start` on has to bring, with prev_kv."""
        unwanted = {
            kv_pb2.Event.PUT if name == rpc_pb2.WatchCreateRequest.NOPUT else kv_pb2.Event.DELETE
            for name in filters
        }
        for number in range(max(start, 2), self.last + 1):
            for event in self.at(number):
                if event.type not in unwanted and in_range(event.kv.key, key, end):
                    yield event


def _apply(state: State, events: Events) -> None:
    for event in events:
        if event.type == kv_pb2.Event.PUT:
            state[event.kv.key] = event.kv
        else:
            state.pop(event.kv.key, None)


@dataclass
class Assembly:
    """The log of a history, and what is wrong with the history (nothing, one hopes)."""

    log: Log = field(default_factory=Log)
    faults: list[str] = field(default_factory=list)
    happened: list[Op] = field(default_factory=list)
    """Requests of unknown outcome that turned out to have been carried out."""


def without_headers(message: Any) -> Any:
    """A copy of an answer without any header, nested ones included."""
    copy = type(message)()
    copy.CopyFrom(message)
    _strip(copy)
    return copy


def _strip(message: Any) -> None:
    for descriptor, value in message.ListFields():
        if descriptor.name == "header":
            message.ClearField("header")
        elif descriptor.message_type is not None:
            for item in value if descriptor.is_repeated else [value]:
                _strip(item)


def execute(op: Op, before: State, revision: int) -> tuple[Events, Any]:
    """The events and the answer (without headers) of a request on a state."""
    run = _Execution(before, revision)
    if op.method == "LeaseRevoke":
        run.delete_keys(kv.key for kv in before.values() if kv.lease == op.request.ID)
        return run.events, rpc_pb2.LeaseRevokeResponse()
    answer = run.run(op.method, op.request)
    return run.events, answer


def _ended_lease(before: State, revision: int, seen: Events) -> bool:
    """Whether these events are one lease's end: all of its keys deleted, in order of keys."""
    if not seen:
        return False
    first = before.get(seen[0].kv.key)
    if first is None or not first.lease:
        return False
    run = _Execution(before, revision)
    run.delete_keys(kv.key for kv in before.values() if kv.lease == first.lease)
    return same(run.events, seen)


def same(left: Events, right: Events) -> bool:
    """Whether two lists of events are equal but for the previous values."""
    return [(e.type, e.kv) for e in left] == [(e.type, e.kv) for e in right]


def assemble(ops: Iterable[Op], observed: dict[int, Events], last: int) -> Assembly:
    """Puts a history in order and checks it (I1, I2, I3).

    `observed` has the events that the server itself reports for each revision up to `last`; a
    revision may be absent only if a client was told of it. Previous values come from the model,
    whatever the events say. Every acknowledged
    write must be there at its revision with its effect, no refused one may be, and those of
    unknown outcome either are or are not.
    """
    ops = list(ops)
    result = Assembly()
    writes: dict[int, Op] = {}
    reads: dict[int, list[Op]] = {}
    revokes: dict[int, list[Op]] = {}
    for op in ops:
        if op.outcome != ACKED:
            continue
        if op.revision < op.known:
            result.faults.append(f"I2: answered below revision {op.known}, known before: {op}")
        if op.revision > last:
            result.faults.append(f"I1: acknowledged above the last revision {last}: {op}")
        made = wrote(op)
        if made is None:
            revokes.setdefault(op.revision, []).append(op)
        elif not made:
            if op.method in ("Range", "Txn", "DeleteRange"):
                pinned = op.request.revision if op.method == "Range" else 0
                reads.setdefault(pinned or op.revision, []).append(op)
        elif op.revision in writes:
            result.faults.append(f"I3: revision used twice: {writes[op.revision]}; {op}")
        else:
            writes[op.revision] = op
    open_ends = [op for op in ops if op.outcome == UNKNOWN and op.method in WRITES]

    log = result.log
    for revision in range(2, last + 1):
        events = _explain(result, writes, revokes, open_ends, observed, revision)
        log.append(events)
        for op in reads.get(revision, ()):
            _check_answer(result, op, execute(op, log.state, revision)[1])
    for op in reads.get(1, ()):
        _check_answer(result, op, execute(op, {}, 1)[1])
    return result


def _explain(
    result: Assembly,
    writes: dict[int, Op],
    revokes: dict[int, list[Op]],
    open_ends: list[Op],
    observed: dict[int, Events],
    revision: int,
) -> Events:
    """The events of a revision, and a fault for each way in which they are not right."""
    before = result.log.state
    seen = observed.get(revision)
    op = writes.get(revision)
    if op is not None:
        events, answer = execute(op, before, revision)
        _check_answer(result, op, answer)
        if seen is not None and not same(seen, events):
            result.faults.append(
                f"I1: revision {revision} is not what was acknowledged: {op}\n{_text(seen)}"
            )
        return events
    for op in revokes.get(revision, ()):
        events, _ = execute(op, before, revision)
        if events and (seen is None or same(seen, events)):
            return events
    if seen is None:
        result.faults.append(f"I3: nobody knows what revision {revision} is")
        return []
    seen = [
        kv_pb2.Event(type=event.type, kv=event.kv, prev_kv=before.get(event.kv.key))
        for event in seen
    ]
    for n, op in enumerate(open_ends):
        if same(execute(op, before, revision)[0], seen):
            result.happened.append(op)
            del open_ends[n]
            return seen
    if not _ended_lease(before, revision, seen):
        result.faults.append(f"I1: no request explains revision {revision}:\n{_text(seen)}")
    return seen


def _check_answer(result: Assembly, op: Op, answer: Any) -> None:
    got = without_headers(op.answer)
    if got != answer:
        result.faults.append(f"I2: wrong answer to {op}\nexpected {answer}\ngot {got}")


def _text(events: Events) -> str:
    return "; ".join(str(event).replace("\n", " ") for event in events)
