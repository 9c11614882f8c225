"""What one write request sees and makes, before any of it is journaled.

A view shows committed state, plus the overlay (the newest version of every key that is in
flight), plus what the request itself has done so far. Effects are collected here and nowhere
else: a request that fails half way leaves nothing behind (R4).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from heapq import merge

from kvstore.mvcc.buckets import BucketedDict
from kvstore.mvcc.index import Node
from kvstore.mvcc.reader import Reader
from kvstore.mvcc.shard import VERSION_OVERHEAD_BYTES, Shard
from kvstore.mvcc.store import SLICE, Sink, Steps, Store
from kvstore.mvcc.version import Version, delete_version, put_version

Overlay = Mapping[bytes, Version]


Effect = tuple[Shard, Version, Node | None]
"""Where, what, and the key's node if it was seen there: then it is there when this is linked. For
the key lives, and nobody deletes it in between without having been seen in the overlay."""


class WriteView(Reader):
    """The state that one write request works on.

    `revision` is the one that its effects will carry; `revision - 1` is the state before
    it. Ranges may be read only while nothing is in flight (R4); only they look at `now`.
    """

    __slots__ = (
        "_key",
        "_newest",
        "_node",
        "_own",
        "_shard",
        "budgeted",
        "effects",
        "nbytes",
        "now",
        "one_pass",
        "overlay",
        "revision",
        "sealed",
        "store",
    )

    def __init__(
        self, store: Store, overlay: Overlay, revision: int, now: float, *, one_pass: bool = False
    ) -> None:
        self.store = store
        self.overlay = overlay
        self.revision = revision
        self.now = now
        self.one_pass = one_pass
        """The request names each key once and reads nothing back: its effects need no map."""
        self.effects: list[Effect] = []
        """The newest effects, behind those in `sealed`."""
        self.nbytes = 0
        """Of all effects, as they are journaled."""
        self.sealed: list[list[Effect]] = []
        """Full parts of effects, before `effects`."""
        self.budgeted: dict[Shard, int] = {}
        """Bytes that are put into shards with a budget."""
        self._own: BucketedDict[bytes, Version] | None = None
        # The key looked up last, its shard, its newest version and its node: most requests name
        # one key, and name it several times.
        self._key = b""
        self._shard: Shard = store.shards[0]
        self._newest: Version | None = None
        self._node: Node | None = None

    def begin(self, revision: int, now: float) -> None:
        """Serve another request, on the same store and overlay, that drains nothing."""
        self.revision = revision
        self.now = now
        if self.effects:
            self.effects = []
            self.nbytes = 0
            if self.budgeted:
                self.budgeted = {}
            self._own = None
            if self.sealed:
                self.sealed = []
        self._key = b""
        self._newest = self._node = None

    @property
    def read_revision(self) -> int:
        """The revision that a read of this request is answered at."""
        return self.revision if self.effects else self.revision - 1

    @property
    def effect_parts(self) -> list[list[Effect]]:
        """All effects, in order, in parts of at most SLICE (R11)."""
        return [*self.sealed, self.effects]

    # -- single keys -----------------------------------------------------------------------

    def newest(self, key: bytes) -> Version | None:
        """The newest version of a key, a deletion included."""
        if key != self._key:
            self._look_up(key)
        return self._newest

    def _look_up(self, key: bytes) -> None:
        store = self.store
        shard = store.shards[store.table.shard_of(key)]
        version: Version | None = None
        node: Node | None = None
        if self.effects and not self.one_pass:
            version = self._own_newest(key)
        if version is None:
            version = self.overlay.get(key)
        if version is None:
            node = shard.index.node(key)
            if node is not None:
                version = node.head
                if not version.number:
                    node = None
        self._key = key
        self._shard = shard
        self._newest = version
        self._node = node

    def live(self, key: bytes) -> Version | None:
        """The newest version of a key, None if it is deleted or never was."""
        version = self.newest(key)
        return version if version is not None and version.number else None

    def put(self, key: bytes, value: bytes, lease: int) -> None:
        """Put a key."""
        previous = self.newest(key)
        sub = self._next_sub()
        version = put_version(key, value, lease, self.revision, sub, previous)
        shard = self._shard
        if shard.budget_bytes:
            size = len(version.framed) + VERSION_OVERHEAD_BYTES
            self.budgeted[shard] = self.budgeted.get(shard, 0) + size
        self._record(shard, version, self._node)

    def delete(self, key: bytes) -> Version | None:
        """Delete a key. Returns what was deleted, None if there was nothing."""
        previous = self.newest(key)
        if previous is None or not previous.number:
            return None
        version = delete_version(self.revision, self._next_sub(), previous)
        self._record(self._shard, version, self._node)
        return previous

    def _next_sub(self) -> int:
        return len(self.sealed) * SLICE + len(self.effects)

    def _record(self, shard: Shard, version: Version, node: Node | None) -> None:
        """Note an effect. The first needs no map: most requests write one key."""
        effects = self.effects
        if len(effects) == SLICE:
            self.sealed.append(effects)
            effects = self.effects = []
        effects.append((shard, version, node))
        self.nbytes += len(version.framed)
        if version.key == self._key:
            self._newest = version
            self._node = None
        if self.one_pass:
            return
        if self._own is not None:
            self._own[version.key] = version
        elif len(effects) > 1:
            self._own = BucketedDict(bits=6)
            for _, earlier, _ in effects:
                self._own[earlier.key] = earlier

    def _own_newest(self, key: bytes) -> Version | None:
        if self._own is not None:
            return self._own.get(key)
        first = self.effects[0][1]
        return first if first.key == key else None

    # -- ranges ----------------------------------------------------------------------------

    def range_steps(
        self, low: bytes, high: bytes | None, revision: int, limit: int, sink: Sink
    ) -> Steps[int]:
        """Hand live versions in [low, high) to `sink`, in key order; `limit` 0: all.

        `revision` 0 or less reads what the request has made so far; any other has been
        checked against the state before it. Returns how many there were.
        """
        store, now, before = self.store, self.now, self.revision - 1
        if 0 < revision <= before:
            return (yield from store.range_steps(low, high, revision, limit, now, sink))
        if not self.effects:
            return (yield from store.range_steps(low, high, before, limit, now, sink))
        committed: list[Version] = []
        yield from store.range_steps(low, high, before, 0, now, committed.extend)
        own = yield from self._own_in(low, high)
        count = 0
        part: list[Version] = []
        for at, version in enumerate(_newest_of_each(merge(committed, own, key=_by_key)), 1):
            if version is not None:
                part.append(version)
            enough = limit and count + len(part) == limit
            if enough or at % SLICE == 0:
                if part:
                    sink(part)
                    count += len(part)
                    part = []
                if enough:
                    return count
                yield
        if part:
            sink(part)
        return count + len(part)

    def count_steps(self, low: bytes, high: bytes | None, revision: int) -> Steps[int]:
        """How many keys in [low, high) live; `revision` as in `range_steps`."""
        before = self.revision - 1
        if 0 < revision <= before:
            return (yield from self.store.count_steps(low, high, revision, self.now))
        count = yield from self.store.count_steps(low, high, before, self.now)
        if self.effects:
            for version in (yield from self._own_in(low, high)):
                base = self._base(version)
                count += (version.number != 0) - (base is not None and base.number != 0)
        return count

    def delete_range_steps(
        self, low: bytes, high: bytes | None, sink: Sink | None = None
    ) -> Steps[int]:
        """Delete the live keys in [low, high), in key order. Returns how many there were.

        `sink` gets what was deleted.
        """

        def delete(found: list[Version]) -> None:
            for previous in found:
                version = delete_version(self.revision, self._next_sub(), previous)
                self._record(self.store.shard_of(previous.key), version, None)
            if sink is not None:
                sink(found)

        return (yield from self.range_steps(low, high, 0, 0, delete))

    def _base(self, version: Version) -> Version | None:
        """What the key had before this request."""
        base = version.previous
        while base is not None and base.mod >= self.revision:
            base = base.previous
        return base

    def _own_in(self, low: bytes, high: bytes | None) -> Steps[list[Version]]:
        """The newest own version of each key in [low, high), deletions included, by key."""
        newest: list[Version] = []
        for part in self.effect_parts:
            for _, version, _ in part:
                inside = low <= version.key and (high is None or version.key < high)
                if inside and self._own_newest(version.key) is version:
                    newest.append(version)
            if len(part) == SLICE:
                yield
        return (yield from sorted_steps(newest))


def _newest_of_each(versions: Iterator[Version]) -> Iterator[Version | None]:
    """Of versions in key order, the last of each key; None in place of all others.

    So that whoever counts what it takes knows how much was looked at.
    """
    last: Version | None = None
    for version in versions:
        yield last if last is not None and last.key != version.key and last.number else None
        last = version
    yield last if last is not None and last.number else None


def sorted_steps(versions: list[Version]) -> Steps[list[Version]]:
    """Sort by key in steps that are all short."""
    if len(versions) <= SLICE:
        return sorted(versions, key=_by_key)
    runs: list[Iterator[Version]] = []
    for at in range(0, len(versions), SLICE):
        runs.append(iter(sorted(versions[at : at + SLICE], key=_by_key)))
        yield
    found: list[Version] = []
    for version in merge(*runs, key=_by_key):
        found.append(version)
        if len(found) % SLICE == 0:
            yield
    return found


def _by_key(version: Version) -> bytes:
    return version.key
