"""``jotd bench SCENARIO``: load on etcd v3 endpoints, by the generator of jotd_native.

The generator makes all of the load in native code; here are its options, a progress bar, and what
it found for a person to read. Exit codes: 0 good, 1 the load could not be made or no request
succeeded, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from kvstore.cli import values

EXIT_OK = 0
EXIT_FAILED = 1

#: What a scenario does, by its name.
SCENARIOS: Mapping[str, str] = {
    "put": "put keys",
    "txn": "kube-apiserver's update: if the mod revision is this, put; else get",
    "range": "get single keys, linearizable",
    "count": "count_only over all keys",
    "list": "list all keys, in pages of --limit",
    "range-stream": "list all keys with RangeStream (etcd 3.7)",
    "watch": "put keys while --watchers streams watch all of them",
    "keepalive": "keep leases alive, each worker its own on a stream",
    "mixed": "nine gets to one update",
    "kube": "what --nodes Kubernetes nodes and five apiservers do: lease renewals, node status, "
    "pods, events, paged lists, watch streams",
    "renew": "the lease renewals of kube alone",
    "fill": "write --keys keys, once",
}

NOT_INSTALLED = """\
jotd bench: jotd_native is not installed, and it has the load generator.
It comes with jotd where it is installed with Rust (https://rustup.rs) at hand: `make native` in a
checkout, or `pip install` from there once more."""

#: Told the units of work done, and the part of the time that is over.
Progress = Callable[[int, float], object]


def main(words: Sequence[str]) -> int:
    """Runs the command with its arguments; returns its exit code."""
    options = parser().parse_args(words)
    try:
        import jotd_native
    except ImportError:
        print(NOT_INSTALLED, file=sys.stderr)
        return EXIT_FAILED
    wanted = json.dumps(generator_options(options))
    try:
        with _progress(options.scenario) as progress:
            report = json.loads(jotd_native.load(wanted, progress))
    except (RuntimeError, ValueError) as error:
        print(f"jotd bench: {error}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        print("jotd bench: ended before it was done", file=sys.stderr)
        return EXIT_FAILED
    print(json.dumps(report) if options.json else text(report))
    return EXIT_OK if report["requests"] else EXIT_FAILED


def parser() -> argparse.ArgumentParser:
    """The arguments; those of the generator have its names (``native/load``)."""
    parser = argparse.ArgumentParser(
        prog="jotd bench",
        description="Makes load on etcd v3 endpoints, and says how they took it.",
        epilog="scenarios:\n"
        + "\n".join(f"  {name:<14}{what}" for name, what in SCENARIOS.items())
        + "\n\nWith --rate a latency counts from when a request was due, so that a server that "
        "stalls is\ncharged for all that had to wait. Times are shown as they fit, in JSON in "
        "microseconds.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("scenario", metavar="SCENARIO", choices=SCENARIOS, help="one of those below")
    add(
        "--endpoints",
        type=_endpoints,
        default=["127.0.0.1:2379"],
        metavar="HOST:PORT,...",
        help="connections are spread over them; without TLS (127.0.0.1:2379)",
    )
    add(
        "--watch-endpoints",
        type=_endpoints,
        default=[],
        metavar="HOST:PORT,...",
        help="watch, kube, renew: the servers that are watched, if they are others, with as many "
        "connections again",
    )
    add("--conns", type=values.positive, default=8, metavar="N", help="connections (8)")
    add(
        "--concurrency",
        type=values.unsigned,
        default=0,
        metavar="N",
        help="requests under way at once; with --rate at most (64; with --rate 1024)",
    )
    add(
        "--rate",
        type=_not_negative,
        default=0.0,
        metavar="N",
        help="requests a second, begun on time; 0: the next when the last is done. kube, renew: "
        "what the nodes make",
    )
    seconds: dict[str, Any] = {"type": _not_negative, "metavar": "SECONDS"}
    add("--duration", dest="duration_s", default=5.0, help="to measure (5)", **seconds)
    add("--warmup", dest="warmup_s", default=1.0, help="before that (1)", **seconds)
    add("--keys", type=values.positive, default=10_000, metavar="N", help="different keys (10000)")
    add(
        "--value-bytes",
        type=values.unsigned,
        default=1024,
        metavar="N",
        help="size of a value (1024); kube has its own",
    )
    add(
        "--limit",
        type=values.unsigned,
        default=500,
        metavar="N",
        help="list: objects a page; 0: all in one answer (500)",
    )
    add(
        "--watchers",
        type=values.unsigned,
        metavar="N",
        help="streams that watch (watch: 100; kube, renew: 15)",
    )
    add("--nodes", type=values.positive, default=1000, metavar="N", help="kube, renew (1000)")
    add("--prefix", default="/registry/pods/load/", help="all keys begin with it; not kube's")
    add(
        "--no-fill",
        dest="fill",
        action="store_false",
        help="the keys to read, or kube's nodes, are there already",
    )
    add("--threads", type=values.positive, default=1, metavar="N", help="that make the load (1)")
    add(
        "--server-pid",
        dest="pid",
        type=values.unsigned,
        default=0,
        metavar="PID",
        help="the server's process, if it is on this machine: shows its CPU and memory",
    )
    add("--json", action="store_true", help="print what was found as one JSON object")
    return parser


def generator_options(options: argparse.Namespace) -> dict[str, Any]:
    """The options as `jotd_native.load` wants them."""
    named = {name: value for name, value in vars(options).items() if name != "json"}
    return {name.replace("_", "-"): value for name, value in named.items()}


def _endpoints(text: str) -> list[str]:
    found = [part.removeprefix("http://").rstrip("/") for part in text.split(",")]
    for endpoint in found:
        host, _, port = endpoint.rpartition(":")
        if not host or not port.isdigit():
            raise argparse.ArgumentTypeError(f"{endpoint!r} is not HOST:PORT")
    return found


def _not_negative(text: str) -> float:
    value = float(text)
    # The comparison refuses NaN as well.
    if not 0 <= value < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to a billion")
    return value


@contextmanager
def _progress(scenario: str) -> Iterator[Progress]:
    """A progress bar on a terminal; else nothing, but a way for an interrupt to end the load."""
    if not sys.stderr.isatty():
        yield lambda done, part: None
        return
    try:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
    except ImportError:
        yield lambda done, part: None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[done]:,} done"),
    )
    # Gone when it is done: the result is what stays.
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(scenario, total=1.0, done=0)
        yield lambda done, part: bar.update(task, completed=part, done=done)


def text(report: Mapping[str, Any]) -> str:
    """What the generator reported, for a person."""
    asked = report["options"]
    at_once = f"{asked['concurrency']} at once"
    how = f"{asked['rate']:,.0f} due a second, at most {at_once}" if asked["rate"] else at_once
    if asked["scenario"] == "fill":
        how = f"{asked['keys']:,} keys"
    lines = [
        f"{asked['scenario']} on {', '.join(asked['endpoints'])}: "
        f"{asked['conns']} connections, {how}, {report['seconds']:.1f} s",
        _line("done", f"{report['requests']:,}, {report['rate']:,.1f} a second"),
    ]
    if report["latency"]["count"]:
        lines.append(_line("latency", _latencies(report["latency"])))
    for name, summary in report["classes"].items():
        lines.append(_line(f"  {name}", f"{_latencies(summary)}  ({summary['count']:,})"))
    if report["received_mb_s"]:
        lines.append(_line("received", f"{report['received_mb_s']:,.1f} MB a second"))
    if report["events"]:
        lines.append(_line("events", f"{report['events']:,}, {report['event_rate']:,.1f} a second"))
        lines.append(_line("event lag", _latencies(report["event_lag"])))
    if report["event_delay"]["count"]:
        lines.append(_line("after answer", _latencies(report["event_delay"])))
    if server := report["server"]:
        lines.append(
            _line(
                "server",
                f"{server['cpu_us']:,.1f} us of CPU a request, {server['cpus']:.2f} processors, "
                f"{server['memory_bytes'] / 2**20:,.0f} MiB",
            )
        )
    if report["own_cpu_us"]:
        lines.append(_line("generator", f"{report['own_cpu_us']:,.1f} us of CPU a request"))
    if report["conflicts"]:
        lines.append(_line("conflicts", f"{report['conflicts']:,} found another revision"))
    if report["dropped"]:
        lines.append(_line("dropped", f"{report['dropped']:,} were due and never begun"))
    if report["unfinished"]:
        lines.append(
            _line("unfinished", f"{report['unfinished']:,} were due and not done at the end")
        )
    errors = report["errors"].items()
    lines += [_line("errors", f"{count:,} x {error}") for error, count in errors]
    if not errors:
        lines.append(_line("errors", "none"))
    return "\n".join(lines)


def _line(name: str, value: str) -> str:
    return f"  {name:<12}{value}"


def _latencies(summary: Mapping[str, float]) -> str:
    names = (("p50", "p50"), ("p90", "p90"), ("p99", "p99"), ("p99.9", "p999"), ("max", "max"))
    return "  ".join(f"{shown} {duration(summary[f'{name}_us'])}" for shown, name in names)


def duration(us: float) -> str:
    """Microseconds in the unit that fits: "850 us", "12.3 ms", "4.20 s"."""
    if us < 1e3:
        return f"{us:.0f} us"
    if us < 1e6:
        return f"{us / 1e3:.1f} ms"
    return f"{us / 1e6:.2f} s"
