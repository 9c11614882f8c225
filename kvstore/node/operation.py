"""What a write request is to the node: something to evaluate, and someone to answer."""

from __future__ import annotations

from collections.abc import Container

from kvstore.lease.lessor import Lessor
from kvstore.mvcc.errors import LeaseNotFound
from kvstore.mvcc.store import Steps
from kvstore.mvcc.view import WriteView
from kvstore.pb import record_pb2


class Draft:
    """The place where one operation is evaluated, before any of it is journaled.

    The view collects versions; `changes` collects records without versions. `stand_in`, if set,
    is journaled in place of the versions: for operations that replay can repeat (R13).
    """

    __slots__ = ("_granted", "_lessor", "changes", "stand_in", "view")

    def __init__(self, view: WriteView, lessor: Lessor, granted: Container[int]) -> None:
        self.view = view
        self.changes: list[record_pb2.Record] = []
        self.stand_in: record_pb2.Record | None = None
        self._lessor = lessor
        self._granted = granted

    def begin(self, revision: int, now: float) -> None:
        """Evaluate another operation: nothing of the one before is left."""
        self.view.begin(revision, now)
        if self.changes:
            self.changes = []
        self.stand_in = None

    def has_lease(self, lease_id: int) -> bool:
        """Whether a lease exists, grants in flight included."""
        return lease_id in self._lessor or lease_id in self._granted

    def check_lease(self, lease_id: int) -> None:
        """Raise LeaseNotFound unless the lease exists; 0 stands for none."""
        if lease_id and not self.has_lease(lease_id):
            raise LeaseNotFound


class Operation:
    """One write request.

    `drains`: it needs more than single keys, so it waits until nothing is in flight and holds
    what comes after it (R4). `cost_bytes`: what it may add, for the quota; 0 for what
    frees space. `urgent`: it may use the journal's headroom. `mends`: it goes on while there is a
    CORRUPT alarm.
    """

    drains = False
    urgent = False
    mends = False
    cost_bytes = 0
    submitted_at = 0.0
    response = b""
    """What it is answered when its batch is committed, unless there is an `error`."""
    error: Exception | None = None

    @property
    def cancelled(self) -> bool:
        """The client is gone; an operation that is not proposed yet is dropped (R12)."""
        return False

    @property
    def nbytes(self) -> int:
        """What the operation holds in memory while it waits, roughly (I8)."""
        return 0

    def evaluate(self, draft: Draft) -> bytes:
        """Work out effects and answer. Raises StoreError. Not for operations that drain."""
        raise NotImplementedError

    def evaluate_steps(self, draft: Draft) -> Steps[bytes]:
        """The same in slices, for operations that drain."""
        yield from ()
        return self.evaluate(draft)

    def succeed(self, response: bytes) -> None:
        """The operation is committed, or changed nothing."""

    def fail(self, error: Exception) -> None:
        """The operation was refused (StoreError, NodeError), or its outcome is unknown."""
