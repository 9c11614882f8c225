"""What tools/cluster would start; tests/e2e starts it."""

from __future__ import annotations

import signal
import socket
import time
from pathlib import Path

import pytest

from bench.script import cluster_script
from kvstore.cli.config import serve_config
from kvstore.cli.flags import FLAGS

cluster = cluster_script()

#: Where people have something running: etcd, jotd, nats-server, kube-apiserver, docker compose.
TAKEN = {2379, 2380, 2381, 4222, 6222, 8222, 6443, 22379, 22381, 32379, 32381, 9090, 3000}


def ports(nodes: int, base: int) -> list[int]:
    servers = cluster.local_nats(base, Path("d"))
    here = cluster.local_nodes(nodes, base, Path("d"))
    return [
        *(port for s in servers for port in (s.port, s.route_port, s.monitor_port)),
        *(port for n in here for port in (n.port, n.metrics_port)),
    ]


@pytest.mark.parametrize("base", [1024, cluster.BASE_PORT, 65436])
def test_ports_are_a_hundred_and_never_the_same(base: int) -> None:
    found = ports(cluster.NODES_MAX, base)
    assert len(found) == len(set(found))
    assert min(found) > base and max(found) < base + 100
    assert max(found) < 65536


def test_the_usual_ports_are_left_alone() -> None:
    mine = set(range(cluster.BASE_PORT, cluster.BASE_PORT + 100))
    assert not mine & TAKEN
    # From here on Linux gives ports to whoever asks for any.
    assert max(mine) < 32768


def test_jotd_takes_what_the_script_gives(tmp_path: Path) -> None:
    servers = cluster.local_nats(cluster.BASE_PORT, tmp_path)
    for here in cluster.local_nodes(3, cluster.BASE_PORT, tmp_path):
        program, word, *flags = cluster.node("jotd", here, servers)
        assert (program, word) == ("jotd", "serve")
        assert {flag.removeprefix("--").partition("=")[0] for flag in flags} <= FLAGS.keys()
        config = serve_config(flags, {})
        assert config is not None and not config.warnings
        assert config.data_dir == tmp_path / here.name
        assert config.journal == "nats://127.0.0.1:23741,127.0.0.1:23742,127.0.0.1:23743/jotd"
        # Flags behind -- come last, and the last one counts.
        config = serve_config([*flags, "--journal=memory"], {})
        assert config is not None and config.journal == "memory"


def test_options() -> None:
    options = cluster.parse([])
    assert (options.nodes, options.base_port, options.keep, options.flags) == (3, 23700, None, [])
    options = cluster.parse(["--nodes", "5", "--keep", "d", "--", "--log-level=debug"])
    assert (options.nodes, options.keep) == (5, Path("d"))
    assert options.flags == ["--log-level=debug"]
    for wrong in (["--nodes=0"], ["--nodes=20"], ["--base-port=80"], ["--base-port=65500"]):
        with pytest.raises(SystemExit):
            cluster.parse(wrong)


def test_a_port_in_use_is_named() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        port = sock.getsockname()[1]
        with pytest.raises(cluster.ClusterError, match=f"port {port} cannot be had"):
            cluster.require_free([port])
    cluster.require_free([port])


def test_data_goes_unless_it_is_kept(tmp_path: Path) -> None:
    with cluster.data_directory(None) as found:
        assert found.is_dir()
    assert not found.exists()
    with cluster.data_directory(tmp_path / "kept") as found:
        (found / "x").touch()
    assert (tmp_path / "kept" / "x").exists()


def test_a_process_that_ends_early_is_named_with_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Quiet:
        def check(self) -> None: ...

    child = cluster.Child("jotd-1", ["sh", "-c", "echo why; exit 3"], tmp_path / "log")
    with pytest.raises(cluster.ClusterError, match=r"(?s)jotd-1 ended with 3.*why"):
        cluster.wait_until(lambda: False, [child], "nodes are", Quiet())
    child.stop()


def test_a_process_that_does_not_stop_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cluster, "STOP_SECONDS_MAX", 0.2)
    script = "trap '' TERM; echo up; while :; do sleep 0.05; done"
    child = cluster.Child("stubborn", ["sh", "-c", script], tmp_path / "log")
    while "up" not in child.log.read_text():
        time.sleep(0.01)
    child.stop()
    assert child.process.returncode == -signal.SIGKILL
    assert "does not stop: killed" in capsys.readouterr().out
