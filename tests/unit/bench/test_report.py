"""The arithmetic of the table, and what is asked of its figures."""

from __future__ import annotations

from typing import Any

import pytest

from bench import report
from bench.measure import Run, peak_of
from bench.report import Line
from bench.scenarios import Figure, Scenario, cpu_us, event_alone_cpu_us, event_cpu_us, rate

NAMES = ["jotd", "etcd"]


def found(rate: float, cpu: float = 1.0) -> dict[str, Any]:
    return {"rate": rate, "server": {"cpu_us": cpu, "memory_bytes": 3 << 20}}


def scenario(name: str, **bounds: Any) -> Scenario:
    return Scenario(name, f"the {name}", {}, (Figure("a second", rate, "{:,.1f}", **bounds),))


def runs(name: str, **rates: list[float]) -> list[Run]:
    return [
        Run(name, server, number, found(value, value / 10))
        for server, values in rates.items()
        for number, value in enumerate(values)
    ]


def line(figure: Figure, **values: float) -> Line:
    return Line(Scenario("a", "a", {}, (figure,)), figure, values, {}, {})


def test_medians_are_of_each_number_by_itself() -> None:
    some = runs("a", jotd=[30.0, 10.0, 20.0], etcd=[1.0, 2.0])
    some[0] = Run("a", "jotd", 0, found(30.0, 0.0))
    assert report.median(some, "jotd", rate) == 20.0
    assert report.median(some, "jotd", cpu_us) == 1.0
    assert report.median(some, "etcd", rate) == 1.5
    assert report.median(some, "echo", rate) is None


def test_lines_keep_the_order_and_leave_out_what_was_not_measured() -> None:
    scenarios = [scenario("b"), scenario("c"), scenario("a")]
    some = [*runs("a", jotd=[4.0], etcd=[2.0]), *runs("b", jotd=[6.0])]
    first, second = report.lines(scenarios, some, NAMES)
    assert (first.scenario.name, dict(first.values)) == ("b", {"jotd": 6.0})
    assert (second.scenario.name, dict(second.values)) == ("a", {"jotd": 4.0, "etcd": 2.0})
    assert dict(second.memory_mib) == {"jotd": 3.0, "etcd": 3.0}


def test_a_ratio_needs_two_numbers() -> None:
    figure = Figure("a", rate, "{}")
    assert report.ratio(line(figure, jotd=6.0, etcd=1.5), "jotd", "etcd") == 4.0
    assert report.ratio(line(figure, jotd=6.0), "jotd", "etcd") is None
    assert report.ratio(line(figure, jotd=6.0, etcd=0.0), "jotd", "etcd") is None
    assert report.ratio(line(figure, etcd=6.0), "jotd", "etcd") is None
    assert report.ratio(line(figure, jotd=6.0), "jotd", None) is None


@pytest.mark.parametrize(
    ("bounds", "jotd", "reached"),
    [
        ({"at_least": 4}, 8.0, True),
        ({"at_least": 4}, 7.9, False),
        ({"at_most": 0.25}, 0.5, True),
        ({"at_most": 0.25}, 0.51, False),
        ({"at_most": 25, "absolute": True}, 25.0, True),
        ({"at_most": 25, "absolute": True}, 25.1, False),
        ({"at_least": 1, "at_most": 2}, 6.0, False),
        ({}, 8.0, None),
    ],
)
def test_what_is_asked_for_is_reached_or_not(
    bounds: dict[str, Any], jotd: float, reached: bool | None
) -> None:
    figure = Figure("a", rate, "{}", **bounds)
    assert report.met(line(figure, jotd=jotd, etcd=2.0), "jotd", "etcd") is reached


def test_what_was_not_measured_is_not_reached_nor_missed() -> None:
    figure = Figure("a", rate, "{}", at_least=4)
    assert report.met(line(figure, jotd=8.0), "jotd", "etcd") is None


def test_the_table_says_all_of_it() -> None:
    scenarios = [scenario("a", at_least=4), scenario("b")]
    some = [*runs("a", jotd=[3000.0], etcd=[1000.0]), *runs("b", jotd=[5.0])]
    text = report.table(report.lines(scenarios, some, NAMES), NAMES).splitlines()
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in text]
    assert len({len(row) for row in text}) == 1
    assert cells[0][:7] == ["scenario", "figure", *NAMES, "jotd / etcd", "asked", "reached"]
    assert cells[2][1:7] == ["a second", "3,000.0", "1,000.0", "3.00", "≥ 4", "**no**"]
    assert cells[3][:7] == ["the b", "a second", "5.0", "-", "-", "", ""]


def test_nothing_is_asked_of_other_servers() -> None:
    names = ["jotd-grpcio", "echo"]
    some = [Run("a", name, 0, found(2.0)) for name in names]
    text = report.table(report.lines([scenario("a", at_least=4)], some, names), names)
    assert "jotd-grpcio / echo" in text
    assert "asked" not in text


def test_compared_with_etcd_or_else_the_last() -> None:
    assert report.baseline(["jotd", "etcd", "echo"]) == "etcd"
    assert report.baseline(["jotd", "jotd-grpcio", "echo"]) == "echo"
    assert report.baseline(["jotd"]) is None
    one = report.lines([scenario("a")], runs("a", jotd=[1.0]), ["jotd"])
    assert "/" not in report.table(one, ["jotd"])


def test_the_peak_is_the_median_of_etcds_closed_loop() -> None:
    some = [*runs("put", etcd=[1.0, 5.0, 3.0], jotd=[9.0]), *runs("txn", etcd=[7.0])]
    assert peak_of(some) == 3.0
    assert peak_of(runs("put", jotd=[9.0])) is None


def test_an_events_cpu_is_all_that_was_used_by_all_that_was_delivered() -> None:
    one = {"requests": 10, "events": 1000, "server": {"cpu_us": 50.0, "memory_bytes": 0}}
    assert event_cpu_us(one) == 0.5
    assert event_cpu_us({**one, "events": 0}) == 500.0
    unwatched = {"requests": 7, "events": 0, "server": {"cpu_us": 20.0, "memory_bytes": 0}}
    assert event_alone_cpu_us({**one, "without": unwatched}) == 0.3
