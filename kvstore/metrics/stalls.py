"""How long the event loop was held (I9), seen by a timer that comes late."""

from __future__ import annotations

import asyncio
from time import monotonic

from kvstore.metrics.histogram import Histogram, exponential

#: 0.5 ms to 1.024 s.
STALL_S = exponential(0.0005, 2, 12)


class LoopStalls:
    """Samples the lateness of a periodic timer.

    A step that holds the loop for longer than the period is always seen, and up to one period too
    short; of shorter ones a part. So the bounds say "at least this long".
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, period_s: float = 0.01) -> None:
        self._loop = loop
        self._period_s = period_s
        self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self.late_s = Histogram(STALL_S)
        self.longest_s = 0.0
        """The worst since the start."""

    def start(self) -> None:
        self._wait(monotonic())

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _tick(self) -> None:
        # Not the loop's time: uvloop's stands still during a turn of the loop.
        now = monotonic()
        late = max(now - self._due, 0.0)
        self.late_s.observe(late)
        if late > self.longest_s:
            self.longest_s = late
        self._wait(now)

    def _wait(self, now: float) -> None:
        self._due = now + self._period_s
        self._timer = self._loop.call_later(self._period_s, self._tick)
