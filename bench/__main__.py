"""Measures servers side by side: ``python -m bench [SCENARIO ...]``.

    put, txn, range   requests a second; txn is kube-apiserver's update (If mod Then put Else get)
    list              100,000 objects of 1 KiB in one answer
    watch             puts, with 100 streams watching all of them
    million           jotd alone with 1,000,000 keys of 1 KiB: memory, the longest time that the
                      loop was held during a LIST, and recovery after kill -9

All servers run at once and are measured in turn, several rounds, so that a slow moment of the
machine hits none of them alone; the median round counts. CPU is the server's own, threads and
kernel included: on a machine that the load generator shares it says more than the rate does.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench.servers import NAMES, ROOT, Server, Unavailable, load_program, running

Row = dict[str, Any]

SCENARIOS = ("put", "txn", "range", "list", "watch", "million")
LIST_KEYS = 100_000
MILLION = 1_000_000


def load(server: Server, scenario: str, options: argparse.Namespace, *extra: str) -> Row:
    """One run of the load generator; what it reports, and the server's processor time."""
    argv = [
        str(load_program()),
        f"-endpoint={server.endpoint}",
        f"-scenario={scenario}",
        f"-duration={options.duration}s",
        f"-conns={options.conns}",
        f"-concurrency={options.concurrency}",
        f"-value-size={options.value_size}",
        "-warmup=0s",
        *extra,
    ]
    before = server.cpu_s()
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(argv)}: {done.stderr.strip()}")
    row: Row = json.loads(done.stdout)
    row["cpu_us"] = (server.cpu_s() - before) / max(row["requests"], 1) * 1e6
    row["server"] = server.name
    if row["errors"]:
        print(f"{server.name} {scenario}: {row['errors']} errors, {row['first_error']}")
    return row


def rounds(
    servers: Sequence[Server], options: argparse.Namespace, run: Callable[[Server, int], Row]
) -> list[Row]:
    """The median round of each server, by rate. The first round warms up and does not count."""
    found: dict[str, list[Row]] = {server.name: [] for server in servers}
    for number in range(options.rounds + 1):
        for server in servers:
            row = run(server, number)
            if number:
                found[server.name].append(row)
    return [
        sorted(rows, key=lambda row: float(row["rate"]))[len(rows) // 2] for rows in found.values()
    ]


def measure(scenario: str, servers: Sequence[Server], options: argparse.Namespace) -> list[Row]:
    """One scenario on all servers that can do it."""
    if scenario in ("list", "watch"):
        servers = [server for server in servers if server.name != "echo"]
    if scenario in ("range", "list"):
        keys = LIST_KEYS if scenario == "list" else 10_000
        for server in servers:
            if server.name != "echo":
                load(server, "fill", options, f"-keys={keys}", f"-prefix=/registry/{scenario}/")
        extra = [f"-keys={keys}", f"-prefix=/registry/{scenario}/", "-fill=false"]
        if scenario == "list":
            extra += ["-conns=1", "-concurrency=1"]
        return rounds(servers, options, lambda server, _: load(server, scenario, options, *extra))
    return rounds(
        servers,
        options,
        # Keys of its own for each round: updates then begin with a create, as in a cluster.
        lambda server, number: load(
            server, scenario, options, f"-prefix=/registry/pods/{scenario}{number}/"
        ),
    )


def million(place: Path, options: argparse.Namespace) -> Row:
    """What a million keys cost jotd."""
    row: Row = {"scenario": "million", "server": "jotd", "keys": MILLION}
    extra = (f"-keys={MILLION}", "-prefix=/registry/pods/")
    with running("jotd", place) as server:
        empty = server.memory_bytes()
        row["fill_s"] = load(server, "fill", options, *extra)["seconds"]
        row["memory_mib"] = server.memory_bytes() / 2**20
        row["overhead_bytes_a_key"] = (server.memory_bytes() - empty) / MILLION - options.value_size
        row["stall_while_filling_ms"] = server.metric("jotd_loop_stall_max_seconds") * 1e3
        one = argparse.Namespace(**{**vars(options), "duration": 20})
        pages = load(
            server, "list", one, *extra, "-fill=false", "-limit=500", "-conns=1", "-concurrency=1"
        )
        row["paged_list_s"] = pages["p50_us"] / 1e6
        row["stall_after_pages_ms"] = server.metric("jotd_loop_stall_max_seconds") * 1e3
        whole = load(server, "list", one, *extra, "-fill=false", "-conns=1", "-concurrency=1")
        row["list_s"] = whole["p50_us"] / 1e6
        row["stall_after_list_ms"] = server.metric("jotd_loop_stall_max_seconds") * 1e3
        server.kill()
    with running("jotd", place) as server:
        row["recovery_s"] = server.start_s
        row["memory_after_recovery_mib"] = server.memory_bytes() / 2**20
    return row


COLUMNS = (
    ("server", "{}"),
    ("rate", "{:,.0f}/s"),
    ("p50_us", "p50 {:,.0f} us"),
    ("p99_us", "p99 {:,.0f} us"),
    ("cpu_us", "cpu {:,.0f} us"),
    ("megabytes_per_second", "{:,.1f} MB/s"),
    ("event_rate", "{:,.0f} events/s"),
    ("event_p99_us", "lag p99 {:,.0f} us"),
)


def show(scenario: str, rows: Sequence[Row]) -> None:
    """A table for people."""
    print(f"\n{scenario}")
    rates = {row["server"]: row["rate"] for row in rows}
    lines = []
    for row in rows:
        cells = [
            text.format(row[name]) for name, text in COLUMNS if name in row and row[name] != ""
        ]
        if row["server"] == "jotd":
            cells += [
                f"{rates['jotd'] / rate:.2f} of {name}"
                for name, rate in rates.items()
                if name != "jotd" and rate
            ]
        lines.append(cells)
    widths = [max(map(len, column)) for column in zip(*lines, strict=False)]
    for cells in lines:
        padded = [cell.rjust(width) for cell, width in zip(cells, widths, strict=False)]
        print("  " + "  ".join([*padded, *cells[len(widths) :]]))
    sys.stdout.flush()


def main() -> int:
    """Runs what was asked for; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=", ".join(SCENARIOS))
    parser.add_argument("--servers", default=",".join(NAMES), help="of echo, jotd, etcd, etcd-3.6")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--duration", type=float, default=5, metavar="SECONDS")
    parser.add_argument("--conns", type=int, default=8)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--value-size", type=int, default=1024, metavar="BYTES")
    parser.add_argument("--dir", type=Path, default=ROOT / "bench" / "results", help="for the data")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all rows there")
    options = parser.parse_args()
    scenarios = options.scenarios or [name for name in SCENARIOS if name != "million"]
    if unknown := set(scenarios) - set(SCENARIOS):
        parser.error(f"no scenario {', '.join(sorted(unknown))}")
    place = options.dir / "data"
    shutil.rmtree(place, ignore_errors=True)
    rows: list[Row] = []
    try:
        load_program()
        small = [name for name in scenarios if name != "million"]
        for scenario in small:
            with ExitStack() as stack:
                servers = []
                for name in options.servers.split(","):
                    try:
                        servers.append(stack.enter_context(running(name, place / scenario)))
                    except Unavailable as error:
                        print(f"left out: {error}")
                found = measure(scenario, servers, options)
            show(scenario, found)
            rows += found
            shutil.rmtree(place / scenario, ignore_errors=True)
        if "million" in scenarios:
            row = million(place / "million", options)
            print("\nmillion")
            for name, value in row.items():
                print(
                    f"  {name}: {value:,.3f}" if isinstance(value, float) else f"  {name}: {value}"
                )
            rows.append(row)
    except (Unavailable, RuntimeError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    total = statistics.fsum(row.get("seconds", 0.0) for row in rows)
    print(f"\n{len(rows)} figures from {total:.0f} measured seconds")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
