"""The multi-version store: shards under one revision sequence and one watermark.

State up to `revision`, the watermark, is visible; versions above it may already be linked
while a huge operation is applied in slices (R13), and no read sees them (R2). Reads that can
be long are generators: each `yield` is a place where the caller may let others run (I9), and
the answer is the generator's return value. Short ones finish without yielding.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import TypeVar

from kvstore.mvcc.errors import Compacted, FutureRevision
from kvstore.mvcc.pins import Pin, Pins
from kvstore.mvcc.shard import Shard
from kvstore.mvcc.version import Version, at_or_below
from partitioner.table import PartitionTable

T = TypeVar("T")
Steps = Generator[None, None, T]

Sink = Callable[[list[Version]], None]
"""Takes a part of a range."""

SLICE = 512
"""Index or history entries that one step may touch: well under a millisecond, mostly."""

COMPACT_SLICE = 128
"""The same where each entry leaves index and history."""


class Store:
    """All shards of one process.

    `compact_revision` is -1 until the first compaction, as in etcd.
    """

    def __init__(self, table: PartitionTable) -> None:
        self.table = table
        self.shards = [Shard(spec.name, spec.budget_bytes) for spec in table.shards]
        self.revision = 1
        self.compact_revision = -1
        self.compacted_through = 0
        self.pins = Pins()

    # -- sizes -----------------------------------------------------------------------------

    @property
    def size_bytes(self) -> int:
        """Memory of all kept versions."""
        return sum(shard.size_bytes for shard in self.shards)

    @property
    def live_size_bytes(self) -> int:
        """Memory that would remain if everything up to now were compacted."""
        return sum(shard.live_size_bytes for shard in self.shards)

    # -- writing ---------------------------------------------------------------------------

    def shard_of(self, key: bytes) -> Shard:
        """The shard that owns a key."""
        return self.shards[self.table.shard_of(key)]

    def publish(self, revision: int) -> None:
        """Move the watermark: everything linked up to `revision` becomes visible at once."""
        assert revision >= self.revision, "the watermark never falls (I3)"
        self.revision = revision

    def compact(self, revision: int) -> None:
        """Compact logically: from now on nothing below `revision` can be read (R8).

        Raises Compacted, FutureRevision.
        """
        self.check_compaction(revision)
        self.compact_revision = revision

    def check_compaction(self, revision: int) -> None:
        """Raise Compacted or FutureRevision if `compact` would."""
        if revision <= self.compact_revision:
            raise Compacted
        if revision > self.revision:
            raise FutureRevision

    def compaction_target(self, now: float) -> int:
        """How far `compact_steps` would go now; no further than `compacted_through`: nowhere."""
        return self.pins.floor(self.compact_revision, now)

    def compact_steps(self, now: float) -> Steps[int]:
        """Drop what no reader, watcher or hash can want any more. Returns versions dropped.

        Walks only the history between the last such walk and the target: each event there
        made its predecessor obsolete. The events *at* the compacted revision and their
        predecessors stay, because a watch may start there (R8).
        """
        dropped = 0
        target = self.compaction_target(now)
        if target <= self.compacted_through:
            return 0
        for shard in self.shards:
            revision, sub = self.compacted_through, 0
            while True:
                batch = shard.history.read(revision, sub, COMPACT_SLICE)
                if not batch or batch[0].mod >= target:
                    break
                for version in batch:
                    if version.mod >= target:
                        break
                    previous = version.previous
                    version.previous = None
                    if previous is not None and previous.framed:
                        shard.bury(previous)
                        dropped += 1
                    if not version.number:
                        shard.index.drop(version)
                        shard.bury(version)
                        dropped += 1
                revision, sub = batch[-1].mod, batch[-1].sub + 1
                yield
        self.compacted_through = target
        return dropped

    # -- reading ---------------------------------------------------------------------------

    def read_revision(self, revision: int) -> int:
        """The revision that a read asking for `revision` is answered at.

        0 or less means the current one. Raises FutureRevision, Compacted.
        """
        if revision <= 0:
            return self.revision
        if revision > self.revision:
            raise FutureRevision
        if revision < self.compact_revision:
            raise Compacted
        return revision

    def get(self, key: bytes, revision: int) -> Version | None:
        """The live version of one key at a checked revision. O(1) for the newest."""
        shard = self.shards[self.table.shard_of(key)]
        return at_or_below(shard.index.get(key), revision)

    def range_steps(
        self, low: bytes, high: bytes | None, revision: int, limit: int, now: float, sink: Sink
    ) -> Steps[int]:
        """Hand the live versions of the keys in [low, high) to `sink`, in key order, in parts.

        At a checked revision; `limit` 0: all of them. Returns how many there were. Pins the
        revision if it takes more than one step. Nothing here holds them all: a list of a
        million objects is a long step for the collector, whenever it looks (R11).
        """
        count = 0
        touched = 0
        pin: Pin | None = None
        try:
            for segment in self.table.segments(low, high):
                shard = self.shards[segment.shard]
                cursor = segment.low
                size = min(limit - count, SLICE) if limit else SLICE
                while True:
                    nodes = shard.index.slice(cursor, segment.high, size)
                    found: list[Version] = []
                    for node in nodes:
                        version = node.head
                        if version.mod > revision:
                            older = at_or_below(version, revision)
                            if older is not None:
                                found.append(older)
                        elif version.number:
                            found.append(version)
                    if limit:
                        del found[limit - count :]
                    if found:
                        sink(found)
                        count += len(found)
                    if limit and count >= limit:
                        return count
                    if len(nodes) < size:
                        break
                    # A small limit and many keys that do not live then: not one by one.
                    size = min(2 * size, SLICE)
                    cursor = nodes[-1].key + b"\x00"
                    touched += len(nodes)
                    if touched >= SLICE:
                        touched = 0
                        if pin is None:
                            pin = self.pins.take(revision, now)
                        yield
                        pin.check()
            return count
        finally:
            if pin is not None:
                self.pins.release(pin)

    def count_steps(self, low: bytes, high: bytes | None, revision: int, now: float) -> Steps[int]:
        """How many keys in [low, high) live at a checked revision.

        O(log n) for the newest revision. For an older one, what happened since is taken
        back from today's count, or the keys are counted, whichever is less work.
        """
        total = 0
        pin = self.pins.take(revision, now)
        try:
            for segment in self.table.segments(low, high):
                shard = self.shards[segment.shard]
                newer = shard.history.read(revision + 1, 0, 1)
                if not newer:
                    total += shard.index.live(segment.low, segment.high)
                elif shard.history.after(revision) <= shard.index.kept(segment.low, segment.high):
                    total += yield from self._count_back(
                        shard, segment.low, segment.high, revision, pin
                    )
                else:
                    total += yield from self._count_keys(
                        shard, segment.low, segment.high, revision, pin
                    )
            return total
        finally:
            self.pins.release(pin)

    @staticmethod
    def _count_back(
        shard: Shard, low: bytes, high: bytes | None, revision: int, pin: Pin
    ) -> Steps[int]:
        """Today's count, less creations and plus deletions after `revision`.

        Events linked while this runs are not in the count it starts from, so it stops at
        the newest event of its first moment.
        """
        count = shard.index.live(low, high)
        end = shard.history.last()
        at, sub = revision + 1, 0
        while True:
            batch = shard.history.read(at, sub, SLICE)
            for version in batch:
                if (version.mod, version.sub) > end:
                    return count
                if low <= version.key and (high is None or version.key < high):
                    if version.number == 1:
                        count -= 1
                    elif not version.number:
                        count += 1
            if not batch:
                return count
            at, sub = batch[-1].mod, batch[-1].sub + 1
            yield
            pin.check()

    @staticmethod
    def _count_keys(
        shard: Shard, low: bytes, high: bytes | None, revision: int, pin: Pin
    ) -> Steps[int]:
        count = 0
        while True:
            nodes = shard.index.slice(low, high, SLICE)
            count += sum(at_or_below(node.head, revision) is not None for node in nodes)
            if len(nodes) < SLICE:
                return count
            low = nodes[-1].key + b"\x00"
            yield
            pin.check()

    def events(
        self, shards: Sequence[Shard], revision: int, sub: int, through: int, size: int
    ) -> tuple[list[Version], bool]:
        """Versions of some shards from (revision, sub) to the end of revision `through`.

        In write order, merged over shards, about `size` of them; the second value says
        whether that was all. Each shard is read to `size`; what lies beyond the shortest
        full read is left for the next call, so nothing is skipped.
        """
        if len(shards) == 1:
            batch = shards[0].history.read(revision, sub, size)
            complete = len(batch) < size
            merged = batch
        else:
            merged = []
            bound: tuple[int, int] | None = None
            for shard in shards:
                batch = shard.history.read(revision, sub, size)
                merged.extend(batch)
                if len(batch) >= size:
                    last = (batch[-1].mod, batch[-1].sub)
                    bound = last if bound is None or last < bound else bound
            merged.sort(key=_write_order)
            complete = bound is None
            if bound is not None:
                while merged and _write_order(merged[-1]) > bound:
                    merged.pop()
        if merged and merged[-1].mod > through:
            complete = True
            while merged and merged[-1].mod > through:
                merged.pop()
        return merged, complete


def _write_order(version: Version) -> tuple[int, int]:
    return version.mod, version.sub
