"""Auto-compaction: which revision to compact at, and when. Sans-I/O.

As in etcd (server/etcdserver/api/v3compactor): `revision` keeps the last N revisions and looks
every five minutes; `periodic` keeps what was written within the retention, looking ten times
per retention, or per hour if that is longer.
"""

from __future__ import annotations

from collections import deque
from typing import Protocol

REVISION_INTERVAL_S = 300.0
PERIODIC_INTERVAL_MAX_S = 3600.0


class AutoCompaction(Protocol):
    """A policy."""

    def due(self, now: float, revision: int) -> int | None:
        """The revision to compact at now; None: nothing to do."""


class Never:
    """Auto-compaction is off."""

    def due(self, now: float, revision: int) -> int | None:
        """Nothing, ever."""
        return None


class ByRevision:
    """Keep the last `retention` revisions."""

    def __init__(self, retention: int, now: float) -> None:
        self._retention = retention
        self._next = now + REVISION_INTERVAL_S
        self._last = 0

    def due(self, now: float, revision: int) -> int | None:
        """See AutoCompaction."""
        if now < self._next:
            return None
        self._next = now + REVISION_INTERVAL_S
        target = revision - self._retention
        if target <= max(0, self._last):
            return None
        self._last = target
        return target


class Periodic:
    """Keep what is younger than `retention_s`."""

    def __init__(self, retention_s: float, now: float) -> None:
        self._retention_s = retention_s
        self._pace_s = min(retention_s, PERIODIC_INTERVAL_MAX_S) / 10
        self._samples: deque[tuple[float, int]] = deque()
        self._next_sample = now
        self._next = now + retention_s
        self._last = 0

    def due(self, now: float, revision: int) -> int | None:
        """See AutoCompaction."""
        if now >= self._next_sample:
            self._samples.append((now, revision))
            self._next_sample = now + self._pace_s
        if now < self._next:
            return None
        target = 0
        while self._samples and self._samples[0][0] <= now - self._retention_s:
            target = self._samples.popleft()[1]
        self._next = now + min(self._retention_s, PERIODIC_INTERVAL_MAX_S)
        if target <= self._last:
            return None
        self._last = target
        return target
