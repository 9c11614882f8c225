"""How many requests a batch should hold before it is appended (group commit).

Mostly one: what arrives while an append is under way makes the next batch, and none waits without
need. But where a request costs the loop more than a sync takes, hardly anything arrives during
one, each write pays for an append of its own, and what that costs comes out of the loop's time
again. So on a busy loop a batch waits until about as many requests are in it as were under way
lately, for a moment at most (PostgreSQL's commit_delay and commit_siblings are the same idea). A
client that is alone is never kept waiting.
"""

from __future__ import annotations

from collections.abc import Callable

GATHER_S = 0.002
"""A batch waits so long at most."""

ENOUGH = 64
"""Requests that share an append well enough."""

BUSY = 0.4
"""Part of the time that the loop's thread has a processor, from which on it counts as busy: a
thread that always has something to do gets less than all when others want the processors too."""

WINDOW_S = 0.01
"""The time over which that is measured, at least."""


class Gathering:
    """Watches the appends of one node. `cpu_s` is the processor time of the loop's thread."""

    def __init__(self, cpu_s: Callable[[], float]) -> None:
        self._cpu_s = cpu_s
        self._since = 0.0
        self._cpu_before = 0.0
        self._busy = False
        self._under_way = 1

    def appended(self, now: float, under_way: int) -> None:
        """An append is over: `under_way` requests were in its batch, or have come meanwhile."""
        passed = now - self._since
        if passed >= WINDOW_S:
            cpu = self._cpu_s()
            self._busy = cpu - self._cpu_before >= BUSY * passed
            self._since, self._cpu_before = now, cpu
        self._under_way = under_way

    def wanted(self, now: float) -> int:
        """Requests that the next batch should wait for; 1: it should not wait."""
        if not self._busy or now - self._since > 2 * WINDOW_S:
            return 1
        return min(self._under_way, ENOUGH)
