"""The history of one shard: every kept version, in the order it was written.

The order is (revision, position in the transaction). Watches, hashes and snapshots read it;
compaction thins it out. It is a list of short lists, so that nothing ever moves many
entries in one step (R11). Readers seek by (revision, position) each time they go on and so
never hold a place across a change.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from operator import attrgetter

from kvstore.mvcc.version import Version

CHUNK = 512
_order = attrgetter("mod", "sub")


class History:
    """Versions in write order; compacted ones (`framed` empty) stay until their chunk is redone."""

    __slots__ = ("_chunks", "_dead", "_firsts", "_size")

    def __init__(self) -> None:
        self._chunks: list[list[Version]] = []
        self._firsts: list[tuple[int, int]] = []
        self._dead: list[int] = []
        self._size = 0

    def __len__(self) -> int:
        """Versions that are not compacted."""
        return self._size

    def append(self, version: Version) -> None:
        """Add the newest version. O(1), amortised over a chunk."""
        chunks = self._chunks
        if not chunks or len(chunks[-1]) >= CHUNK:
            chunks.append([])
            self._firsts.append((version.mod, version.sub))
            self._dead.append(0)
            last = len(chunks) - 2
            if last >= 0 and self._dead[last] * 2 >= len(chunks[last]):
                # It was spared while it was being filled, and nothing else may die in it.
                self._redo(last)
        chunks[-1].append(version)
        self._size += 1

    def read(self, revision: int, sub: int, size: int) -> list[Version]:
        """Up to `size` versions from (revision, sub) on, compacted ones left out.

        Fewer than `size` means that no more follow.
        """
        start = (revision, sub)
        at = max(0, bisect_right(self._firsts, start) - 1)
        found: list[Version] = []
        chunks = self._chunks
        first = True
        while at < len(chunks) and len(found) < size:
            chunk = chunks[at]
            if first:
                chunk = chunk[bisect_left(chunk, start, key=_order) :]
                first = False
            if self._dead[at]:
                found.extend([v for v in chunk if v.framed])
            else:
                found.extend(chunk)
            at += 1
        return found[:size] if len(found) > size else found

    def last(self) -> tuple[int, int]:
        """(revision, position) of the newest version; (0, 0) if there is none."""
        return _order(self._chunks[-1][-1]) if self._chunks else (0, 0)

    def after(self, revision: int) -> int:
        """About how many versions are newer than `revision` (within one chunk). O(log n)."""
        at = bisect_right(self._firsts, (revision + 1, -1))
        return (len(self._chunks) - at + 1) * CHUNK if self._chunks else 0

    def bury(self, version: Version) -> None:
        """Compact one version away: its bytes go now, its place soon."""
        at = max(0, bisect_right(self._firsts, (version.mod, version.sub)) - 1)
        version.framed = b""
        version.previous = None
        self._size -= 1
        self._dead[at] += 1
        if self._dead[at] * 2 >= len(self._chunks[at]) and at + 1 < len(self._chunks):
            self._redo(at)

    def _redo(self, at: int) -> None:
        """Rewrite a chunk without its dead, and join it to a short neighbour before it."""
        kept = [v for v in self._chunks[at] if v.framed]
        if at and len(self._chunks[at - 1]) + len(kept) <= CHUNK:
            self._chunks[at - 1].extend(kept)
            kept = []
        if kept:
            self._chunks[at] = kept
            self._firsts[at] = _order(kept[0])
            self._dead[at] = 0
        else:
            del self._chunks[at], self._firsts[at], self._dead[at]
