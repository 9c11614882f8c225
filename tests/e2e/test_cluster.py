"""`make cluster`: what tools/cluster starts is a cluster on NATS, and it leaves nothing behind."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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


def status(endpoint: str) -> dict[str, Any]:
    """What a node says of itself."""
    found: dict[str, Any] = json.loads(
        peers.etcdctl(endpoint, "endpoint", "status", "-w", "json").stdout
    )[0]["Status"]
    return found


def hashes(endpoints: list[str], revision: int) -> set[int]:
    """The hashes at a revision; fails while one of the nodes has not seen that yet."""
    done = peers.etcdctl(
        ",".join(endpoints), "endpoint", "hashkv", f"--rev={revision}", "-w", "json", check=False
    )
    found = json.loads(done.stdout) if done.returncode == 0 else []
    return {one["HashKV"]["hash"] for one in found if len(found) == len(endpoints)}


def has(endpoint: str, key: str, value: str) -> bool:
    return peers.etcdctl(endpoint, "get", key).stdout == f"{key}\n{value}\n"


def takes_a_write(endpoint: str, key: str, value: str) -> bool:
    # Whether an unanswered one was done is not known, so it is asked for again.
    done = peers.etcdctl(endpoint, "--command-timeout=10s", "put", key, value, check=False)
    return done.returncode == 0


def test_three_nodes_on_nats(tmp_path: Path) -> None:
    with cluster(tmp_path) as it:
        pids = it.pids()
        assert list(pids) == ["nats-1", "nats-2", "nats-3", "jotd-1", "jotd-2", "jotd-3"]
        endpoints = it.endpoints().split(",")
        names = dict(zip(endpoints, ("jotd-1", "jotd-2", "jotd-3"), strict=True))

        # Any endpoint takes a write, and any shows it at once.
        for n, endpoint in enumerate(endpoints):
            assert peers.etcdctl(endpoint, "put", f"key-{n}", "hello").stdout == "OK\n"
            assert has(endpoints[n - 1], f"key-{n}", "hello")
        listed = json.loads(peers.etcdctl(endpoints[1], "member", "list", "-w", "json").stdout)
        assert {member["name"]: member["clientURLs"] for member in listed["members"]} == {
            name: [f"http://{endpoint}"] for endpoint, name in names.items()
        }
        all_of_them = {endpoint: status(endpoint) for endpoint in endpoints}
        assert len({found["leader"] for found in all_of_them.values()}) == 1
        revision = max(found["header"]["revision"] for found in all_of_them.values())
        it.wait(lambda: len(hashes(endpoints, revision)) > 0)
        assert len(hashes(endpoints, revision)) == 1

        # The leader dies, then one of the nats-servers too: what is left goes on.
        (leader,) = (e for e, it_is in all_of_them.items() if is_leader(it_is))
        os.kill(pids[names[leader]], signal.SIGKILL)
        others = [endpoint for endpoint in endpoints if endpoint != leader]
        for n, endpoint in enumerate(others):
            it.wait(lambda e=endpoint, n=n: takes_a_write(e, f"after-{n}", e))
            assert has(others[n - 1], f"after-{n}", endpoint)
            assert has(endpoint, "key-0", "hello")
        it.wait(lambda: f"{names[leader]} (pid {pids[names[leader]]}) ended with -9" in it.text())
        os.kill(pids["nats-3"], signal.SIGKILL)
        it.wait(lambda: takes_a_write(others[0], "two of three", "go on"))
        assert has(others[1], "two of three", "go on")
        revision = status(others[0])["header"]["revision"]
        it.wait(lambda: len(hashes(others, revision)) > 0)
        assert len(hashes(others, revision)) == 1

        found = re.search(r"^data and logs: (\S+)", it.text())
        assert found and Path(found[1]).is_dir()
        assert it.stop(signal.SIGINT) == 0
        assert it.text().endswith("\nstopped\n")
        assert all(map(is_gone, pids.values()))
        assert not Path(found[1]).exists()


def is_leader(status: dict[str, Any]) -> bool:
    return bool(status["leader"] == status["header"]["member_id"])


def test_what_is_kept_is_there_again(tmp_path: Path) -> None:
    kept = f"--keep={tmp_path / 'kept'}"
    with cluster(tmp_path, "--nodes=1", kept) as it:
        peers.etcdctl(it.endpoints(), "put", "greeting", "hello")
        # Batches are long, and each is one message.
        stream = {"name": "s", "subjects": ["s"], "num_replicas": 3, "storage": "file"}
        port = it.base + 41
        made = json.loads(request(port, "$JS.API.STREAM.CREATE.s", json.dumps(stream).encode()))
        assert len(made["cluster"]["replicas"]) == 2, made
        assert json.loads(request(port, "s", bytes(8 << 20)))["seq"] == 1
        assert it.stop(signal.SIGTERM) == 0
        assert it.text().endswith("\nstopped\n")
        assert all(map(is_gone, it.pids().values()))
    assert (tmp_path / "kept" / "jotd-1.log").is_file()
    # What the node had beside the journal is no part of what was promised.
    shutil.rmtree(tmp_path / "kept" / "jotd-1")
    with cluster(tmp_path, "--nodes=1", kept) as it:
        assert has(it.endpoints(), "greeting", "hello")
