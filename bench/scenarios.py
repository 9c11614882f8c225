"""What is measured, which figures of it count, and what is asked of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

#: What the generator reports of one run (``native/load``), or `bench.goclient` in the same form.
Report = Mapping[str, Any]


@dataclass(frozen=True)
class Figure:
    """One number of a run, and what is asked of it.

    The bounds are for jotd's number divided by etcd's or, if `absolute`, for jotd's alone.
    """

    label: str
    of: Callable[[Report], float]
    form: str
    """How it is shown: a format string."""
    at_least: float | None = None
    at_most: float | None = None
    absolute: bool = False


@dataclass(frozen=True)
class Scenario:
    """One kind of load. `load` has options of the generator, by their names."""

    name: str
    title: str
    load: Mapping[str, Any]
    figures: tuple[Figure, ...]
    keeps: bool = False
    """Rounds share what was written before the first; else each has keys of its own, since an
    update begins with a create."""
    half_of_peak: bool = False
    """An open loop at half the rate of puts that etcd does in a closed one."""
    go: bool = False
    """By the Go client instead of the generator."""
    echo: bool = False
    """Bare handlers that answer fixed bytes can stand in for a server."""
    without: Mapping[str, Any] | None = None
    """Options that make a second run of each, whose report stands in the first as `without`."""


def rate(report: Report) -> float:
    """Requests a second."""
    return float(report["rate"])


def p50_us(report: Report) -> float:
    """Half of the latencies are at most this, in microseconds."""
    return float(report["latency"]["p50_us"])


def p99_us(report: Report) -> float:
    """99 of 100 latencies are at most this, in microseconds."""
    return float(report["latency"]["p99_us"])


def cpu_us(report: Report) -> float:
    """The server's processor time a request, in microseconds."""
    return float(report["server"]["cpu_us"])


def event_cpu_us(report: Report) -> float:
    """The server's processor time a delivered event, that of the writes included."""
    return cpu_us(report) * float(report["requests"]) / max(float(report["events"]), 1.0)


def event_alone_cpu_us(report: Report) -> float:
    """The same without that of the writes: it is taken from a run that nobody watches."""
    events = float(report["events"]) / max(float(report["requests"]), 1.0)
    return (cpu_us(report) - cpu_us(report["without"])) / max(events, 1.0)


def event_rate(report: Report) -> float:
    """Events that watchers received a second."""
    return float(report["event_rate"])


def memory_mib(report: Report) -> float:
    """The server's resident memory at the end of the run."""
    return float(report["server"]["memory_bytes"]) / 2**20


def _rate(what: str, at_least: float | None = None) -> tuple[Figure, ...]:
    return (Figure(f"{what} a second", rate, "{:,.0f}", at_least=at_least),)


MANY = {"conns": 8, "concurrency": 256}
#: Objects of the lists and counts.
OBJECTS = {"keys": 20_000, "value-bytes": 700}
NODES = 100_000


def renew(nodes: int) -> Scenario:
    """The lease renewals of so many nodes. etcd is asked for nothing: it may not hold them."""
    return Scenario(
        "renew",
        f"lease renewals of {nodes:,} nodes, open loop, 15 watch streams",
        {"scenario": "renew", "conns": 8, "nodes": nodes, "watchers": 15},
        (
            Figure("renewals a second", rate, "{:,.0f}", at_least=nodes / 10 * 0.99, absolute=True),
            Figure("p99, us", p99_us, "{:,.0f}", at_most=25_000, absolute=True),
        ),
        keeps=True,
    )


def kube(nodes: int) -> Scenario:
    """All that so many nodes and five apiservers do."""
    return Scenario(
        "kube",
        f"all that {nodes:,} nodes and five apiservers do, open loop",
        {"scenario": "kube", "conns": 8, "nodes": nodes},
        (Figure("requests a second", rate, "{:,.0f}"), Figure("p99, us", p99_us, "{:,.0f}")),
        keeps=True,
    )


#: The table of figures that are asked for, line by line.
ASKED = (
    Scenario("put", "put, 256 at once", {"scenario": "put", **MANY}, _rate("puts", 4), echo=True),
    Scenario(
        "txn",
        "compare, put, else range; 256 at once",
        {"scenario": "txn", **MANY},
        _rate("transactions", 4),
        echo=True,
    ),
    Scenario(
        "range",
        "linearizable range of one key, 256 at once",
        {"scenario": "range", **MANY},
        _rate("ranges", 5),
        keeps=True,
        echo=True,
    ),
    Scenario(
        "list",
        "list of 20,000 x 700 B in pages of 500",
        {"scenario": "list", "conns": 8, "concurrency": 8, "limit": 500, **OBJECTS},
        _rate("lists", 4),
        keeps=True,
    ),
    Scenario(
        "count",
        "count_only over 20,000 keys, 64 at once",
        {"scenario": "count", "conns": 8, "concurrency": 64, **OBJECTS},
        _rate("counts", 20),
        keeps=True,
    ),
    Scenario(
        "watch",
        "100 watchers of one prefix, 1,000 puts a second",
        # The same rate for all, so that none saves by having more events in one message.
        {"scenario": "watch", "conns": 8, "watchers": 100, "rate": 1_000.0, "value-bytes": 512},
        (
            Figure("server CPU an event, us", event_cpu_us, "{:,.2f}", at_most=0.25),
            Figure("that of the puts taken off, us", event_alone_cpu_us, "{:,.2f}"),
        ),
        without={"watchers": 0},
    ),
    Scenario(
        "put-half",
        "put at half of etcd's peak rate, open loop",
        {"scenario": "put", **MANY},
        (Figure("p99, us", p99_us, "{:,.0f}", at_most=1),),
        half_of_peak=True,
    ),
    Scenario(
        "single",
        "put, one client, one at a time",
        {"scenario": "put", "conns": 1, "concurrency": 1},
        (Figure("p50, us", p50_us, "{:,.0f}", at_most=1),),
    ),
    renew(NODES),
    Scenario(
        "go-put",
        "put by the Go client, 256 at once",
        MANY,
        (
            Figure("puts a second", rate, "{:,.0f}", at_least=2),
            Figure("server CPU a put, us", cpu_us, "{:,.1f}", at_most=0.25),
        ),
        go=True,
    ),
)

#: Puts by so many clients at once: for the plot, not for the table.
CLIENTS = tuple(
    Scenario(
        f"put-{clients}",
        f"put, {clients} at once",
        {"scenario": "put", "conns": min(clients, 8), "concurrency": clients},
        _rate("puts"),
        echo=True,
    )
    for clients in (1, 4, 16, 64, 256, 1024)
)

#: Measured only when it is asked for by name.
FURTHER = (
    kube(10_000),
    Scenario(
        "list-whole",
        "list of 100,000 x 1 KiB in one answer, one client",
        {
            "scenario": "list",
            "conns": 1,
            "concurrency": 1,
            "limit": 0,
            "keys": 100_000,
            "value-bytes": 1024,
        },
        (Figure("p50, ms", lambda report: p50_us(report) / 1e3, "{:,.0f}", at_most=1),),
        keeps=True,
    ),
    Scenario(
        "watch-busy",
        "100 watchers of one prefix, puts 64 at once",
        {"scenario": "watch", "conns": 8, "watchers": 100, "concurrency": 64, "value-bytes": 512},
        (
            Figure("events a second", event_rate, "{:,.0f}"),
            Figure("server CPU an event, us", event_cpu_us, "{:,.2f}"),
        ),
    ),
)

#: Those that can be had for another number of nodes, by name.
SIZED = {"renew": renew, "kube": kube}
