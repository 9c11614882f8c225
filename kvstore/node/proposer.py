"""Proposing: from requests to effects, and from effects to batches for the journal.

Single-key requests are evaluated at once, on committed state plus the overlay of what is in
flight. All others wait until nothing is (R4). What was evaluated with sight of writes in flight is
answered behind the newest of them (R3), whether it changed anything or failed.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from journal.contract import Journal, JournalError
from kvstore.mvcc.errors import StoreError
from kvstore.mvcc.index import Node
from kvstore.mvcc.shard import Shard
from kvstore.mvcc.store import Steps
from kvstore.mvcc.version import Version
from kvstore.mvcc.view import WriteView
from kvstore.node import records
from kvstore.node.errors import (
    CorruptAlarm,
    NodeError,
    NoSpace,
    RequestTimeout,
    RequestTooLarge,
    Stopped,
    TooManyRequests,
)
from kvstore.node.operation import Draft, Operation
from kvstore.node.slicer import Slicer
from kvstore.node.state import State
from kvstore.pb import record_pb2, rpc_pb2

log = logging.getLogger(__name__)

REQUEST_TIMEOUT_S = 7.0
"""etcd's server-side limit: 5 s plus two election timeouts."""

BYTES_IN_FLIGHT_MAX = 64 << 20
"""Bound on requests that wait, records that are in flight, and answers that wait for them (I8)."""

OPERATIONS_WAITING_MAX = 50_000
ROOM_BYTES = 4 << 20
"""Journal space that ends a disk's being full: enough that it does not come and go."""

ANSWERS = 500
"""Answers that are given in one step (I9)."""

RESERVED_BYTES = 64 << 10
"""Journal space that is asked for at once, for the writes to come. Near the end of a disk's space
each asks for its own."""

Item = tuple[Shard | None, Any, Node | None]
"""(shard, Version, its key's node if that is known), or (None, Record, None) for a change without
a version."""


class Batch:
    """What goes to the journal in one append, and whom to tell.

    `items` are its effects in order; those of a huge operation stand before them in `bulk`, in
    parts. `budgeted`: bytes that it puts into shards with a budget.
    """

    __slots__ = (
        "budgeted",
        "bulk",
        "items",
        "nbytes",
        "parts",
        "releases",
        "replies",
        "reply_bytes",
        "revision",
    )

    def __init__(self) -> None:
        self.budgeted: dict[Shard, int] = {}
        self.bulk: Sequence[Sequence[Item]] = ()
        self.items: list[Item] = []
        self.parts: list[bytes] = []
        self.nbytes = 0
        self.replies: list[Operation] = []
        self.reply_bytes = 0
        self.revision = 0
        self.releases = False


class Proposer:
    """The write side of one node, up to the journal's door."""

    def __init__(
        self,
        state: State,
        journal: Journal,
        slicer: Slicer,
        now: Callable[[], float],
        wake: Callable[[], None],
    ) -> None:
        self._state = state
        self._journal = journal
        self._slicer = slicer
        self._now = now
        self._wake = wake
        self._overlay: dict[bytes, Version] = {}
        self._granted: set[int] = set()
        self._open = Batch()
        self._flying: deque[Batch] = deque()
        self._queue: deque[Operation] = deque()
        self._held = False
        self._full = False
        self._stopped: NodeError | None = None
        self._draining = False
        self._proposing = False
        self._batch_bytes_max = journal.max_batch_bytes
        self._bytes = 0
        self._reply_bytes = 0
        self._queued_bytes = 0
        self._reserved = 0
        """What is left of the journal's space that was asked for ahead, for the open batch."""
        self._state_bytes = state.size_bytes
        # For all that do not drain: they are evaluated one by one, in one step each.
        self._draft = self._new_draft()
        self.quota_bytes = -1
        self.disk_is_full = False
        self.full_shards: dict[Shard, int] = {}
        """Shards whose budget refused something, and how many bytes that was."""
        self.on_no_space: Callable[[], None] = lambda: None
        self.on_failure: Callable[[BaseException], None] = lambda error: None
        self.failed = 0
        self.wake_at = 1
        """Requests in the open batch at which `wake` is called."""

    # -- intake ----------------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        """Nothing is waiting, being evaluated, or in flight."""
        return not (self._queue or self._held or self._pending)

    @property
    def waiting(self) -> int:
        """Operations that are not committed yet."""
        return len(self._queue) + self.under_way

    @property
    def under_way(self) -> int:
        """Operations whose answer waits for the journal."""
        return len(self._open.replies) + sum(len(batch.replies) for batch in self._flying)

    @property
    def waiting_bytes(self) -> int:
        """Of requests that wait, and of records that are not committed yet."""
        return self._queued_bytes + self._bytes

    @property
    def _pending(self) -> bool:
        return bool(self._open.items or self._flying)

    def submit(self, operation: Operation) -> None:
        """Take an operation in; it is answered now or later, once."""
        operation.submitted_at = self._now()
        if self._stopped is not None:
            operation.fail(self._stopped)
        elif self._queue or self._held or self._full or (operation.drains and self._pending):
            if (
                len(self._queue) >= OPERATIONS_WAITING_MAX
                or self._bytes + self._reply_bytes + self._queued_bytes > BYTES_IN_FLIGHT_MAX
            ):
                operation.fail(TooManyRequests())
                return
            self._queued_bytes += operation.nbytes
            self._queue.append(operation)
            self._wake()
        else:
            self._propose(operation)

    def _next(self) -> Operation:
        operation = self._queue.popleft()
        self._queued_bytes -= operation.nbytes
        return operation

    def _propose(self, operation: Operation) -> None:
        if operation.cancelled:
            return
        if self._bytes + self._reply_bytes > BYTES_IN_FLIGHT_MAX:
            # At once: behind the writes in flight it would add to what is too much already.
            operation.fail(TooManyRequests())
            return
        refusal = self._refusal(operation)
        if refusal is not None:
            self._answer_behind(operation, refusal)
            return
        batch = self._open
        base = batch.revision or (self._flying[-1].revision if self._flying else 0)
        revision = (base or self._state.store.revision) + 1
        if operation.drains:
            self._drain(operation, self._new_draft(revision, self._now()))
            return
        draft = self._draft
        view = draft.view
        draft.begin(revision, operation.submitted_at)
        try:
            response = operation.evaluate(draft)
        except (StoreError, NodeError) as error:
            self._answer_behind(operation, error)
            return
        except Exception as error:
            # Nothing of it stands (R4): one request is lost, not what waits behind it.
            log.exception("a request could not be evaluated")
            self._answer_behind(operation, error)
            return
        if not view.effects and not draft.changes:
            self._answer_behind(operation, response)
            return
        parts = _parts(draft)
        nbytes = 0
        for part in parts:
            nbytes += len(part)
        if batch.parts and batch.nbytes + nbytes > self._batch_bytes_max:
            # Evaluated anew when the open batch has gone.
            self._full = True
            self._queued_bytes += operation.nbytes
            self._queue.appendleft(operation)
            return
        if self._accept(operation, draft, parts, nbytes, response):
            overlay = self._overlay
            for effects in view.sealed:
                for _, version, _ in effects:
                    overlay[version.key] = version
            for _, version, _ in view.effects:
                overlay[version.key] = version

    def _new_draft(self, revision: int = 0, now: float = 0.0) -> Draft:
        state = self._state
        view = WriteView(state.store, self._overlay, revision, now)
        return Draft(view, state.lessor, self._granted)

    def _refusal(self, operation: Operation) -> NodeError | None:
        state = self._state
        if state.alarms and not operation.mends and state.has_alarm(rpc_pb2.CORRUPT):
            return CorruptAlarm()
        if operation.cost_bytes:
            if self.disk_is_full or (state.alarms and state.has_alarm(rpc_pb2.NOSPACE)):
                return NoSpace()
            size = self._state_bytes + self._bytes + operation.cost_bytes
            if 0 <= self.quota_bytes < size:
                self.on_no_space()
                return NoSpace()
        return None

    def _drain(self, operation: Operation, draft: Draft) -> None:
        self._held = True
        self._slicer.start(
            self._drained_steps(operation, draft),
            lambda result, error: self._drained(operation, draft, result, error),
        )

    def _drained_steps(
        self, operation: Operation, draft: Draft
    ) -> Steps[tuple[bytes, list[bytes]]]:
        response = yield from operation.evaluate_steps(draft)
        effects = draft.view.effect_parts
        if draft.stand_in is not None or len(effects) == 1:
            return response, _parts(draft)
        joined: list[bytes] = []
        for part in effects:
            joined.append(b"".join([version.framed for _, version, _ in part]))
            yield
        head = records.transaction_head(draft.view.revision, sum(map(len, joined)))
        return response, [*map(records.record_part, draft.changes), head, *joined]

    def _drained(
        self,
        operation: Operation,
        draft: Draft,
        result: tuple[bytes, list[bytes]] | None,
        error: BaseException | None,
    ) -> None:
        """A drained operation is evaluated."""
        self._held = False
        if self._stopped is not None:
            operation.fail(self._stopped)
            return
        if result is None:
            assert isinstance(error, Exception)
            if not isinstance(error, StoreError | NodeError):
                log.error("a request could not be evaluated", exc_info=error)
            fail(operation, error)
        else:
            response, parts = result
            if not draft.view.effects and not draft.changes and draft.stand_in is None:
                operation.succeed(response)
            elif self._accept(operation, draft, parts, sum(map(len, parts)), response):
                self._held = True
                self._open.releases = True
        self._go_on()

    def _accept(
        self,
        operation: Operation,
        draft: Draft,
        parts: Sequence[bytes],
        nbytes: int,
        response: bytes,
    ) -> bool:
        """Put an operation's effects into the open batch. From here on it is irrevocable (R12)."""
        if nbytes > self._batch_bytes_max:
            self._answer_behind(operation, RequestTooLarge())
            return False
        try:
            room = self._has_room(operation, draft, nbytes)
        except JournalError as failure:
            operation.fail(Stopped())
            self._journal_failed(failure)
            return False
        if not room:
            self._answer_behind(operation, NoSpace())
            return False
        batch = self._open
        if not batch.parts:
            batch.revision = draft.view.revision - 1
        for change in draft.changes:
            batch.items.append((None, change, None))
            if change.HasField("lease_grant"):
                self._granted.add(change.lease_grant.id)
        effects = draft.view.effects
        if effects:
            sealed = draft.view.sealed
            if sealed:
                if batch.items:
                    # A transaction of very many single keys need not be alone in its batch.
                    for part in sealed:
                        batch.items.extend(part)
                else:
                    batch.bulk = sealed
            for effect in effects:
                batch.items.append(effect)
            batch.revision = draft.view.revision
        if draft.stand_in is not None:
            batch.items.append((None, draft.stand_in, None))
        for framed in parts:
            batch.parts.append(framed)
        for shard, size in draft.view.budgeted.items():
            batch.budgeted[shard] = batch.budgeted.get(shard, 0) + size
        batch.nbytes += nbytes
        self._bytes += nbytes
        operation.response = response
        self._reply_with(batch, operation)
        return True

    def _journal_failed(self, failure: JournalError) -> None:
        """The journal is out of service, found out before the next append was (I10)."""
        self.stop(Stopped())
        self.on_failure(failure)

    def _has_room(self, operation: Operation, draft: Draft, nbytes: int) -> bool:
        if draft.view.budgeted and not self._is_within_budgets(draft.view.budgeted):
            return False
        if nbytes <= self._reserved:
            self._reserved -= nbytes
            return True
        if nbytes < RESERVED_BYTES and self._journal.reserve(RESERVED_BYTES):
            self._reserved += RESERVED_BYTES - nbytes
            return True
        if self._journal.reserve(nbytes, urgent=operation.urgent):
            return True
        self.disk_is_full = True
        return False

    def _is_within_budgets(self, budgeted: dict[Shard, int]) -> bool:
        """Whether shards have room for what an operation puts into them.

        Beside all that is in flight; what a batch has applied of itself while it is being committed
        counts twice until it is.
        """
        for shard, added in budgeted.items():
            size = shard.size_bytes + added
            for batch in (*self._flying, self._open):
                size += batch.budgeted.get(shard, 0)
            if size > shard.budget_bytes:
                self._note_full(shard, added)
                return False
        return True

    def _note_full(self, shard: Shard, added: int) -> None:
        if added > shard.budget_bytes:
            return  # There never is room for that, which says nothing of the shard.
        if shard not in self.full_shards:
            log.warning(
                "a shard's budget is used up: puts to it are refused",
                extra={"fields": {"shard": shard.name, "budget": shard.budget_bytes}},
            )
        self.full_shards[shard] = added

    def look_for_room(self) -> None:
        """Find out whether what was full has room again; a disk for more than one write."""
        for shard, added in list(self.full_shards.items()):
            if shard.size_bytes + added <= shard.budget_bytes:
                log.info("a shard has room again", extra={"fields": {"shard": shard.name}})
                del self.full_shards[shard]
        if self.disk_is_full and self._stopped is None:
            try:
                self.disk_is_full = not self._journal.reserve(ROOM_BYTES)
            except JournalError as failure:
                self._journal_failed(failure)

    def _answer_behind(self, operation: Operation, outcome: bytes | Exception) -> None:
        """Answer when everything that the operation saw is committed (R3)."""
        if isinstance(outcome, bytes):
            operation.response = outcome
        else:
            operation.error = outcome
        if self._open.items:
            self._reply_with(self._open, operation)
        elif self._flying:
            self._reply_with(self._flying[-1], operation)
        else:
            answer(operation)

    def _reply_with(self, batch: Batch, operation: Operation) -> None:
        weight = _weight(operation)
        batch.reply_bytes += weight
        self._reply_bytes += weight
        replies = batch.replies
        replies.append(operation)
        if len(replies) == self.wake_at:
            self._wake()

    # -- to the journal and back -----------------------------------------------------------

    def is_short_of(self, wanted: int) -> bool:
        """Whether the open batch has some requests, but fewer, and nobody waits for it to go."""
        count = len(self._open.replies)
        return 0 < count < wanted and not (self._queue or self._held or self._full)

    def is_worth_another(self, enough: int) -> bool:
        """Whether the open batch should go while others are under way."""
        return len(self._open.replies) >= enough or bool(self._open.items and self._full)

    def take(self) -> Batch | None:
        """The next batch for the journal; None if there is none."""
        batch = self._open
        if not batch.items:
            return None
        self._flying.append(batch)
        self._open = Batch()
        # The append that follows takes it.
        self._reserved = 0
        if self._full:
            self._full = False
            # Not before that append has begun: it takes all space that the journal has set aside.
            self._go_on_later()
        return batch

    def settled(self, version: Version) -> None:
        """A version is applied: it leaves the overlay unless a newer one took its place."""
        if self._overlay.get(version.key) is version:
            del self._overlay[version.key]

    def granted(self, lease_id: int) -> None:
        """A lease grant is applied."""
        self._granted.discard(lease_id)

    def committed_steps(self, batch: Batch) -> Steps[None]:
        """A batch is applied and visible: answer, and let waiting operations go on."""
        assert self._flying[0] is batch
        self._flying.popleft()
        self._bytes -= batch.nbytes
        self._reply_bytes -= batch.reply_bytes
        self._state_bytes = self._state.size_bytes
        if batch.releases:
            self._held = False
        replies = batch.replies
        replies.reverse()
        while True:
            for _ in range(min(len(replies), ANSWERS)):
                answer(replies.pop())
            if not replies:
                break
            yield
        self._go_on()

    def refused(self, error: Exception) -> None:
        """The journal refused: the whole overlay goes, and with it all that saw it (R5)."""
        batches = [*self._flying, self._open]
        self._flying.clear()
        self._open = Batch()
        self._overlay.clear()
        self._granted.clear()
        self._bytes = 0
        self._reply_bytes = 0
        self._full = False
        if any(batch.releases for batch in batches):
            self._held = False
        for batch in batches:
            self.failed += len(batch.replies)
            for operation in batch.replies:
                fail(operation, error)
        self._go_on()

    def _go_on(self) -> None:
        """Propose what was waiting, in order; a long queue in slices."""
        if not self._proposing and self._propose_some():
            self._go_on_later()

    def _go_on_later(self) -> None:
        if not self._draining:
            self._draining = True
            self._slicer.start(self._queue_steps())

    def _queue_steps(self) -> Steps[None]:
        yield
        while self._propose_some():
            yield
        self._draining = False

    def _propose_some(self) -> bool:
        """Propose up to a slice of the queue. True if there is more that could go on."""
        self._proposing = True
        try:
            for _ in range(64):
                if self._blocked():
                    return False
                self._propose(self._next())
            return not self._blocked()
        finally:
            self._proposing = False

    def _blocked(self) -> bool:
        queue = self._queue
        return not queue or self._held or self._full or (queue[0].drains and self._pending)

    # -- time and the end ------------------------------------------------------------------

    def expire(self, now: float) -> None:
        """Answer what has taken too long. What is in flight stays in flight (R12)."""
        self._state_bytes = self._state.size_bytes
        while self._queue and now - self._queue[0].submitted_at > REQUEST_TIMEOUT_S:
            fail(self._next(), RequestTimeout())
        for batch in (*self._flying, self._open):
            if batch.replies and now - batch.replies[0].submitted_at > REQUEST_TIMEOUT_S:
                self._expire_replies(batch, now)
        self._go_on()

    def _expire_replies(self, batch: Batch, now: float) -> None:
        kept: list[Operation] = []
        late: list[Operation] = []
        for operation in batch.replies:
            if now - operation.submitted_at > REQUEST_TIMEOUT_S:
                late.append(operation)
                weight = _weight(operation)
                batch.reply_bytes -= weight
                self._reply_bytes -= weight
            else:
                kept.append(operation)
        batch.replies = kept
        for operation in late:
            fail(operation, RequestTimeout())

    def stop(self, why: NodeError) -> None:
        """Take nothing more in; operations that only wait are answered with `why`."""
        self._stopped = why
        # Who writes next finds out anew.
        self.disk_is_full = False
        self.full_shards.clear()
        queue, self._queue = self._queue, deque()
        self._queued_bytes = 0
        for operation in queue:
            fail(operation, why)

    def resume(self) -> None:
        """Take operations in (again): this node leads. Nothing is under way from before."""
        assert self.idle
        self._state_bytes = self._state.size_bytes
        self._reserved = 0
        self._stopped = None


def _parts(draft: Draft) -> list[bytes]:
    """A draft's records as parts to join: the stored bytes of its versions, reused."""
    parts: list[bytes] = []
    for change in draft.changes:
        parts.append(records.record_part(change))
    view = draft.view
    if draft.stand_in is not None:
        parts.append(records.record_part(draft.stand_in))
    elif view.effects:
        parts.append(records.transaction_head(view.revision, view.nbytes))
        for effects in view.sealed:
            for _, version, _ in effects:
                parts.append(version.framed)
        for _, version, _ in view.effects:
            parts.append(version.framed)
    return parts


def _weight(operation: Operation) -> int:
    """What a waiting answer holds in memory besides records: itself, or the refused request."""
    return len(operation.response) if operation.error is None else operation.nbytes


def answer(operation: Operation) -> None:
    """Tell an operation how it ended. One that cannot be told keeps nobody else waiting."""
    if operation.error is not None:
        fail(operation, operation.error)
        return
    try:
        operation.succeed(operation.response)
    except Exception:
        log.exception("an answer could not be given")


def fail(operation: Operation, error: Exception) -> None:
    """Tell an operation that it failed, as `answer` does."""
    try:
        operation.fail(error)
    except Exception:
        log.exception("an answer could not be given")


def change_of(item: Item) -> record_pb2.Record:
    """The record of such an item."""
    change: record_pb2.Record = item[1]
    return change
