"""Servers to measure, each a process of its own on 127.0.0.1, with data on the same disk."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ROOT / ".tools" / "bin"
NAMES = ("echo", "jotd", "etcd")

START_S_MAX = 120.0
STOP_S_MAX = 60.0


class Unavailable(Exception):
    """A program that a measurement needs is not here; the text says which, and how to get it."""


def program(name: str) -> Path:
    """A peer that ``make tools`` builds, or one from PATH."""
    built = TOOLS / name
    if built.is_file():
        return built
    if found := shutil.which(name):
        return Path(found)
    raise Unavailable(f"{name} is not here: `make tools` builds it (needs Go)")


def load_program() -> Path:
    """The load generator, built from bench/load when it is older than its sources."""
    path = TOOLS / "jotd-load"
    sources = list((ROOT / "bench" / "load").glob("*"))
    if path.is_file() and path.stat().st_mtime >= max(s.stat().st_mtime for s in sources):
        return path
    go = shutil.which("go")
    if go is None:
        if path.is_file():
            return path
        raise Unavailable("the load generator needs Go to be built")
    TOOLS.mkdir(parents=True, exist_ok=True)
    command = [go, "build", "-p", "2", "-trimpath", "-buildvcs=false", "-ldflags=-s -w"]
    subprocess.run([*command, "-o", str(path), "."], cwd=ROOT / "bench" / "load", check=True)
    return path


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@dataclass
class Server:
    """A running process."""

    name: str
    endpoint: str
    pid: int
    argv: Sequence[str] = ()
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

    def metric(self, name: str) -> float:
        """One value of /metrics, by its full name with labels; 0 if it is not there."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(self.metrics_url + "/metrics", timeout=30) as answer:
            for line in answer.read().decode().splitlines():
                if line.rpartition(" ")[0] == name:
                    return float(line.rpartition(" ")[2])
        return 0.0

    def kill(self) -> None:
        """kill -9."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()


@contextmanager
def running(name: str, place: Path, extra: Sequence[str] = ()) -> Iterator[Server]:
    """Starts a server with its data (kept from an earlier start) and log under `place`."""
    place.mkdir(parents=True, exist_ok=True)
    endpoint, peer, metrics = (f"127.0.0.1:{free_port()}" for _ in range(3))
    data = place / f"{name}.data"
    if name == "echo":
        argv = [sys.executable, "-m", "bench.echo", f"--listen={endpoint}"]
    elif name == "jotd":
        argv = [
            str(Path(sys.executable).parent / "jotd"),
            "serve",
            f"--data-dir={data}",
            f"--listen-client-urls=http://{endpoint}",
            f"--listen-metrics-urls=http://{metrics}",
            "--quota-backend-bytes=-1",
        ]
    else:
        argv = [
            str(program(name)),
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
    began = time.monotonic()
    with (place / f"{name}.log").open("ab") as log:
        process = subprocess.Popen([*argv, *extra], stdout=log, stderr=log, cwd=ROOT)
    server = Server(name, endpoint, process.pid, argv, f"http://{metrics}", process=process)
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
