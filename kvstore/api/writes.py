"""KV.Put and KV.DeleteRange: from a checked request to effects and an answer."""

from __future__ import annotations

from io import BytesIO

from kvstore.api import checks, errors
from kvstore.api.headers import Headers
from kvstore.api.ranges import bounds
from kvstore.mvcc.errors import KeyNotFound
from kvstore.mvcc.store import Steps
from kvstore.mvcc.version import Version
from kvstore.mvcc.wire import varint
from kvstore.node import records
from kvstore.node.operation import Draft, Operation
from kvstore.pb import rpc_pb2 as pb
from kvstore.transport.seam import Call

STAND_IN_KEYS = 1000
"""A range delete of more keys than this is journaled as the operation (R13)."""


COPY_BYTES = 1 << 20
"""Answers above this are not copied once more."""


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

    @property
    def nbytes(self) -> int:
        """The request's length."""
        return len(self.call.request)

    def succeed(self, response: bytes) -> None:
        """Answer the call."""
        self.call.finish(response)

    def fail(self, error: Exception) -> None:
        """Answer the call with etcd's error."""
        answer = errors.to_api_error(error)
        self.call.fail(answer.code, answer.message)


def make_put(draft: Draft, request: pb.PutRequest) -> Version | None:
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


def in_one_step(steps: Steps[bytes]) -> bytes:
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
        previous = make_put(draft, self.request)
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
        return in_one_step(self.evaluate_steps(draft))

    def evaluate_steps(self, draft: Draft) -> Steps[bytes]:
        """Delete a range."""
        draft.view.one_pass = True
        deleted = yield from delete_steps(draft, self.request)
        if deleted.count > STAND_IN_KEYS:
            low, high = bounds(self.request.key, self.request.range_end)
            draft.stand_in = records.delete_range(low, high, draft.view.revision)
        return deleted.answer(self.headers.at(draft.view.read_revision))


class Deleted:
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
        ending = b"%b\x10%b" % (header, varint(self.count))
        if self._out.tell() < COPY_BYTES:
            return ending + self._out.getvalue()
        # Fields may come in any order; a copy of a huge answer is a long step (I9).
        self._out.write(ending)
        return self._out.getvalue()


def delete_steps(draft: Draft, request: pb.DeleteRangeRequest) -> Steps[Deleted]:
    """Make a delete, of one key or of a range."""
    deleted = Deleted(request.prev_kv)
    if request.range_end:
        low, high = bounds(request.key, request.range_end)
        yield from draft.view.delete_range_steps(low, high, deleted.add)
    else:
        version = draft.view.delete(request.key)
        if version is not None:
            deleted.add([version])
    return deleted
