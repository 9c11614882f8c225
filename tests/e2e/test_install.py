"""`pip install .` where nothing can be compiled: a wheel of Python alone, that serves."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from kvstore.pb import rpc_pb2 as rpc
from tests import peers
from tests.oracle.client import Client

SECONDS_MAX = 240.0
PACKAGES = ("journal", "kvstore", "partitioner")
#: Without the network only what is installed can build.
BUILDERS = ("pip", "setuptools", "setuptools_rust", "mypy")

pytestmark = pytest.mark.slow


def run(*words: object, **env: str) -> str:
    """Runs a program; returns all that it said. `env` comes on top of an environment in which
    nothing of this run's shows.
    """
    own = ("JOTD_", "PYTHON", "CC", "CARGO")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(own)}
    done = subprocess.run(
        list(map(str, words)),
        env={**kept, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SECONDS_MAX,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """What a clone has, without what is built beside the sources here."""
    for name in BUILDERS:
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed, and is not fetched for a test")
    if not (peers.ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("without git there is no telling what belongs to a clone")
    names = run("git", "-C", peers.ROOT, "ls-files", "-z").split("\0")
    copy = tmp_path / "tree"
    for name in filter(None, names):
        source, target = peers.ROOT / name, copy / name
        if source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
    return copy


def build(tree: Path, **env: str) -> tuple[Path, str]:
    """The wheel of a tree, and what pip said."""
    target = tree.with_name("wheels")
    offline = ("--no-build-isolation", "--no-deps", "--no-index", "--disable-pip-version-check")
    said = run(sys.executable, "-m", "pip", "wheel", "-v", *offline, "-w", target, tree, **env)
    (wheel,) = target.glob("*.whl")
    return wheel, said


def build_without_compilers(tree: Path) -> tuple[Path, str]:
    nothing = tree.with_name("nothing")
    nothing.mkdir()
    return build(tree, PATH=str(nothing), CC="cc", CARGO="cargo")


def assert_is_python_alone(wheel: Path, tree: Path) -> None:
    """It holds what the tree has of the packages, to the file, and nothing else."""
    with zipfile.ZipFile(wheel) as file:
        names = {name for name in file.namelist() if ".dist-info/" not in name}
    wanted = {
        str(path.relative_to(tree))
        for package in PACKAGES
        for path in (tree / package).rglob("*")
        if path.is_file()
    }
    assert names == wanted
    data = {"partitioner/kubernetes.toml", "kvstore/pb/rpc_pb2.py", "kvstore/pb/rpc_pb2.pyi"}
    assert data | {f"{package}/py.typed" for package in PACKAGES} <= names


@pytest.mark.once
def test_without_compilers(tree: Path) -> None:
    wheel, said = build_without_compilers(tree)
    assert wheel.name.endswith("-py3-none-any.whl")
    assert "there is no cargo here" in said and "there is no cc here" in said
    assert_is_python_alone(wheel, tree)


@pytest.mark.once
def test_told_to_build_nothing_native(tree: Path) -> None:
    wheel, said = build(tree, JOTD_NO_NATIVE="1")
    assert wheel.name.endswith("-py3-none-any.whl")
    assert said.count("JOTD_NO_NATIVE is set") >= 2
    assert_is_python_alone(wheel, tree)


@pytest.mark.once
def test_compilers_that_fail(tree: Path) -> None:
    """The wheel is one for this platform then, but there is one."""
    broken = tree.with_name("broken")
    broken.write_text("#!/bin/sh\necho this compiler is broken >&2\nexit 1\n")
    broken.chmod(0o755)
    # Two modules fail as thirty do, and mypyc is done with them in a tenth of the time.
    setup = tree / "setup.py"
    few, replaced = re.subn(
        r"(?s)^COMPILED = \(.*?^\)",
        'COMPILED = ("kvstore/mvcc/wire.py", "partitioner/table.py")',
        setup.read_text(),
        flags=re.M,
    )
    assert replaced == 1
    setup.write_text(few)
    wheel, said = build(tree, CC=str(broken), CARGO=str(broken))
    assert "the hot modules stay interpreted" in said
    assert_is_python_alone(wheel, tree)


def test_what_was_installed_without_compilers_serves(tree: Path, tmp_path: Path) -> None:
    """In an environment of its own, which only has its dependencies from this one."""
    wheel, _ = build_without_compilers(tree)
    place = tmp_path / "venv"
    venv.EnvBuilder(symlinks=True).create(place)
    (packages,) = place.glob("lib/python*/site-packages")
    # Of those folders the modules alone: a .pth in them, as that of an editable jotd, is not read.
    shared = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (packages / "dependencies.pth").write_text("\n".join(shared) + "\n")
    offline = ("--no-deps", "--no-index", "--disable-pip-version-check")
    run(sys.executable, "-m", "pip", "--python", place, "install", *offline, wheel)
    where = "import kvstore.server as module; print(module.__file__)"
    assert run(place / "bin" / "python", "-P", "-c", where).startswith(str(packages))
    jotd = place / "bin" / "jotd"
    said = run(jotd, "version")
    assert f"jotd {wheel.name.split('-')[1]}\n" in said
    assert "transport grpcio: the native front door is not installed" in said
    assert "hot modules interpreted" in said
    # What the tests demand of a server's form is about those of the checkout.
    env = {"PYTHONPATH": "", "JOTD_PURE_PYTHON": "1"}
    with (
        peers.start_jotd(
            tmp_path / "data", ["--transport=grpcio"], command=[str(jotd)], env=env
        ) as server,
        Client(server.endpoint) as client,
    ):
        assert client.call("KV.Put", rpc.PutRequest(key=b"a", value=b"1")).ok
        (found,) = client.call("KV.Range", rpc.RangeRequest(key=b"a")).message.kvs
        assert found.value == b"1"
