"""Dictionaries that never stop the world.

A Python dict moves all its entries when it grows; with millions of them that holds the
thread for hundreds of milliseconds (R11). Spread over many small dicts, each move is short.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class BucketedDict(Generic[K, V]):
    """A mapping over `2**bits` dicts. Insertion order is not kept."""

    __slots__ = ("_buckets", "_mask", "_size")

    def __init__(self, bits: int = 10) -> None:
        self._buckets: list[dict[K, V]] = [{} for _ in range(1 << bits)]
        self._mask = (1 << bits) - 1
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __contains__(self, key: K) -> bool:
        return key in self._buckets[hash(key) & self._mask]

    def get(self, key: K) -> V | None:
        """The value, or None."""
        return self._buckets[hash(key) & self._mask].get(key)

    def __setitem__(self, key: K, value: V) -> None:
        bucket = self._buckets[hash(key) & self._mask]
        before = len(bucket)
        bucket[key] = value
        self._size += len(bucket) - before

    def pop(self, key: K) -> V | None:
        """Remove and return the value, or None."""
        bucket = self._buckets[hash(key) & self._mask]
        before = len(bucket)
        value = bucket.pop(key, None)
        self._size += len(bucket) - before
        return value

    def buckets(self) -> Iterator[dict[K, V]]:
        """The dicts, for walks in slices: one bucket is a slice."""
        return iter(self._buckets)

    def values(self) -> Iterator[V]:
        """All values; for small maps and for tests."""
        for bucket in self._buckets:
            yield from bucket.values()
