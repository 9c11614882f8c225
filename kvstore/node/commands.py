"""Write requests that are not about keys alone: leases, compaction, alarms.

The node issues them itself (expiry, auto-compaction, a full quota), and the api layer for its
clients, with `respond` making the client's answer from the revision that it is answered at.
"""

from __future__ import annotations

from collections.abc import Callable

from kvstore.lease.lessor import effective_ttl_s
from kvstore.mvcc.errors import LeaseExists, LeaseNotFound
from kvstore.mvcc.store import Steps
from kvstore.node import records
from kvstore.node.operation import Draft, Operation
from kvstore.node.state import State, delete_lease_keys_steps

LEASE_COST_BYTES = 64
"""What a grant counts for against the quota (etcd's leaseOverhead)."""

Respond = Callable[[int], bytes]
Finish = Callable[[bytes | None, Exception | None], None]


class Command(Operation):
    """A write request with a callback in place of a call."""

    def __init__(
        self,
        state: State,
        respond: Respond,
        finish: Finish,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> None:
        self.state = state
        self.respond = respond
        self.finish = finish
        self._cancelled = cancelled

    @property
    def cancelled(self) -> bool:
        """The client is gone."""
        return self._cancelled()

    def succeed(self, response: bytes) -> None:
        """Pass the answer on."""
        self.finish(response, None)

    def fail(self, error: Exception) -> None:
        """Pass the error on."""
        self.finish(None, error)


def nobody(response: bytes | None, error: Exception | None) -> None:
    """For commands that nobody waits for."""


def nothing(revision: int) -> bytes:
    """For commands that nobody reads the answer of."""
    return b""


class LeaseGrant(Command):
    """Grant a lease. `ttl_s` is the client's wish; the floor is applied here."""

    def __init__(
        self, state: State, lease_id: int, ttl_s: int, respond: Respond, finish: Finish
    ) -> None:
        super().__init__(state, respond, finish)
        self.lease_id = lease_id
        self.ttl_s = ttl_s
        self.cost_bytes = LEASE_COST_BYTES

    def evaluate(self, draft: Draft) -> bytes:
        """Raises LeaseNotFound, LeaseExists, LeaseTTLTooLarge."""
        self.state.lessor.check_grant(self.lease_id, self.ttl_s)
        if draft.has_lease(self.lease_id):
            raise LeaseExists
        draft.changes.append(records.lease_grant(self.lease_id, effective_ttl_s(self.ttl_s)))
        return self.respond(draft.view.read_revision)


class LeaseRevoke(Command):
    """Revoke a lease and delete its keys in one revision (R13)."""

    drains = True
    urgent = True

    def __init__(self, state: State, lease_id: int, respond: Respond, finish: Finish) -> None:
        super().__init__(state, respond, finish)
        self.lease_id = lease_id

    def evaluate_steps(self, draft: Draft) -> Steps[bytes]:
        """Raises LeaseNotFound."""
        lease = self.state.lessor.get(self.lease_id)
        if lease is None:
            raise LeaseNotFound
        if not self.still_wanted(draft):
            return self.respond(draft.view.read_revision)
        draft.view.one_pass = True
        deleted = yield from delete_lease_keys_steps(draft.view, lease.keys.parts())
        revision = draft.view.revision if deleted else 0
        draft.stand_in = records.lease_revoke(self.lease_id, revision)
        return self.respond(draft.view.read_revision)

    def still_wanted(self, draft: Draft) -> bool:
        """Whether the reason to revoke still holds when its turn comes."""
        return True


class LeaseExpiry(LeaseRevoke):
    """Revoke a lease whose time is up, unless it was renewed meanwhile."""

    def still_wanted(self, draft: Draft) -> bool:
        """Time is still up."""
        lease = self.state.lessor.get(self.lease_id)
        return lease is not None and lease.expires_at <= draft.view.now


class Compaction(Command):
    """Compact logically; the physical part follows in the background."""

    drains = True
    urgent = True

    def __init__(self, state: State, revision: int, respond: Respond, finish: Finish) -> None:
        super().__init__(state, respond, finish)
        self.revision = revision

    def evaluate(self, draft: Draft) -> bytes:
        """Raises Compacted, FutureRevision."""
        self.state.store.check_compaction(self.revision)
        draft.changes.append(records.compaction(self.revision))
        return self.respond(draft.view.read_revision)


class AlarmChange(Command):
    """Raise or clear an alarm. Changing nothing is not an error."""

    drains = True  # alarms in flight are in no overlay
    urgent = True
    mends = True

    def __init__(
        self,
        state: State,
        member_id: int,
        kind: int,
        active: bool,
        respond: Respond,
        finish: Finish,
    ) -> None:
        super().__init__(state, respond, finish)
        self.member_id = member_id
        self.kind = kind
        self.active = active

    def evaluate(self, draft: Draft) -> bytes:
        """Always succeeds."""
        if ((self.member_id, self.kind) in self.state.alarms) != self.active:
            draft.changes.append(records.alarm(self.member_id, self.kind, self.active))
        return self.respond(draft.view.read_revision)
