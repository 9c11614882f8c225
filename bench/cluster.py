"""Three nodes on three nats-servers beside a three-member etcd: ``python -m bench.cluster``.

Writes at one client and at 256 in rounds that alternate, each at the leader of its cluster; then
how long no write is acknowledged when jotd's leader is killed, and when it hands over. Prints what
it finds, and writes everything to bench/results/cluster.json.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.machinery
import importlib.util
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import grpc
import grpc.aio

from bench.measure import load
from bench.servers import ROOT, TOOLS, Server, Unavailable, etcd_program, free_port
from kvstore.pb import rpc_pb2 as pb

START_S_MAX = 60.0
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


def _commands() -> Any:
    """tools/cluster as a module: the commands of a cluster come from there."""
    loader = importlib.machinery.SourceFileLoader("jotd_cluster", str(ROOT / "tools" / "cluster"))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[loader.name] = module
    loader.exec_module(module)
    return module


class Member:
    """One process of a cluster, that can be killed and started again."""

    def __init__(self, name: str, argv: list[str], endpoint: str, log: Path) -> None:
        self.name = name
        self.argv = argv
        self.endpoint = endpoint
        self.log = log
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self.argv, stdout=log, stderr=log, cwd=ROOT)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def terminate(self) -> int:
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(30)

    @property
    def server(self) -> Server:
        assert self.process is not None
        return Server(self.name, self.endpoint, self.process.pid, "", process=self.process)


@contextlib.contextmanager
def jotd(place: Path) -> Iterator[list[Member]]:
    """Three nodes on three nats-servers."""
    commands = _commands()
    program = TOOLS / "nats-server"
    if not program.is_file():
        raise Unavailable("nats-server is not here: `make tools` builds it (Go)")
    host = commands.HOST
    servers = [
        commands.Nats(
            f"nats-{n}", host, host, free_port(), free_port(), free_port(), str(place / f"nats-{n}")
        )
        for n in range(3)
    ]
    nodes = [
        commands.Node(f"jotd-{n}", host, host, free_port(), free_port(), str(place / f"jotd-{n}"))
        for n in range(3)
    ]
    started: list[Member] = []
    try:
        for server in servers:
            argv = commands.nats_server(str(program), str(commands.NATS_CONFIG), server, servers)
            started.append(Member(server.name, argv, "", place / f"{server.name}.log"))
            started[-1].start()
        _until(lambda: all(map(commands.nats_is_ready, servers)), "nats-servers")
        members = []
        for node in nodes:
            argv = commands.node(str(Path(sys.executable).parent / "jotd"), node, servers)
            member = Member(node.name, argv, f"{host}:{node.port}", place / f"{node.name}.log")
            member.start()
            started.append(member)
            members.append(member)
        _until(lambda: all(map(commands.node_is_ready, nodes)), "nodes")
        yield members
    finally:
        for member in reversed(started):
            member.kill()


@contextlib.contextmanager
def etcd(place: Path) -> Iterator[list[Member]]:
    """Three members of etcd."""
    peers = [f"http://127.0.0.1:{free_port()}" for _ in range(3)]
    initial = ",".join(f"etcd-{n}={peer}" for n, peer in enumerate(peers))
    members = []
    try:
        for n, peer in enumerate(peers):
            endpoint = f"127.0.0.1:{free_port()}"
            argv = [
                str(etcd_program()),
                f"--name=etcd-{n}",
                f"--data-dir={place / f'etcd-{n}'}",
                f"--listen-client-urls=http://{endpoint}",
                f"--advertise-client-urls=http://{endpoint}",
                f"--listen-peer-urls={peer}",
                f"--initial-advertise-peer-urls={peer}",
                f"--initial-cluster={initial}",
                "--quota-backend-bytes=17179869184",
                "--log-level=error",
            ]
            members.append(Member(f"etcd-{n}", argv, endpoint, place / f"etcd-{n}.log"))
            members[-1].start()
        asyncio.run(leader(members))
        yield members
    finally:
        for member in members:
            member.kill()


def _until(ready: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + START_S_MAX
    while not ready():
        if time.monotonic() > deadline:
            raise RuntimeError(f"{what} are not ready in {START_S_MAX} s")
        time.sleep(0.1)


async def _status(endpoint: str) -> pb.StatusResponse | None:
    async with grpc.aio.insecure_channel(endpoint) as channel:
        call = channel.unary_unary(
            "/etcdserverpb.Maintenance/Status",
            pb.StatusRequest.SerializeToString,
            pb.StatusResponse.FromString,
        )
        try:
            answer: pb.StatusResponse = await call(pb.StatusRequest(), timeout=1)
        except grpc.aio.AioRpcError:
            return None
        return answer


async def _serving(member: Member) -> None:
    """Wait until a member answers: one that was started anew has its state to recover first."""
    deadline = time.monotonic() + START_S_MAX
    while await _status(member.endpoint) is None:
        if time.monotonic() > deadline:
            raise RuntimeError(f"{member.name} does not answer in {START_S_MAX} s")
        await asyncio.sleep(0.05)


async def leader(members: list[Member]) -> Member:
    """The member that says that it leads; waits for one."""
    deadline = time.monotonic() + START_S_MAX
    while time.monotonic() < deadline:
        for member in members:
            if member.process is not None and member.process.poll() is None:
                status = await _status(member.endpoint)
                if status is not None and status.leader == status.header.member_id:
                    return member
        await asyncio.sleep(0.02)
    raise RuntimeError("nobody leads")


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
                if member.process is None or member.process.poll() is not None:
                    member.start()
            # The next client may be at any of them.
            for member in members:
                asyncio.run(_serving(member))
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
    options = parser.parse_args()
    found: dict[str, Any] = {}
    try:
        with TemporaryDirectory(prefix="jotd-bench-", dir=ROOT / "bench" / "results") as name:
            place = Path(name)
            with jotd(place) as ours:
                if options.rounds:
                    with etcd(place) as theirs:
                        found["rates"] = rates(
                            {"jotd": ours, "etcd": theirs}, options.rounds, options.duration
                        )
                if options.take_overs:
                    found["without_writes"] = take_overs(ours, options.take_overs)
    except (Unavailable, RuntimeError) as error:
        print(f"bench.cluster: {error}", file=sys.stderr)
        return 1
    (ROOT / "bench" / "results" / "cluster.json").write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
