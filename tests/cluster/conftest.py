from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.parts import JotdCluster
from tests.nats import NatsCluster

TRIMMING = "--snapshot-count=1500"


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsCluster]:
    """Three nats-servers, as the test before left them."""
    made = NatsCluster(tmp_path_factory.mktemp("nats"))
    try:
        yield made
    finally:
        made.stop()


@pytest.fixture(scope="module")
def nats(servers: NatsCluster) -> NatsCluster:
    """Three nats-servers that run."""
    for server in servers.servers:
        if not server.alive:
            server.restart()
    servers.wait_ready()
    return servers


@pytest.fixture
def cluster(tmp_path: Path, nats: NatsCluster) -> Iterator[JotdCluster]:
    """Three nodes for one test."""
    made = JotdCluster(tmp_path, flags=[TRIMMING], nats=nats)
    try:
        yield made
    finally:
        made.stop()


@pytest.fixture(scope="module")
def cuttable(tmp_path_factory: pytest.TempPathFactory, nats: NatsCluster) -> Iterator[JotdCluster]:
    """Three nodes for all tests of a module, each with a way to NATS that can be cut."""
    made = JotdCluster(
        tmp_path_factory.mktemp("nodes"), flags=["--snapshot-count=300"], nats=nats, cuttable=True
    )
    try:
        yield made
    finally:
        made.stop()
