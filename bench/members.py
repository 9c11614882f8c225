"""Clusters to measure: three nodes on three nats-servers, three members of etcd.

A start that fails is tried again on other ports: between the look for a free port and its use
another process may take it. What ended, or was not ready in time, is named with the end of its log.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import grpc.aio

from bench.programs import ROOT, TOOLS, free_ports
from bench.script import cluster_script
from bench.servers import Server, Unavailable, etcd_program
from kvstore.pb import rpc_pb2 as pb

START_S_MAX = 60.0
STARTS_MAX = 3
LOG_LINES_SHOWN = 10


class StartFailed(RuntimeError):
    """A cluster is not there; the text has the logs' last lines."""


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
    def runs(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def server(self) -> Server:
        assert self.process is not None
        return Server(self.name, self.endpoint, self.process.pid, "", process=self.process)

    def log_end(self) -> str:
        """How it is with the process, and the last lines of its log."""
        code = self.process.poll() if self.process is not None else None
        state = "runs" if self.runs else f"ended with {code}"
        lines = self.log.read_text(errors="replace").splitlines()[-LOG_LINES_SHOWN:]
        return "\n".join(
            [f"{self.name} {state}; its log ends:", *(f"    {line}" for line in lines)]
        )


Start = Callable[[Path, list[Member]], list[Member]]
"""Starts a cluster in a directory of its own. Whatever is started is appended to the list at once;
those that serve are returned. Raises StartFailed."""


@contextlib.contextmanager
def jotd(place: Path) -> Iterator[list[Member]]:
    """Three nodes on three nats-servers. Raises Unavailable, StartFailed."""
    with running("jotd", _start_jotd, place) as members:
        yield members


@contextlib.contextmanager
def etcd(place: Path) -> Iterator[list[Member]]:
    """Three members of etcd. Raises Unavailable, StartFailed."""
    with running("etcd", _start_etcd, place) as members:
        yield members


@contextlib.contextmanager
def running(name: str, start: Start, place: Path) -> Iterator[list[Member]]:
    """What `start` starts, in the first of a few tries that succeeds; killed at the end."""
    started: list[Member] = []
    try:
        for left in reversed(range(STARTS_MAX)):
            directory = place / f"{name}.{STARTS_MAX - left}"
            directory.mkdir(parents=True)
            try:
                members = start(directory, started)
                break
            except StartFailed as error:
                if not left:
                    raise
                print(f"{error}\n{name}: once more, on other ports", file=sys.stderr, flush=True)
                _kill(started)
                started.clear()
        yield members
    finally:
        _kill(started)


def _kill(members: list[Member]) -> None:
    for member in reversed(members):
        member.kill()


def _start_jotd(place: Path, started: list[Member]) -> list[Member]:
    commands = cluster_script()
    program = TOOLS / "nats-server"
    if not program.is_file():
        raise Unavailable("nats-server is not here: `make tools` builds it (Go)")
    host = commands.HOST
    ports = iter(free_ports(15))
    servers = [
        commands.Nats(
            f"nats-{n}", host, host, next(ports), next(ports), next(ports), str(place / f"nats-{n}")
        )
        for n in range(3)
    ]
    nodes = [
        commands.Node(f"jotd-{n}", host, host, next(ports), next(ports), str(place / f"jotd-{n}"))
        for n in range(3)
    ]

    def begin(name: str, argv: list[str], endpoint: str = "") -> Member:
        started.append(Member(name, argv, endpoint, place / f"{name}.log"))
        started[-1].start()
        return started[-1]

    for server in servers:
        begin(
            server.name,
            commands.nats_server(str(program), str(commands.NATS_CONFIG), server, servers),
        )
    wait_until(lambda: all(map(commands.nats_is_ready, servers)), started, "nats-servers")
    program = Path(sys.executable).parent / "jotd"
    members = [
        begin(node.name, commands.node(str(program), node, servers), f"{host}:{node.port}")
        for node in nodes
    ]
    wait_until(lambda: all(map(commands.node_is_ready, nodes)), started, "nodes")
    return members


def _start_etcd(place: Path, started: list[Member]) -> list[Member]:
    program = etcd_program()
    ports = free_ports(6)
    peers = [f"http://127.0.0.1:{port}" for port in ports[:3]]
    initial = ",".join(f"etcd-{n}={peer}" for n, peer in enumerate(peers))
    for n, (peer, port) in enumerate(zip(peers, ports[3:], strict=True)):
        endpoint = f"127.0.0.1:{port}"
        argv = [
            str(program),
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
        started.append(Member(f"etcd-{n}", argv, endpoint, place / f"etcd-{n}.log"))
        started[-1].start()
    wait_until(lambda: asyncio.run(_leading(started)) is not None, started, "members of etcd")
    return list(started)


def wait_until(ready: Callable[[], bool], members: list[Member], what: str) -> None:
    """Raises StartFailed if that takes too long, or one of `members` ends."""
    deadline = time.monotonic() + START_S_MAX
    while not ready():
        # A process that could not have its port is gone at once; the others would wait for it.
        if ended := [member for member in members if not member.runs]:
            raise StartFailed("\n".join(member.log_end() for member in ended))
        if time.monotonic() > deadline:
            logs = "\n".join(member.log_end() for member in members)
            raise StartFailed(f"{what} are not ready in {START_S_MAX:.0f} s\n{logs}")
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


async def serving(member: Member) -> None:
    """Wait until a member answers: one that was started anew has its state to recover first."""
    deadline = time.monotonic() + START_S_MAX
    while await _status(member.endpoint) is None:
        if not member.runs or time.monotonic() > deadline:
            raise StartFailed(f"no answer from {member.log_end()}")
        await asyncio.sleep(0.05)


async def _leading(members: list[Member]) -> Member | None:
    for member in members:
        if member.runs:
            status = await _status(member.endpoint)
            if status is not None and status.leader == status.header.member_id:
                return member
    return None


async def leader(members: list[Member]) -> Member:
    """The member that says that it leads; waits for one."""
    deadline = time.monotonic() + START_S_MAX
    while time.monotonic() < deadline:
        if (found := await _leading(members)) is not None:
            return found
        await asyncio.sleep(0.02)
    raise StartFailed("nobody leads\n" + "\n".join(member.log_end() for member in members))
