"""`make test` runs what starts a server on both transports: none is left out or mixed up."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests import peers


def test_every_test_that_starts_a_server_is_in_the_second_run() -> None:
    makefile = (peers.ROOT / "Makefile").read_text()
    found = re.search(r"^SERVED := \$\(addprefix tests/,(.*)\)$", makefile, re.M)
    assert found
    places = [Path("tests") / name for name in found[1].split()]
    assert all((peers.ROOT / place).exists() for place in places)
    starts = {
        path.relative_to(peers.ROOT)
        for path in (peers.ROOT / "tests").rglob("*.py")
        if re.search(r"start_jotd\(|jotd_command\(", path.read_text())
    }
    # The cluster's tests are long, and about what is behind the transport: once is enough.
    starts -= {Path("tests/peers.py"), Path("tests/cluster/parts.py")}
    assert len(starts) > 10
    left_out = {path for path in starts if not any(path.is_relative_to(p) for p in places)}
    assert not left_out


def test_what_runs_once_starts_no_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "is_once", True)
    with pytest.raises(AssertionError, match="once"):
        peers.start_jotd(tmp_path / "data", journal="memory")


def test_a_server_of_this_run_is_served_by_its_transport(tmp_path: Path) -> None:
    before = peers.served[peers.transport()]
    with peers.start_jotd(tmp_path / "data", journal="memory"):
        assert peers.served[peers.transport()] == before + 1


def test_a_server_that_is_served_by_another_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = "grpcio" if peers.transport() == "native" else "native"
    monkeypatch.setattr(peers, "transport", lambda environ: other)
    # Not part of what this run says of itself.
    monkeypatch.setattr(peers, "served", peers.served.copy())
    with pytest.raises(AssertionError, match=f"should be by {other}"):
        peers.start_jotd(tmp_path / "data", journal="memory")
