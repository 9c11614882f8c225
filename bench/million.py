"""What a million keys cost jotd: memory, the longest hold of the loop, recovery after kill -9."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.measure import load
from bench.servers import running

KEYS = 1_000_000
PAGE = 10_000
LIST_S = 20.0


def million(place: Path, value_bytes: int, keys: int = KEYS) -> dict[str, Any]:
    """Fills a jotd, lists it in pages and at once, kills it and starts it again.

    Times in the names' units; `overhead_bytes_a_key` is memory beyond the values.
    """
    row: dict[str, Any] = {"keys": keys, "value_bytes": value_bytes}
    common = {"keys": keys, "value-bytes": value_bytes, "prefix": "/registry/pods/", "fill": False}
    listing = {**common, "scenario": "list", "conns": 1, "concurrency": 1, "warmup-s": 0.0}
    listing["duration-s"] = LIST_S
    with running("jotd", place) as server:

        def stall_ms() -> float:
            return server.metric("jotd_loop_stall_max_seconds") * 1e3

        empty = server.memory_bytes()
        row["fill_s"] = load(server, {**common, "scenario": "fill"})["seconds"]
        row["memory_mib"] = server.memory_bytes() / 2**20
        row["overhead_bytes_a_key"] = (server.memory_bytes() - empty) / keys - value_bytes
        row["stall_while_filling_ms"] = stall_ms()
        pages = load(server, {**listing, "limit": PAGE})
        row["paged_list_s"] = pages["latency"]["p50_us"] / 1e6
        row["stall_after_pages_ms"] = stall_ms()
        whole = load(server, {**listing, "limit": 0})
        row["list_s"] = whole["latency"]["p50_us"] / 1e6
        row["stall_after_list_ms"] = stall_ms()
        server.kill()
    with running("jotd", place) as server:
        row["recovery_s"] = server.start_s
        row["memory_after_recovery_mib"] = server.memory_bytes() / 2**20
    return row
