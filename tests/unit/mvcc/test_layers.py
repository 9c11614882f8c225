"""Dependencies point one way (DESIGN §12): what each package may import, ours and others."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

ALLOWED: dict[str, set[str]] = {
    "partitioner": set(),
    "journal": set(),
    "kvstore.mvcc": {"partitioner", "kvstore.pb"},
    "kvstore.lease": {"kvstore.mvcc"},
    "kvstore.watch": {"kvstore.mvcc"},
    "kvstore.cluster": {"journal.contract", "kvstore.pb"},
    "kvstore.node": {
        "journal.contract", "partitioner", "kvstore.mvcc", "kvstore.lease", "kvstore.watch",
        "kvstore.cluster", "kvstore.pb",
    },
    "kvstore.api": {
        "partitioner", "kvstore.mvcc", "kvstore.lease", "kvstore.watch", "kvstore.node",
        "kvstore.cluster",
        "kvstore.pb", "kvstore.transport.seam", "kvstore.version",
    },
}  # fmt: skip

SANS_IO = ["kvstore.mvcc", "kvstore.lease", "kvstore.watch"]
IO = {"asyncio", "grpc", "logging", "os", "pathlib", "random", "secrets", "socket", "threading",
      "time", "uvloop"}  # fmt: skip


def imports(package: str) -> Iterator[tuple[str, str]]:
    """(file, module) of each import of a package."""
    for path in sorted((ROOT / package.replace(".", "/")).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom):
                assert node.module is not None and not node.level, path
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                continue
            for name in names:
                yield f"{path.relative_to(ROOT)}", name


def within(module: str, packages: set[str]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


@pytest.mark.parametrize("package", ALLOWED)
def test_a_package_imports_only_what_lies_below_it(package: str) -> None:
    found = list(imports(package))
    assert found
    ours = {"partitioner", "journal", "kvstore"}
    wrong = [
        (path, module)
        for path, module in found
        if within(module, ours) and not within(module, {*ALLOWED[package], package})
    ]
    assert wrong == []


@pytest.mark.parametrize("package", SANS_IO)
def test_the_state_machine_knows_no_io_and_no_clock(package: str) -> None:
    assert [found for found in imports(package) if within(found[1], IO)] == []


@pytest.mark.parametrize("package", ["kvstore.api", "kvstore.node"])
def test_services_know_no_transport(package: str) -> None:
    assert [found for found in imports(package) if within(found[1], {"grpc", "uvloop"})] == []
