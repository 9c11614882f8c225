"""The policy for Python's cyclic garbage collector (R11).

Almost everything here is freed by reference counts; the collector is for the cycles, which are
few. Left alone it walks all data every so often: 45 ms at a million keys. So:

- The young generations are collected as always, in steps that are small because the thresholds
  are: some `YOUNG * (MIDDLE + 1)` objects.
- The old generation is collected too, but only while it is small: after each of its collections
  whatever survived is *frozen* (`gc.freeze`), which takes it out of the collector's sight for
  good. So one step walks some `YOUNG * (MIDDLE + 1) * (OLD + 1)` objects, each object is
  walked a handful of times in its life, and data that is frozen costs nothing more.

The price: a cycle that becomes garbage after it was frozen is never freed. What can do that is
long-lived and made of cycles, such as the objects of a connection that stayed open for a while:
some kilobytes for each of those, once. The store itself has no cycles (versions of a key point
backwards only), so its objects go when their last reference does, frozen or not.

From Python 3.14 on the collector works incrementally, and is only told to freeze what is there
once recovery is over.
"""

from __future__ import annotations

import gc
import sys
from time import perf_counter

from kvstore.metrics.histogram import Histogram, exponential

# A few hundred requests under way are some thousand objects that will be gone in a moment: with a
# smaller young generation most of them were walked, twice, on their way.
YOUNG = 5000
MIDDLE = 1
OLD = 1

_INCREMENTAL = sys.version_info >= (3, 14)


class CollectorPolicy:
    """Applies the policy to this process, until `stop`."""

    def __init__(self) -> None:
        self.pause_s = Histogram(exponential(0.0001, 2, 12))
        self.longest_s = 0.0
        self.freezes = 0
        self._before: tuple[int, int, int] | None = None
        self._since = 0.0

    def start(self) -> None:
        """Early, before data is loaded: loading is what makes the most objects."""
        self._before = gc.get_threshold()
        gc.callbacks.append(self._on_step)
        if not _INCREMENTAL:
            gc.set_threshold(YOUNG, MIDDLE, OLD)

    def settle(self) -> None:
        """Once, after recovery and before serving: collects what start-up left, freezes the rest.

        Takes as long as it takes, though what was frozen while loading is not looked at again.
        """
        gc.collect()
        self._freeze()
        # CPython puts a collection of the old generation off until a quarter of it is new, by
        # the count of the last one; with everything frozen that count is small again.
        gc.collect()

    def set_aside(self) -> None:
        """Freeze what there is, after one young collection. For rounds of long work.

        A sort of a million keys or a huge delete holds lists that no single pass should walk;
        set aside every few milliseconds, they never are. The collection frees the short cycles
        of the requests in between (grpc.aio makes one for each call), which would stay for good.
        """
        if not _INCREMENTAL:
            gc.collect(0)
            self._freeze()

    def stop(self) -> None:
        """Back to how it was; what is frozen comes back, too."""
        if self._before is None:
            return
        gc.callbacks.remove(self._on_step)
        gc.set_threshold(*self._before)
        gc.unfreeze()
        self._before = None

    def _on_step(self, phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            self._since = perf_counter()
            return
        took = perf_counter() - self._since
        self.pause_s.observe(took)
        if took > self.longest_s:
            self.longest_s = took
        if info["generation"] == 2 and not _INCREMENTAL:
            # All generations were just merged and collected: nothing here is garbage now.
            self._freeze()

    def _freeze(self) -> None:
        gc.freeze()
        self.freezes += 1
