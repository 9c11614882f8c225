"""How long the event loop was held (I9), seen by a timer that comes late."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from time import monotonic

from kvstore.metrics.histogram import Histogram

#: 0.5 ms to 1 s; 5 ms is the limit of I9.
STALL_S = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)


class LoopStalls:
    """Samples the lateness of a periodic timer.

    A step that holds the loop for longer than the period is always seen, and up to one period too
    short; of shorter ones a part. So the bounds say "at least this long".

    On a busy machine the timer also comes late because the loop's thread has to wait for a
    processor, which the kernel counts (Linux, Documentation/scheduler/sched-stats.rst). What of
    it fell between two samples is taken off in `held_s`. What a hypervisor took is not known.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        period_s: float = 0.01,
        waited_s: Callable[[], float] | None = None,
    ) -> None:
        """`waited_s`: how long the loop's thread has waited for processors so far, for tests."""
        self._loop = loop
        self._period_s = period_s
        self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._fd: int | None = None
        self._waited_s = self._run_delay_s if waited_s is None else waited_s
        self._waited = 0.0
        self.late_s = Histogram(STALL_S)
        self.late_max_s = 0.0
        """The worst since the start."""
        self.held_s = Histogram(STALL_S)
        self.held_max_s = 0.0
        """The worst since the start."""

    def start(self) -> None:
        """On the loop's thread, whose waiting is looked at from now on."""
        try:
            self._fd = os.open("/proc/thread-self/schedstat", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            # Not Linux, or without CONFIG_SCHED_INFO: all lateness counts as ours.
            self._fd = None
        self._waited = self._waited_s()
        self._wait(monotonic())

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _run_delay_s(self) -> float:
        if self._fd is None:
            return 0.0
        return int(os.pread(self._fd, 128, 0).split()[1]) / 1e9

    def _tick(self) -> None:
        # Not the loop's time: uvloop's stands still during a turn of the loop.
        now = monotonic()
        late = max(now - self._due, 0.0)
        waited = self._waited_s()
        held = max(late - (waited - self._waited), 0.0)
        self._waited = waited
        self.late_s.observe(late)
        self.held_s.observe(held)
        self.late_max_s = max(self.late_max_s, late)
        self.held_max_s = max(self.held_max_s, held)
        self._wait(now)

    def _wait(self, now: float) -> None:
        self._due = now + self._period_s
        self._timer = self._loop.call_later(self._period_s, self._tick)
