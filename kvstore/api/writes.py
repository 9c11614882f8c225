"""KV.Put and KV.DeleteRange: from a checked request to effects and an answer."""

from __future__ import annotations

from io import BytesIO

from kvstore.api import errors
from kvstore.api.headers import Headers
from kvstore.api.ranges import bounds
from kvstore.api.requests import Delete, Put
from kvstore.mvcc.errors import KeyNotFound
from kvstore.mvcc.store import Steps
from kvstore.mvcc.version import Version
from kvstore.mvcc.wire import varint
from kvstore.node import records
from kvstore.node.operation import Draft, Operation
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


def put_cost_bytes(put: Put) -> int:
    """What a put counts for against the quota before it is made (etcd's costPut)."""
    return 256 + len(put.key) + len(put.value)


def looks_before(put: Put) -> bool:
    """Whether a put wants to know what was there."""
    return put.prev_kv or put.ignore_value or put.ignore_lease


def make_put(draft: Draft, put: Put) -> Version | None:
    """Put. Returns the version before, if asked for. Raises LeaseNotFound, KeyNotFound."""
    view = draft.view
    if put.lease:
        draft.check_lease(put.lease)
    if not looks_before(put):
        view.put(put.key, put.value, put.lease)
        return None
    previous = view.live(put.key)
    if previous is None and (put.ignore_value or put.ignore_lease):
        raise KeyNotFound
    value, lease = put.value, put.lease
    if previous is not None:
        if put.ignore_value:
            value = previous.value
        if put.ignore_lease:
            lease = previous.lease
    view.put(put.key, value, lease)
    return previous if put.prev_kv else None


def make_delete(draft: Draft, delete: Delete) -> Deleted:
    """Delete the one key."""
    deleted = Deleted(delete.prev_kv)
    version = draft.view.delete(delete.key)
    if version is not None:
        deleted.add([version])
    return deleted


def make_delete_steps(draft: Draft, delete: Delete) -> Steps[Deleted]:
    """Delete the range."""
    deleted = Deleted(delete.prev_kv)
    low, high = bounds(delete.key, delete.range_end)
    yield from draft.view.delete_range_steps(low, high, deleted.add)
    return deleted


class PutOperation(CallOperation):
    """KV.Put."""

    __slots__ = ("cost_bytes", "put")

    def __init__(self, call: Call, headers: Headers, put: Put) -> None:
        super().__init__(call, headers)
        self.put = put
        self.cost_bytes = put_cost_bytes(put)

    def evaluate(self, draft: Draft) -> bytes:
        """The put's answer: header and, if asked for, the version before."""
        previous = make_put(draft, self.put)
        header = self.headers.at(draft.view.revision)
        return header + previous.framed if previous is not None else header


class DeleteOperation(CallOperation):
    """KV.DeleteRange."""

    __slots__ = ("delete", "drains")
    urgent = True

    def __init__(self, call: Call, headers: Headers, delete: Delete) -> None:
        super().__init__(call, headers)
        self.delete = delete
        self.drains = bool(delete.range_end)

    def evaluate(self, draft: Draft) -> bytes:
        """Delete one key."""
        deleted = make_delete(draft, self.delete)
        return deleted.answer(self.headers.at(draft.view.read_revision))

    def evaluate_steps(self, draft: Draft) -> Steps[bytes]:
        """Delete a range."""
        draft.view.one_pass = True
        deleted = yield from make_delete_steps(draft, self.delete)
        if deleted.count > STAND_IN_KEYS:
            low, high = bounds(self.delete.key, self.delete.range_end)
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
