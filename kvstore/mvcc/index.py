"""The ordered key index of one shard.

Holds a node for every key that has a kept version, deleted keys included until compaction
drops them. Counting needs live keys only, so deleted ones stand in a second, usually
small, sorted list: live = all - deleted, and both are found by position, O(log n) (DESIGN §5).
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from operator import attrgetter

from sortedcontainers import SortedKeyList, SortedList

from kvstore.mvcc.buckets import BucketedDict
from kvstore.mvcc.version import Version


class Node:
    """A key and the newest of its versions."""

    __slots__ = ("head", "key")

    def __init__(self, key: bytes, head: Version) -> None:
        self.key = key
        self.head = head


class KeyIndex:
    """Keys in order, with lookups by key and counts by position."""

    __slots__ = ("_by_key", "_deleted", "_ordered")

    def __init__(self) -> None:
        self._by_key: BucketedDict[bytes, Node] = BucketedDict()
        self._ordered: SortedKeyList = SortedKeyList(key=attrgetter("key"))
        self._deleted: SortedList = SortedList()

    def __len__(self) -> int:
        """Keys that live now."""
        return len(self._ordered) - len(self._deleted)

    def get(self, key: bytes) -> Version | None:
        """The newest version of a key, a deletion included; None if there is none. O(1)."""
        node = self._by_key.get(key)
        return node.head if node is not None else None

    def node(self, key: bytes) -> Node | None:
        """The node of a key; None if there is none. O(1)."""
        return self._by_key.get(key)

    def link(self, version: Version, node: Node | None = None) -> Version | None:
        """Make `version` the newest of its key. Returns the one before, a deletion included.

        `node` is the key's, for who knows it. O(log n) for new or deleted keys, else O(1).
        """
        key = version.key
        if node is None:
            node = self._by_key.get(key)
        if node is None:
            node = Node(key, version)
            self._by_key[key] = node
            self._ordered.add(node)
            if not version.number:
                self._deleted.add(key)
            return None
        before = node.head
        node.head = version
        if not before.number:
            if version.number:
                self._deleted.remove(key)
        elif not version.number:
            self._deleted.add(key)
        return before

    def load(self, newest: Iterable[Version]) -> list[Version]:
        """Index the newest versions of many keys while nobody reads: sorts once.

        Returns those of keys that live.
        """
        nodes = [Node(version.key, version) for version in newest]
        for node in nodes:
            self._by_key[node.key] = node
        self._ordered.update(nodes)
        self._deleted.update(node.key for node in nodes if not node.head.number)
        return [node.head for node in nodes if node.head.number]

    def drop(self, version: Version) -> bool:
        """Forget the key of a deletion, if that is still its newest version. O(log n)."""
        node = self._by_key.get(version.key)
        if node is None or node.head is not version:
            return False
        self._by_key.pop(version.key)
        self._ordered.remove(node)
        self._deleted.remove(version.key)
        return True

    def slice(self, low: bytes, high: bytes | None, size: int) -> list[Node]:
        """The first `size` nodes with keys in [low, high), in order. O(log n + size)."""
        found = self._ordered.irange_key(low, high, (True, False))
        return list(islice(found, size))

    def live(self, low: bytes, high: bytes | None) -> int:
        """How many keys in [low, high) live now. O(log n)."""
        return _between(self._ordered, low, high) - _between_keys(self._deleted, low, high)

    def kept(self, low: bytes, high: bytes | None) -> int:
        """How many keys in [low, high) have a node, live or deleted. O(log n)."""
        return _between(self._ordered, low, high)


def _between(ordered: SortedKeyList, low: bytes, high: bytes | None) -> int:
    first = ordered.bisect_key_left(low)
    last = len(ordered) if high is None else ordered.bisect_key_left(high)
    return int(max(0, last - first))


def _between_keys(ordered: SortedList, low: bytes, high: bytes | None) -> int:
    if not ordered:
        return 0
    first = ordered.bisect_left(low)
    last = len(ordered) if high is None else ordered.bisect_left(high)
    return int(max(0, last - first))
