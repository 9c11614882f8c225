from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.parts import JotdCluster
from tests.nats import NatsCluster


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[JotdCluster]:
    """Three nats-servers and three nodes, for one test."""
    nats = NatsCluster(tmp_path / "nats")
    try:
        made = JotdCluster(tmp_path, flags=["--snapshot-count=1500"], nats=nats)
        try:
            yield made
        finally:
            made.stop()
    finally:
        nats.stop()
