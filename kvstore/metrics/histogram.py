"""A histogram that costs a bisection and two additions, for use on a hot path."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence


def exponential(start: float, factor: float, count: int) -> tuple[float, ...]:
    """Upper bounds as prometheus.ExponentialBuckets makes them."""
    return tuple(start * factor**n for n in range(count))


#: etcd's bounds for almost everything that it times: 1 ms to 8.192 s.
LATENCY_S = exponential(0.001, 2, 14)
#: grpc-prometheus's bounds for the handling of a call.
HANDLING_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Histogram:
    """Observations counted by upper bound. Not for use from several threads."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float] = LATENCY_S) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        """Observations above the bound before and up to the bound at the same place; the last
        one is for what is above all bounds."""
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    @property
    def count(self) -> int:
        return sum(self.counts)

    def copy(self) -> Histogram:
        other = Histogram(self.bounds)
        other.counts = list(self.counts)
        other.sum = self.sum
        return other
