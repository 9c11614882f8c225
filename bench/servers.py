"""Servers to measure, each a process of its own on 127.0.0.1, with data on the same disk."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench.programs import ROOT, find, free_ports

#: What can be measured: jotd, jotd on its portable transport, etcd, and bare grpc.aio handlers.
NAMES = ("jotd", "jotd-grpcio", "etcd", "echo")

START_S_MAX = 120.0
STOP_S_MAX = 60.0


class Unavailable(Exception):
    """A program that a measurement needs is not here; the text says which, and how to get it."""


def etcd_program() -> Path:
    """The etcd to compare with: 3.6, else the one of the tests, else 3.5.1 from its wheel."""
    if found := find("etcd-3.6") or find("etcd"):
        return found
    raise Unavailable("etcd is not here: `make tools` builds it (Go), or installs an older one")


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
