"""What a million keys cost jotd: memory, the longest hold of the loop, recovery after kill -9."""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import Any

from bench.control import Control
from bench.measure import load
from bench.servers import Server, running

KEYS = 1_000_000
PAGE = 10_000
LIST_S = 20.0
LISTS = 9


def million(place: Path, value_bytes: int, keys: int = KEYS) -> dict[str, Any]:
    """Fills a jotd, lists it in pages and at once, kills it and starts it again.

    Times in the names' units; `overhead_bytes_a_key` is memory beyond the values. `held`: samples
    of the server's loop (every 10 ms) that were held for more than 5 ms (I9), and how many those
    of a process were that rested beside it. The longest one may be the machine's, so there is a
    median of some lists, too, each by the bound that it stays below.
    """
    row: dict[str, Any] = {"keys": keys, "value_bytes": value_bytes}
    common = {"keys": keys, "value-bytes": value_bytes, "prefix": "/registry/pods/", "fill": False}
    listing = {**common, "scenario": "list", "conns": 1, "concurrency": 1, "warmup-s": 0.0}
    listing["duration-s"] = LIST_S
    with running("jotd", place) as server, Control() as control:
        empty = server.memory_bytes()
        watch = _Watch(server, control)
        row["fill_s"] = load(server, {**common, "scenario": "fill"})["seconds"]
        row["memory_mib"] = server.memory_bytes() / 2**20
        row["overhead_bytes_a_key"] = (server.memory_bytes() - empty) / keys - value_bytes
        row["held_while_filling"] = watch.seen()
        pages = load(server, {**listing, "limit": PAGE})
        row["paged_list_s"] = pages["latency"]["p50_us"] / 1e6
        row["held_in_pages"] = watch.seen()
        whole = load(server, {**listing, "limit": 0})
        row["list_s"] = whole["latency"]["p50_us"] / 1e6
        row["held_in_lists"] = watch.seen()
        longest = []
        for _ in range(LISTS):
            load(server, {**listing, "limit": 0, "duration-s": 1.2 * row["list_s"]})
            watch.seen()
            longest.append((watch.server.longest_ms(), watch.control.longest_ms()))
        ours, theirs = (sorted(each) for each in zip(*longest, strict=True))
        row["longest_in_each_list_ms"] = " ".join(f"{bound:g}" for bound in ours)
        row["longest_median_ms"] = statistics.median(ours)
        row["control_in_each_list_ms"] = " ".join(f"{bound:g}" for bound in theirs)
        row["control_median_ms"] = statistics.median(theirs)
        server.kill()
    with running("jotd", place) as server:
        row["recovery_s"] = server.start_s
        row["memory_after_recovery_mib"] = server.memory_bytes() / 2**20
    return row


class Holds:
    """How often a loop was held for how long: counts by upper bound in seconds, added up."""

    def __init__(self, up_to: dict[float, float]) -> None:
        self.up_to = up_to

    def since(self, earlier: Holds) -> Holds:
        """What came after another look."""
        return Holds({bound: n - earlier.up_to[bound] for bound, n in self.up_to.items()})

    def above(self, bound: float) -> float:
        """How many were longer than a bound of the histogram; 0: all."""
        return self.up_to[math.inf] - self.up_to.get(bound, 0.0)

    def longest_ms(self) -> float:
        """The smallest bound that none exceeds."""
        return 1e3 * min(bound for bound in self.up_to if not self.above(bound))


class _Watch:
    """Looks at the loops of a server and of a control, phase by phase."""

    def __init__(self, server: Server, control: Control) -> None:
        self._of = server, control
        self._before = self._look()
        self.server, self.control = self._before

    def _look(self) -> tuple[Holds, Holds]:
        server, control = self._of
        return _held(server), Holds(control.held())

    def seen(self) -> str:
        """The phase that ends now, in words; `server` and `control` have its holds."""
        now = self._look()
        self.server = now[0].since(self._before[0])
        self.control = now[1].since(self._before[1])
        self._before = now
        counts = (
            f"{each.above(0.005):g} of {each.above(0):g}" for each in (self.server, self.control)
        )
        return " / control ".join(counts)


def _held(server: Server) -> Holds:
    found = server.metrics('jotd_loop_held_seconds_bucket{le="')
    return Holds({float(name.partition('"')[2].rstrip('"}')): n for name, n in found.items()})
