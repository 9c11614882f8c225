"""What `make bench` runs, and in which order."""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path

import pytest

from bench.__main__ import BY_NAME, chosen
from bench.measure import Settings, can_measure, in_turn, measure, options_of
from bench.scenarios import ASKED, CLIENTS, FURTHER
from bench.servers import Server
from tests.peers import require_native

SETTINGS = Settings(rounds=3, duration_s=5.0, warmup_s=1.0, value_bytes=1024)


def test_the_table_has_the_lines_that_are_asked_for() -> None:
    bounds = {
        scenario.name: [
            (figure.at_least, figure.at_most, figure.absolute) for figure in scenario.figures
        ]
        for scenario in ASKED
    }
    assert bounds == {
        "put": [(4, None, False)],
        "txn": [(4, None, False)],
        "range": [(5, None, False)],
        "list": [(4, None, False)],
        "count": [(20, None, False)],
        "watch": [(None, 0.25, False), (None, None, False)],
        "put-half": [(None, 1, False)],
        "single": [(None, 1, False)],
        "renew": [(9900, None, True), (None, 25_000, True)],
        "go-put": [(2, None, False), (None, 0.25, False)],
    }


def test_names_are_unique() -> None:
    every = [scenario.name for scenario in chain(ASKED, CLIENTS, FURTHER)]
    assert len(every) == len(set(every)) == len(BY_NAME)


def test_scenarios_are_chosen_by_name_and_by_group_each_once() -> None:
    found = [scenario.name for scenario in chosen(["kube", "put", "asked"])]
    assert found[:2] == ["kube", "put"]
    assert len(found) == len(ASKED) + 1
    with pytest.raises(ValueError, match="nonsense"):
        chosen(["nonsense"])


def test_nodes_change_the_load_its_title_and_what_is_asked() -> None:
    (renew,) = chosen(["renew"], nodes=2_000)
    assert renew.load["nodes"] == 2_000
    assert "2,000 nodes" in renew.title
    assert renew.figures[0].at_least == pytest.approx(198)


def test_rounds_alternate_who_comes_first() -> None:
    servers = [Server(name, "127.0.0.1:1", 1, "") for name in ("a", "b")]
    order = [(number, server.name) for number, server in in_turn(servers, 3)]
    assert order == [(0, "a"), (0, "b"), (1, "b"), (1, "a"), (2, "a"), (2, "b")]


def test_rounds_that_write_have_keys_of_their_own_and_those_that_read_do_not() -> None:
    put, listing = BY_NAME["put"], BY_NAME["list"]
    first, second = (options_of(put, SETTINGS, number, None) for number in (0, 1))
    assert first["prefix"] != second["prefix"]
    first, second = (options_of(listing, SETTINGS, number, None) for number in (0, 1))
    assert first["prefix"] == second["prefix"]
    assert (first["fill"], second["fill"]) == (True, False)
    assert first["value-bytes"] == 700


def test_the_open_loop_has_half_of_the_peak() -> None:
    assert options_of(BY_NAME["put-half"], SETTINGS, 0, 25_000.0)["rate"] == 12_500.0
    assert "rate" not in options_of(BY_NAME["put"], SETTINGS, 0, 25_000.0)


def test_bare_handlers_stand_in_only_where_they_can() -> None:
    assert [s.name for s in ASKED if can_measure(s, "echo")] == ["put", "txn", "range"]
    assert all(can_measure(scenario, "jotd") for scenario in ASKED)


@pytest.mark.parametrize("name", [name for name, s in BY_NAME.items() if not s.go])
def test_the_generator_knows_all_options(name: str) -> None:
    require_native()
    import jotd_native

    options = options_of(BY_NAME[name], SETTINGS, 0, 1.0)
    # Wrong options are a ValueError; nobody listens there.
    with pytest.raises(RuntimeError, match="refused"):
        jotd_native.load(json.dumps({**options, "endpoints": ["127.0.0.1:1"]}))


@pytest.mark.slow
def test_a_scenario_is_measured_on_a_real_server(tmp_path: Path) -> None:
    require_native()
    settings = Settings(rounds=2, duration_s=0.3, warmup_s=0.0, value_bytes=64)
    told: list[str] = []
    runs, versions = measure(
        BY_NAME["put-1"], ["jotd"], settings, tmp_path / "a", None, told.append
    )
    assert [(run.server, run.round) for run in runs] == [("jotd", 0), ("jotd", 1)]
    assert all(run.report["requests"] > 0 and not run.report["errors"] for run in runs)
    assert all(run.report["server"]["memory_bytes"] > 1 << 20 for run in runs)
    assert set(versions) == {"jotd"}
    assert told == []
