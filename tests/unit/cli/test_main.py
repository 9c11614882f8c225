"""The command as a process: exit codes, messages, start and end of a server."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from kvstore.pb import rpc_pb2
from tests.peers import Process, jotd_command, start_jotd


def jotd(*argv: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*jotd_command(), *argv], capture_output=True, text=True, timeout=60, check=False, cwd=cwd
    )


def lines(server: Process) -> list[dict[str, Any]]:
    return [json.loads(line) for line in server.log_text().splitlines()]


def unary(server: Process, method: str) -> tuple[grpc.Channel, Callable[..., bytes]]:
    channel = grpc.insecure_channel(server.endpoint)
    return channel, channel.unary_unary(f"/etcdserverpb.{method}")


def test_versions() -> None:
    for argv in (("version",), ("--version",)):
        done = jotd(*argv)
        assert done.returncode == 0
        assert done.stdout.startswith("jotd ")
        assert "etcd API 3.7" in done.stdout
        assert re.search(r"^hot modules (compiled|interpreted)$", done.stdout, re.M)
        assert re.search(r"^transport (native: it is|grpcio: .* not) installed", done.stdout, re.M)


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        ((), "usage: jotd"),
        (("nonsense",), "invalid choice: 'nonsense'"),
        (("--data-dir=x",), "jotd serve --data-dir=x"),
        (("serve", "--nonsense"), "flag provided but not defined: -nonsense"),
        (("serve", "--unsafe-no-fsync"), "always on disk"),
        (("serve", "--log-outputs=/no/such/place"), "--log-outputs"),
        (("journal",), "usage: jotd journal"),
        (("bench",), "usage: jotd bench"),
    ],
)
def test_wrong_usage_is_exit_code_2(argv: tuple[str, ...], text: str, tmp_path: Path) -> None:
    done = jotd(*argv, cwd=tmp_path)
    assert done.returncode == 2
    assert text in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_help() -> None:
    done = jotd("serve", "--help")
    assert done.returncode == 0
    assert "--listen-client-urls" in done.stdout


def test_a_server_starts_says_so_and_ends_on_sigterm(tmp_path: Path) -> None:
    with start_jotd(tmp_path / "data", ["--election-timeout=5", "--name=m1"]) as server:
        ready = lines(server)[-1]
        assert ready["msg"] == "ready to serve client requests"
        assert ready["clients"] == [server.url]
        assert ready["level"] == "info"
        warnings = [line["msg"] for line in lines(server) if line["level"] == "warn"]
        ignored = [text for text in warnings if "is ignored" in text]
        assert len(ignored) == 1 and "--election-timeout" in ignored[0]
        assert (tmp_path / "data").stat().st_mode & 0o777 == 0o700
        channel, put = unary(server, "KV/Put")
        with channel:
            put(rpc_pb2.PutRequest(key=b"a", value=b"1").SerializeToString(), timeout=10)
            assert server.metrics_url is not None
            metrics = httpx.get(server.metrics_url + "/metrics", trust_env=False).text
            assert "etcd_mvcc_put_total 1.0" in metrics
            assert "etcd_debugging_mvcc_current_revision 2.0" in metrics
            # Known before the first call.
            assert 'grpc_method="LeaseRevoke"' in metrics
            server.signal(signal.SIGTERM)
            assert server.wait() == 0
        assert "shutting down" in server.log_text()


def test_ctrl_c_ends_open_streams_and_an_idle_server_at_once(tmp_path: Path) -> None:
    with (
        start_jotd(tmp_path / "data", ["--drain-timeout=60s"], journal="memory") as server,
        grpc.insecure_channel(server.endpoint) as channel,
    ):
        request = rpc_pb2.WatchRequest(create_request=rpc_pb2.WatchCreateRequest(key=b"a"))
        watch = channel.stream_stream("/etcdserverpb.Watch/Watch")(
            iter([request.SerializeToString()]), timeout=60
        )
        assert next(watch)
        server.signal(signal.SIGINT)
        assert server.wait(30) == 0


def test_what_was_written_is_there_after_kill_9(tmp_path: Path) -> None:
    with start_jotd(tmp_path / "data") as server:
        channel, put = unary(server, "KV/Put")
        with channel:
            put(rpc_pb2.PutRequest(key=b"a", value=b"1").SerializeToString(), timeout=10)
        server.kill9()
        server.restart()
        channel, get = unary(server, "KV/Range")
        with channel:
            answer = rpc_pb2.RangeResponse.FromString(
                get(rpc_pb2.RangeRequest(key=b"a").SerializeToString(), timeout=10)
            )
        assert [kv.value for kv in answer.kvs] == [b"1"]


@pytest.mark.slow
def test_a_second_server_gets_neither_the_port_nor_the_data(tmp_path: Path) -> None:
    with start_jotd(tmp_path / "data") as server:
        second = jotd(
            "serve",
            f"--data-dir={tmp_path}/other",
            f"--listen-client-urls={server.url}",
            "--listen-metrics-urls=",
        )
        assert second.returncode == 1
        assert "address already in use" in second.stderr
        second = jotd(
            "serve",
            f"--data-dir={tmp_path}/third",
            "--listen-client-urls=http://127.0.0.1:0",
            f"--listen-metrics-urls={server.metrics_url}",
        )
        assert second.returncode == 1
        assert "address already in use" in second.stderr
        second = jotd(
            "serve",
            f"--data-dir={tmp_path}/data",
            "--listen-client-urls=http://127.0.0.1:0",
            "--listen-metrics-urls=",
        )
        assert second.returncode == 1
        assert f"in use by process {server.pid}" in second.stderr
        assert server.alive


@pytest.mark.parametrize(
    ("argv", "code", "text"),
    [
        (("--journal=nonsense",), 1, "no journal backend 'nonsense'"),
        (("--partitions=/no/such/file",), 1, "No such file"),
        (("--partitions={table}",), 2, "unknown key 'shards'"),
        (("--listen-client-urls=http://192.0.2.1:0",), 1, "bind: "),
    ],
)
def test_what_only_shows_at_start(
    argv: tuple[str, ...], code: int, text: str, tmp_path: Path
) -> None:
    (tmp_path / "table").write_text("shards = 1")
    words = [word.replace("{table}", f"{tmp_path}/table") for word in argv]
    done = jotd("serve", f"--data-dir={tmp_path}/data", "--listen-metrics-urls=", *words)
    assert (done.returncode, text in done.stderr) == (code, True), done.stderr


def test_a_second_signal_does_not_wait(tmp_path: Path) -> None:
    with (
        start_jotd(tmp_path / "data", ["--drain-timeout=60s"], journal="memory") as server,
        grpc.insecure_channel(server.endpoint) as channel,
    ):
        # A stream that lasts through half of the drain.
        health = channel.unary_stream("/grpc.health.v1.Health/Watch")(b"", timeout=60)
        assert next(health)
        server.signal(signal.SIGTERM)
        while "shutting down" not in server.log_text():
            time.sleep(0.02)
        if server.alive:
            server.signal(signal.SIGTERM)
        assert server.wait(20) in (0, 128 + signal.SIGTERM)
