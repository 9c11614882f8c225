"""Watches on a follower while one client writes to the leader.

What kube-apiservers ask of a cluster that are spread over its members: the followers apply what the
leader has written, and send it to their watchers.
"""

from __future__ import annotations

import asyncio
import statistics
from typing import Any

from bench.measure import load
from bench.members import Member, leader
from bench.scenarios import event_cpu_us

WATCHERS = 100
RATES = (200, 1_000)
"""Puts a second, begun on time whatever became of those before."""
UNDER_WAY_MAX = 64
"""Puts that the writer has under way at once; from then on it is late."""
VALUE_BYTES = 512


def fan_out(clusters: dict[str, list[Member]], rounds: int, duration_s: float) -> dict[str, Any]:
    """By rate of puts and cluster, the medians of what `one` finds. Prints them."""
    found: dict[str, Any] = {}
    for rate in RATES:
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in clusters}
        for number in range(rounds):
            for name in clusters if number % 2 == 0 else reversed(clusters):
                runs[name].append(one(clusters[name], rate, number, duration_s))
        row = {
            name: {key: statistics.median(run[key] for run in each) for key in each[0]}
            for name, each in runs.items()
        }
        found[f"{rate} puts a second"] = row
        for name, median in row.items():
            print(
                f"{WATCHERS} watchers of a follower of {name}, {rate:,} puts/s due: "
                f"{median['puts']:,.0f} done, {median['events']:,.0f} events/s, "
                f"{median['cpu_us']:.2f} us of the follower's CPU an event, "
                f"behind the answer p50 {median['p50_us'] / 1e3:.2f} ms "
                f"p99 {median['p99_us'] / 1e3:.2f} ms",
                flush=True,
            )
    return found


def one(members: list[Member], rate: int, number: int, duration_s: float) -> dict[str, float]:
    """One run: puts and events a second, CPU of the follower an event, and how long after the
    writer's answer an event came (0: before it), in us."""
    leading = asyncio.run(leader(members))
    follower = next(member for member in members if member is not leading)
    report = load(
        follower.server,
        {
            "scenario": "watch",
            "endpoints": [leading.endpoint],
            "watch-endpoints": [follower.endpoint],
            "watchers": WATCHERS,
            "rate": float(rate),
            "concurrency": UNDER_WAY_MAX,
            "conns": 8,
            "keys": 1_000,
            "value-bytes": VALUE_BYTES,
            "duration-s": duration_s,
            "warmup-s": 1.0,
            "prefix": f"/registry/watched/{rate}/{number}/",
        },
    )
    if report["errors"]:
        raise RuntimeError(f"{follower.name}: {report['errors']}")
    if not report["events"]:
        raise RuntimeError(f"{follower.name} sent no events")
    if asyncio.run(leader(members)) is not leading:
        raise RuntimeError(f"{leading.name} stopped to lead while it was measured")
    delay = report["event_delay"]
    return {
        "puts": report["rate"],
        "events": report["event_rate"],
        "cpu_us": event_cpu_us(report),
        "p50_us": delay["p50_us"],
        "p99_us": delay["p99_us"],
    }
