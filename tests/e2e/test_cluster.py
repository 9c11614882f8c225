"""`make cluster`: what tools/cluster starts, serves, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests import peers

SCRIPT = peers.ROOT / "tools" / "cluster"
SECONDS_MAX = 90.0

pytestmark = pytest.mark.slow


def hundred_free_ports() -> int:
    """The first of a hundred ports of which none was in use a moment ago."""
    for base in range(24000, 32600, 100):
        try:
            for port in range(base, base + 100):
                with socket.socket() as sock:
                    sock.bind(("127.0.0.1", port))
        except OSError:
            continue
        return base
    raise AssertionError("there are no hundred ports in a row")


class Cluster:
    def __init__(self, process: subprocess.Popen[bytes], output: Path, base: int) -> None:
        self.process = process
        self.output = output
        self.base = base

    def text(self) -> str:
        return self.output.read_text()

    def wait(self, seen: Callable[[], bool]) -> None:
        deadline = time.monotonic() + SECONDS_MAX
        while not seen():
            assert self.process.poll() is None and time.monotonic() < deadline, self.text()
            time.sleep(0.05)

    def pids(self) -> dict[str, int]:
        return {
            name: int(pid) for name, pid in re.findall(r"^(\S+)  .*pid (\d+)$", self.text(), re.M)
        }

    def endpoints(self) -> str:
        found = re.search(r"--endpoints=(\S+)", self.text())
        assert found
        return found[1]

    def stop(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        return self.process.wait(SECONDS_MAX)


@contextmanager
def cluster(tmp_path: Path, *options: str) -> Iterator[Cluster]:
    peers.require("nats-server")
    base = hundred_free_ports()
    output = tmp_path / "output"
    with output.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, SCRIPT, f"--base-port={base}", *options],
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    found = Cluster(process, output, base)
    try:
        found.wait(lambda: "ready;" in found.text())
        yield found
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(SECONDS_MAX)


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def request(port: int, subject: str, payload: bytes, timeout: float = 30.0) -> bytes:
    """The answer to one request in NATS's own protocol, headers left out."""
    with (
        socket.create_connection(("127.0.0.1", port), timeout=timeout) as sock,
        sock.makefile("rb") as get,
    ):
        assert get.readline().startswith(b"INFO ")
        sock.sendall(
            b'CONNECT {"verbose":false,"pedantic":false}\r\nSUB inbox 1\r\n'
            + f"PUB {subject} inbox {len(payload)}\r\n".encode()
            + payload
            + b"\r\n"
        )
        while True:
            line = get.readline()
            if line.startswith(b"PING"):
                sock.sendall(b"PONG\r\n")
            elif line.startswith(b"MSG "):
                return get.read(int(line.split()[-1]))
            else:
                assert line and not line.startswith(b"-ERR"), line


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_and_leaves_nothing_behind(tmp_path: Path, number: signal.Signals) -> None:
    # Each node for itself, so that this is about the script and not about the journal.
    with cluster(tmp_path, "--nodes=2", "--", "--journal=memory") as it:
        pids = it.pids()
        assert list(pids) == ["nats-1", "nats-2", "nats-3", "jotd-1", "jotd-2"]
        for endpoint in it.endpoints().split(","):
            assert peers.etcdctl(endpoint, "put", "greeting", "hello").stdout == "OK\n"
        found = re.search(r"^data and logs: (\S+)", it.text())
        assert found and Path(found[1]).is_dir()
        assert it.stop(number) == 0
        assert it.text().endswith("\nstopped\n")
        assert all(map(is_gone, pids.values()))
        assert not Path(found[1]).exists()


def test_nats_takes_streams_of_three_replicas_and_long_batches(tmp_path: Path) -> None:
    with cluster(tmp_path, "--nodes=1", "--", "--journal=memory") as it:
        stream = {"name": "s", "subjects": ["s"], "num_replicas": 3, "storage": "file"}
        port = it.base + 41
        made = json.loads(request(port, "$JS.API.STREAM.CREATE.s", json.dumps(stream).encode()))
        assert len(made["cluster"]["replicas"]) == 2, made
        assert json.loads(request(port, "s", bytes(8 << 20)))["seq"] == 1
        # Two of three go on.
        os.kill(it.pids()["nats-3"], signal.SIGKILL)
        it.wait(lambda: "nats-3 (pid" in it.text())

        def goes_on() -> bool:
            # Nobody answers until they have another leader, if it led.
            try:
                return bool(json.loads(request(port, "s", b"more", timeout=1.0))["seq"] > 1)
            except TimeoutError:
                return False

        it.wait(goes_on)


def test_what_is_kept_is_there_again(tmp_path: Path) -> None:
    kept = f"--keep={tmp_path / 'kept'}"
    # A journal of its own for the one node: it is the directory that has to be the same.
    with cluster(tmp_path, "--nodes=1", kept, "--", "--journal=file") as it:
        peers.etcdctl(it.endpoints(), "put", "greeting", "hello")
    assert (tmp_path / "kept" / "jotd-1.log").is_file()
    with cluster(tmp_path, "--nodes=1", kept, "--", "--journal=file") as it:
        assert peers.etcdctl(it.endpoints(), "get", "greeting").stdout == "greeting\nhello\n"
