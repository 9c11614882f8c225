"""How a cluster to measure is started, and what is said when it is not."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from bench import members, programs
from bench.members import Member, StartFailed
from tests.peers import require


def shell(name: str, place: Path, script: str) -> Member:
    member = Member(name, ["sh", "-c", script], "", place / f"{name}.log")
    member.start()
    return member


def test_ports_are_none_that_a_connection_is_given() -> None:
    ports = programs.free_ports(40)
    assert len(set(ports)) == 40
    given = Path("/proc/sys/net/ipv4/ip_local_port_range")
    if given.exists() and int(given.read_text().split()[0]) > 12_000:
        assert max(ports) < int(given.read_text().split()[0])
    for port in ports:
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", port))


def test_a_start_that_fails_is_tried_again_from_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places: list[Path] = []
    left: list[Member] = []

    def start(place: Path, started: list[Member]) -> list[Member]:
        assert not started and not list(place.iterdir())
        places.append(place)
        started.append(shell("steady", place, "sleep 600"))
        if len(places) == 1:
            left.extend(started)
            started.append(shell("ends", place, "echo the port is taken; exit 3"))
        members.wait_until(lambda: len(places) == 2, started, "shells")
        return list(started)

    with members.running("shells", start, tmp_path) as found:
        assert [member.name for member in found] == ["steady"]
        assert [member.runs for member in [*found, *left]] == [True, False]
    assert [member.runs for member in found] == [False]
    assert len(set(places)) == 2
    shown = capsys.readouterr().err
    assert "ends ended with 3; its log ends:\n    the port is taken\n" in shown
    assert "shells: once more" in shown


def test_a_start_that_never_succeeds_ends_with_the_logs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(members, "START_S_MAX", 0.3)
    tries: list[Member] = []

    def start(place: Path, started: list[Member]) -> list[Member]:
        started.append(shell("stuck", place, "sleep 600"))
        tries.extend(started)
        members.wait_until(lambda: False, started, "shells")
        return started

    with (
        pytest.raises(StartFailed, match=r"(?s)shells are not ready.*stuck runs; its log ends:"),
        members.running("shells", start, tmp_path),
    ):
        pass
    assert len(tries) == members.STARTS_MAX
    assert not any(member.runs for member in tries)


@pytest.mark.slow
def test_a_port_that_was_taken_meanwhile_costs_one_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three real members of etcd, one of which does not get its port at first."""
    require("etcd")
    asked: list[int] = []
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()

        def ports(count: int) -> list[int]:
            asked.append(count)
            found = programs.free_ports(count)
            return [*found[:-1], taken.getsockname()[1]] if len(asked) == 1 else found

        monkeypatch.setattr(members, "free_ports", ports)
        with members.etcd(tmp_path) as found:
            assert len(found) == 3 and all(member.runs for member in found)
    assert len(asked) == 2
    assert "address already in use" in capsys.readouterr().err
