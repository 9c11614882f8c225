"""Load by a real Go client, etcd's clientv3 (``bench/load``), reported in the generator's form."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

from bench.programs import ROOT
from bench.scenarios import Scenario
from bench.servers import Server, Unavailable

SOURCES = ROOT / "bench" / "load"
PROGRAM = ROOT / ".tools" / "jotd-goload"


def program() -> Path:
    """The program, built if it is older than its sources. Raises `Unavailable` without Go."""
    newest = max(source.stat().st_mtime for source in SOURCES.iterdir())
    if PROGRAM.is_file() and PROGRAM.stat().st_mtime >= newest:
        return PROGRAM
    go = shutil.which("go")
    if go is None:
        raise Unavailable("the load by a Go client needs Go to be built")
    PROGRAM.parent.mkdir(exist_ok=True)
    # Two at a time, and nice: as the Makefile builds the peers.
    argv = ["nice", "-n", "5", go, "build", "-p", "2", "-trimpath", "-buildvcs=false"]
    argv += ["-ldflags=-s -w", "-o", str(PROGRAM), "."]
    done = subprocess.run(argv, cwd=SOURCES, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Unavailable(f"the Go client could not be built: {done.stderr.strip()}")
    return PROGRAM


def load(server: Server, scenario: Scenario, prefix: str, duration_s: float) -> dict[str, Any]:
    """One run. The server's CPU counts from the first connection to the last."""
    argv = [
        str(program()),
        "-scenario=put",
        f"-endpoints={server.endpoint}",
        f"-prefix={prefix}",
        f"-duration={duration_s}s",
        *(f"-{name}={value}" for name, value in scenario.load.items()),
    ]
    before_s = server.cpu_s()
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    used_s = server.cpu_s() - before_s
    if done.returncode:
        raise RuntimeError(f"{server.name} {scenario.name}: {done.stderr.strip()}")
    found = json.loads(done.stdout)
    latency = {name: value for name, value in found.items() if name.endswith("_us")}
    return {
        "requests": found["requests"],
        "seconds": found["seconds"],
        "rate": found["rate"],
        "errors": found["errors"],
        "latency": latency,
        "server": {
            "cpu_us": used_s * 1e6 / max(found["requests"], 1),
            "cpus": used_s / found["seconds"],
            "memory_bytes": server.memory_bytes(),
        },
    }
