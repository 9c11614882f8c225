"""Members that are gone for good, taken off the list by etcd's own command line."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from tests import peers
from tests.cluster.parts import JotdCluster
from tests.nats import NatsCluster
from tests.peers import Process

pytestmark = [pytest.mark.slow, pytest.mark.timeout(150)]

SETTLED_S = 20.0


def listed(node: Process) -> dict[str, tuple[int, list[str]]]:
    """By name: id and client URLs, as `etcdctl member list` has them."""
    done = peers.etcdctl(node.endpoint, "member", "list", "-w", "json")
    members: list[dict[str, Any]] = json.loads(done.stdout)["members"]
    return {one["name"]: (one["ID"], one.get("clientURLs", [])) for one in members}


def settled(node: Process, names: set[str]) -> dict[str, tuple[int, list[str]]]:
    """The list, once it has these names: a node looks at the control journal now and again."""
    deadline = time.monotonic() + SETTLED_S
    while set(found := listed(node)) != names:
        assert time.monotonic() < deadline, found
        time.sleep(0.05)
    return found


def test_etcdctl_removes_a_member_that_is_gone_and_none_that_lives(
    tmp_path: Path, nats: NatsCluster
) -> None:
    cluster = JotdCluster(tmp_path, nats=nats)
    try:
        gone, *others = cluster.nodes
        everybody = settled(gone, {"node-0", "node-1", "node-2"})

        def remove(node: Process, member: int) -> tuple[int, str]:
            done = peers.etcdctl(node.endpoint, "member", "remove", f"{member:x}", check=False)
            return done.returncode, done.stdout + done.stderr

        for node in others:
            for name in everybody:
                code, text = remove(node, everybody[name][0])
                assert code and "the member is live" in text, text
        assert settled(others[0], set(everybody)) == everybody

        # Whether it led or not: the others elect one of them.
        gone.kill9()
        member, _ = everybody["node-0"]
        peers.etcdctl(others[1].endpoint, "--command-timeout=30s", "put", "k", "v")
        code, text = remove(others[0], member)
        assert not code and f"Member {member:16x} removed from cluster" in text, text
        left = {name: one for name, one in everybody.items() if name != "node-0"}
        for node in others:
            assert settled(node, set(left)) == left
            code, text = remove(node, member)
            assert code and "etcdserver: member not found" in text, text

        # It may come back, and is the member that it was.
        gone.restart()
        assert settled(others[1], set(everybody)) == everybody
        assert peers.etcdctl(gone.endpoint, "get", "k", "--print-value-only").stdout == "v\n"
    finally:
        cluster.stop()
