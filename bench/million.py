"""What a million keys cost jotd: memory, the longest hold of the loop, recovery after kill -9."""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import Any

from bench.measure import load
from bench.servers import Server, running

KEYS = 1_000_000
PAGE = 10_000
LIST_S = 20.0
LISTS = 9
HELD = "jotd_loop_held_seconds"


def million(place: Path, value_bytes: int, keys: int = KEYS) -> dict[str, Any]:
    """Fills a jotd, lists it in pages and at once, kills it and starts it again.

    Times in the names' units; `overhead_bytes_a_key` is memory beyond the values. `held`: what the
    server says of its loop. The longest hold of a whole phase is one sample and may be the
    machine's; so there is a median of some lists, too, each by the bound that it stays below.
    """
    row: dict[str, Any] = {"keys": keys, "value_bytes": value_bytes}
    common = {"keys": keys, "value-bytes": value_bytes, "prefix": "/registry/pods/", "fill": False}
    listing = {**common, "scenario": "list", "conns": 1, "concurrency": 1, "warmup-s": 0.0}
    listing["duration-s"] = LIST_S
    with running("jotd", place) as server:
        empty = server.memory_bytes()
        row["fill_s"] = load(server, {**common, "scenario": "fill"})["seconds"]
        row["memory_mib"] = server.memory_bytes() / 2**20
        row["overhead_bytes_a_key"] = (server.memory_bytes() - empty) / keys - value_bytes
        holds = Holds(server)
        row["held_while_filling_max_ms"] = server.metric("jotd_loop_held_max_seconds") * 1e3
        row["held_while_filling_above_5_ms"] = holds.above(0.005)
        row["held_while_filling_samples"] = holds.above(0.0)
        pages = load(server, {**listing, "limit": PAGE})
        row["paged_list_s"] = pages["latency"]["p50_us"] / 1e6
        row["held_in_pages_below_ms"] = Holds(server).since(holds).longest_ms()
        whole = load(server, {**listing, "limit": 0})
        row["list_s"] = whole["latency"]["p50_us"] / 1e6
        held = []
        for _ in range(LISTS):
            holds = Holds(server)
            load(server, {**listing, "limit": 0, "duration-s": 1.2 * row["list_s"]})
            held.append(Holds(server).since(holds).longest_ms())
        row["held_in_a_list_below_ms"] = statistics.median(held)
        row["held_in_each_list_below_ms"] = " ".join(f"{bound:g}" for bound in sorted(held))
        server.kill()
    with running("jotd", place) as server:
        row["recovery_s"] = server.start_s
        row["memory_after_recovery_mib"] = server.memory_bytes() / 2**20
    return row


class Holds:
    """How often the loop was held for how long: counts by upper bound in seconds."""

    def __init__(self, server: Server) -> None:
        counts = server.metrics(f'{HELD}_bucket{{le="')
        self.up_to = {float(name.partition('"')[2].rstrip('"}')): n for name, n in counts.items()}

    def since(self, earlier: Holds) -> Holds:
        """What came after another look; changes this one."""
        self.up_to = {bound: n - earlier.up_to[bound] for bound, n in self.up_to.items()}
        return self

    def above(self, bound: float) -> float:
        """How many were longer than a bound of the histogram; 0: all."""
        return self.up_to[math.inf] - self.up_to.get(bound, 0.0)

    def longest_ms(self) -> float:
        """The smallest bound that none exceeds."""
        return 1e3 * min(bound for bound in self.up_to if not self.above(bound))
