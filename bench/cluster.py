"""Three nodes on three nats-servers beside a three-member etcd: ``python -m bench.cluster``.

Writes at one client and at 256 in rounds that alternate, each at the leader of its cluster; 100
watchers of a follower while one client writes; then how long no write is acknowledged when jotd's
leader is killed, and when it hands over. Prints what it finds, and writes everything to
bench/results/cluster.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import grpc
import grpc.aio

from bench.fanout import fan_out
from bench.measure import load
from bench.members import Member, etcd, jotd, leader, serving
from bench.programs import ROOT
from bench.servers import Unavailable
from kvstore.pb import rpc_pb2 as pb

KEYS = {1: 20, 256: 1_000}
"""By clients: few, so that transactions soon find the revisions that they expect."""
SETTLE_S = 2.0
"""Between two take-overs: the node that came back has caught up."""

LOADS = {
    "put, 1 client": ("put", 1),
    "put, 256": ("put", 256),
    "txn, 1 client": ("txn", 1),
    "txn, 256": ("txn", 256),
}


def rates(clusters: dict[str, list[Member]], rounds: int, duration_s: float) -> dict[str, Any]:
    """Medians by load and cluster: rate, p50 and p99 in us; and the ratio of the rates."""
    found: dict[str, Any] = {}
    for title, (scenario, concurrency) in LOADS.items():
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in clusters}
        for number in range(rounds):
            for name in clusters if number % 2 == 0 else reversed(clusters):
                at = asyncio.run(leader(clusters[name]))
                report = load(
                    at.server,
                    {
                        "scenario": scenario,
                        "concurrency": concurrency,
                        "conns": min(8, concurrency),
                        "keys": KEYS[concurrency],
                        "duration-s": duration_s,
                        "warmup-s": 1.0,
                        "fill": True,
                        "prefix": f"/registry/pods/{number}/",
                    },
                )
                if report["errors"]:
                    raise RuntimeError(f"{name}: {report['errors']}")
                latency = report["latency"]
                runs[name].append(
                    {"rate": report["rate"], **{k: latency[k] for k in ("p50_us", "p99_us")}}
                )
        row: dict[str, Any] = {
            name: {key: statistics.median(run[key] for run in each) for key in each[0]}
            for name, each in runs.items()
        }
        ours, theirs = runs.values()
        row["rate_ratio"] = statistics.median(
            a["rate"] / b["rate"] for a, b in zip(ours, theirs, strict=True)
        )
        row["p50_ratio"] = statistics.median(
            a["p50_us"] / b["p50_us"] for a, b in zip(ours, theirs, strict=True)
        )
        found[title] = row
        print(
            f"{title:<15}"
            + "  ".join(
                f"{name} {row[name]['rate']:,.0f}/s p50 {row[name]['p50_us'] / 1e3:.2f} ms "
                f"p99 {row[name]['p99_us'] / 1e3:.1f} ms"
                for name in clusters
            )
            + f"  rate x{row['rate_ratio']:.2f}  p50 x{row['p50_ratio']:.2f}",
            flush=True,
        )
    return found


async def _gap(members: list[Member], fault: Callable[[Member], Awaitable[None]]) -> float:
    """The longest time between two acknowledged writes of one client while `fault` happens, s.

    The client is at a node that stays. A write that fails is tried again at once.
    """
    at = await leader(members)
    witness = next(member for member in members if member is not at)
    acknowledged = [time.monotonic()]
    done = asyncio.Event()

    async def write() -> None:
        async with grpc.aio.insecure_channel(witness.endpoint) as channel:
            put = channel.unary_unary(
                "/etcdserverpb.KV/Put", pb.PutRequest.SerializeToString, pb.PutResponse.FromString
            )
            while not done.is_set():
                try:
                    await put(pb.PutRequest(key=b"probe", value=b"v"), timeout=10)
                except grpc.aio.AioRpcError:
                    await asyncio.sleep(0.005)
                else:
                    acknowledged.append(time.monotonic())

    writer = asyncio.ensure_future(write())
    await asyncio.sleep(0.5)
    began = time.monotonic()
    await fault(at)
    while acknowledged[-1] < began + 0.5:
        await asyncio.sleep(0.02)
    await asyncio.sleep(1.0)
    done.set()
    await writer
    first = next(i for i, when in enumerate(acknowledged) if when >= began)
    after = acknowledged[first - 1 :]
    return max(b - a for a, b in pairwise(after))


def take_overs(members: list[Member], count: int) -> dict[str, Any]:
    """Seconds without writes: the leader killed, the leader stopped (min, median, max)."""

    async def kill(member: Member) -> None:
        member.kill()

    async def stop(member: Member) -> None:
        code = await asyncio.to_thread(member.terminate)
        if code:
            raise RuntimeError(f"{member.name} ended with {code}")

    found: dict[str, Any] = {}
    for title, fault in (("killed", kill), ("stopped", stop)):
        gaps = []
        for _ in range(count):
            gaps.append(asyncio.run(_gap(members, fault)))
            for member in members:
                if not member.runs:
                    member.start()
            # The next client may be at any of them.
            for member in members:
                asyncio.run(serving(member))
            time.sleep(SETTLE_S)
        found[title] = {
            "min_s": min(gaps),
            "median_s": statistics.median(gaps),
            "max_s": max(gaps),
            "all_s": gaps,
        }
        print(
            f"leader {title}, {count} times: no write for {min(gaps):.2f} s at least, "
            f"{statistics.median(gaps):.2f} s in the median, {max(gaps):.2f} s at most",
            flush=True,
        )
    return found


def main() -> int:
    """Measures, prints, and writes cluster.json; 1 if a program is missing or fails."""
    parser = argparse.ArgumentParser(prog="python -m bench.cluster", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--duration", type=float, default=4.0, metavar="SECONDS")
    parser.add_argument("--take-overs", type=int, default=30, metavar="N")
    parser.add_argument("--only-fan-out", action="store_true", help="nothing but the watchers")
    options = parser.parse_args()
    found: dict[str, Any] = {}
    results = ROOT / "bench" / "results"
    results.mkdir(exist_ok=True)
    try:
        with TemporaryDirectory(prefix="jotd-bench-", dir=results) as name:
            place = Path(name)
            with jotd(place) as ours:
                if options.rounds:
                    with etcd(place) as theirs:
                        both = {"jotd": ours, "etcd": theirs}
                        if not options.only_fan_out:
                            found["rates"] = rates(both, options.rounds, options.duration)
                        found["fan_out"] = fan_out(both, options.rounds, options.duration)
                if options.take_overs and not options.only_fan_out:
                    found["without_writes"] = take_overs(ours, options.take_overs)
    except (Unavailable, RuntimeError) as error:
        print(f"bench.cluster: {error}", file=sys.stderr)
        return 1
    (results / "cluster.json").write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
