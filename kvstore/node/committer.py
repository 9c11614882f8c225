"""Committing: what the journal has taken becomes state, visible whole and in order (R2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kvstore.mvcc.store import SLICE, Steps
from kvstore.mvcc.version import Version
from kvstore.node.proposer import Batch, Item, Proposer, change_of
from kvstore.node.state import State
from kvstore.pb import record_pb2
from kvstore.watch.hub import Hub


class Committer:
    """Applies batches in journal order."""

    def __init__(
        self, state: State, hub: Hub, proposer: Proposer, now: Callable[[], float]
    ) -> None:
        self._state = state
        self._hub = hub
        self._proposer = proposer
        self._now = now
        self.committed = 0
        """Write requests that are known to be durable."""
        self.applied = 0
        """Those whose effects are visible: the same, but while a batch is being applied."""
        self.on_compact: Callable[[], None] = lambda: None
        self.on_publish: Callable[[int], None] = lambda requests: None
        """Told when a batch has become visible, and how many requests it answers."""

    def commit_steps(self, batch: Batch) -> Steps[None]:
        """Apply a batch, then publish it whole, then answer, then wake watchers (I2).

        A huge one is linked in slices above the watermark, where nobody sees it (R13). From the
        step that moves the watermark on, its watchers are known to have something to come (I4),
        so answers and wake-ups may take as many steps as they need.
        """
        state = self._state
        # Those that time out meanwhile leave `replies`.
        requests = len(batch.replies)
        self.committed += requests
        for part in batch.bulk:
            self._link(part)
            yield
        # To link a version is twice the work of reading one.
        size = SLICE // 2
        for at in range(0, len(batch.items), size):
            self._link(batch.items[at : at + size])
            if at + size < len(batch.items):
                yield
        if self._hub.is_matching:
            yield from self._hub.match_steps()
        state.store.publish(batch.revision)
        woken = self._hub.publish()
        self.applied += requests
        self.on_publish(requests)
        yield from self._proposer.committed_steps(batch)
        yield from self._hub.wake_steps(woken)

    def _link(self, items: Sequence[Item]) -> None:
        state, proposer = self._state, self._proposer
        linked: list[Version] = []
        for item in items:
            shard, version, node = item
            if shard is None:
                self._change(change_of(item))
            else:
                state.link(shard, version, node)
                linked.append(version)
                proposer.settled(version)
        self._hub.note(linked)

    def _change(self, change: record_pb2.Record) -> None:
        self._state.change(change, self._now())
        if change.HasField("lease_grant"):
            self._proposer.granted(change.lease_grant.id)
        elif change.HasField("compact"):
            self.on_compact()
