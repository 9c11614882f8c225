"""docker-compose.yml and the Dockerfile, as far as they can be held without an engine."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import PurePosixPath
from typing import Any

import pytest

from bench.script import cluster_script
from kvstore.cli.config import serve_config
from tests import peers
from tests.peers import ROOT
from tests.unit.deploy import files

SERVICES = files.services()
NATS = ["nats-1", "nats-2", "nats-3"]
NODES = ["jotd-1", "jotd-2", "jotd-3"]


def published() -> Iterator[tuple[str, str]]:
    """(service, port as it is written) of everything that is published."""
    for name, service in SERVICES.items():
        for port in service.get("ports", ()):
            yield name, port


def module_version(tool: str, module: str) -> str:
    text = (ROOT / "tools" / tool / "go.mod").read_text()
    found = re.search(rf"\s{re.escape(module)} v(\S+)", text)
    assert found
    return found[1]


def flags_of(text: str) -> dict[str, str]:
    return dict(re.findall(r"--([a-z-]+)=(\S+)", text))


def test_docker_itself_accepts_it() -> None:
    docker = shutil.which("docker")
    if docker is None:
        pytest.skip("no docker here")
    if subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode:
        pytest.skip("docker has no compose here")
    command = [docker, "compose", "--file", str(files.COMPOSE), "--profile", "kube", "config", "-q"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_who_is_in_it() -> None:
    kube = {"kube-keys", "kube-apiserver"}
    assert set(SERVICES) == {*NATS, *NODES, "prometheus", "grafana", *kube}
    assert {name for name, s in SERVICES.items() if "profiles" in s} == kube
    assert all(SERVICES[name]["profiles"] == ["kube"] for name in kube)


@pytest.mark.parametrize("name", SERVICES)
def test_an_image_is_built_here_or_of_a_version(name: str) -> None:
    service = SERVICES[name]
    if "build" in service:
        assert service["image"] == "jotd:local"
        assert (ROOT / service["build"] / "Dockerfile").is_file()
    else:
        assert re.fullmatch(r"[\w./-]+:v?\d+\.\d+\.\d+(-\w+)?", service["image"])


def test_peers_have_the_versions_that_are_tested() -> None:
    nats = module_version("nats-server", "github.com/nats-io/nats-server/v2")
    kube = module_version("kube-apiserver", "k8s.io/kubernetes")
    assert {SERVICES[name]["image"] for name in NATS} == {f"nats:{nats}-alpine"}
    image = SERVICES["kube-apiserver"]["image"]
    assert image == f"registry.k8s.io/kube-apiserver:v{kube}"


@pytest.mark.parametrize("name", SERVICES)
def test_what_a_service_waits_for_can_happen(name: str) -> None:
    wanted = SERVICES[name].get("depends_on", {})
    if isinstance(wanted, list):
        wanted = {other: {"condition": "service_started"} for other in wanted}
    for other, how in wanted.items():
        service: dict[str, Any] = SERVICES[other]
        # A service of a profile would not be there for one that always is.
        assert set(service.get("profiles", ())) <= set(SERVICES[name].get("profiles", ()))
        if how["condition"] == "service_healthy":
            check = service.get("healthcheck")
            assert "test" in check if check else "build" in service
        elif how["condition"] == "service_completed_successfully":
            assert "restart" not in service
        else:
            assert how["condition"] == "service_started"


def test_volumes_are_declared_and_files_are_there() -> None:
    declared, used = set(files.compose()["volumes"]), set()
    for service in SERVICES.values():
        places = []
        for volume in service.get("volumes", ()):
            source, place, *mode = volume.split(":")
            places.append(place)
            assert PurePosixPath(place).is_absolute()
            if source.startswith("."):
                assert mode == ["ro"]
                assert (ROOT / source).exists(), source
            else:
                used.add(source)
        assert len(places) == len(set(places))
    assert used == declared


def test_each_node_has_data_of_its_own() -> None:
    mounts = [SERVICES[name]["volumes"][-1].split(":")[0] for name in (*NATS, *NODES)]
    assert mounts == [*NATS, *NODES]


def test_ports_are_published_once_and_on_loopback_only() -> None:
    ports = [port for _, port in published()]
    hosts = [port.rpartition(":")[0] for port in ports]
    assert len(hosts) == len(set(hosts))
    assert all(re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port) for port in ports)
    assert not [name for name, _ in published() if name in NATS]


def test_the_commands_are_those_of_the_script() -> None:
    script = cluster_script()
    servers = [script.Nats(name, "0.0.0.0", name, 4222, 6222, 8222, "/data") for name in NATS]
    config = SERVICES["nats-1"]["volumes"][0].split(":")[1]
    for server in servers:
        assert SERVICES[server.name]["command"] == script.nats_server(
            "nats-server", config, server, servers
        )
    source = SERVICES["nats-1"]["volumes"][0].split(":")[0]
    assert (ROOT / source).resolve() == script.NATS_CONFIG
    for name in NODES:
        here = script.Node(name, "0.0.0.0", name, 2379, 2381, "/var/lib/jotd")
        assert ["jotd", *SERVICES[name]["command"]] == script.node("jotd", here, servers)


def test_jotd_takes_its_commands() -> None:
    for name in NODES:
        word, *flags = SERVICES[name]["command"]
        assert word == "serve"
        config = serve_config(flags, {})
        assert config is not None and not config.warnings
        assert config.name == name
        # Other nodes reach it by this.
        assert config.advertise_client_urls == (f"http://{name}:2379",)
        # The image's own, which asks /readyz.
        assert "healthcheck" not in SERVICES[name]


def test_kube_apiserver_is_started_as_by_the_script() -> None:
    recipe = flags_of((ROOT / "tools" / "run-kube-apiserver").read_text().replace('"', ""))
    here = flags_of(" ".join(SERVICES["kube-apiserver"]["command"]))
    assert list(here) == list(recipe)
    # Where it is, and where its store and its files are.
    places = {"etcd-servers", "bind-address", "secure-port"}
    for name in recipe.keys() - places:
        assert here[name] == recipe[name].replace("$DIR", "/keys")
    assert here["etcd-servers"] == ",".join(f"http://{name}:2379" for name in NODES)


# --- Dockerfile


def test_bases_are_of_a_version_and_the_last_is_slim() -> None:
    args = dict(rest.split("=") for word, rest in files.instructions() if word == "ARG")
    bases = [rest.split()[0] for word, rest in files.instructions() if word == "FROM"]
    full = [re.sub(r"\$\{(\w+)\}", lambda found: args[found[1]], base) for base in bases]
    assert all(re.fullmatch(r"\w+:\d+\.\d+(-slim)?-bookworm", base) for base in full)
    assert full[-1].startswith("python:") and "-slim-" in full[-1]
    # Compiled modules are of one Python.
    assert full[-1].replace("-slim", "") == full[-2]


def test_the_toolchain_is_new_enough() -> None:
    args = dict(rest.split("=") for word, rest in files.instructions() if word == "ARG")
    manifest = (ROOT / "native" / "Cargo.toml").read_text()
    wanted = re.search(r'^rust-version = "([\d.]+)"', manifest, re.M)
    assert wanted
    assert [*map(int, args["RUST"].split("."))] >= [*map(int, wanted[1].split("."))]


@pytest.mark.parametrize("absent", ["nats", "nkeys", "xxhash", "jotd_native"])
def test_an_image_without_a_part_of_it_is_not_built(absent: str) -> None:
    runs = [rest for word, rest in files.instructions() if word == "RUN"]
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert any("pip install" in run and "'.[nats]'" in run for run in runs)
    assert {re.split("[<>=]", needed)[0] for needed in extra["nats"]} == {
        "nats-py",
        "nkeys",
        "xxhash",
    }
    # What the build does next, with the Python of the tests.
    (check,) = (run for run in runs if " -c " in run)
    text = shlex.split(check)[-1]
    block = f"import sys; sys.modules[{absent!r}] = None; "
    command = [sys.executable, "-c", block + text]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"import of {absent} halted" in done.stderr or not peers.has_native()


def test_the_image_runs_as_nobody_in_particular_and_tells_its_health() -> None:
    found = files.instructions()
    last = len(found) - 1 - [word for word, _ in reversed(found)].index("FROM")
    runtime = dict(found[last:])
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", runtime["USER"])
    assert json.loads(runtime["ENTRYPOINT"]) == ["jotd"]
    assert json.loads(runtime["CMD"]) == ["serve"]
    assert runtime["EXPOSE"].split() == ["2379", "2381"]
    options, _, command = runtime["HEALTHCHECK"].partition(" CMD ")
    assert "--start-period" in options
    python, flag, text = json.loads(command)
    assert (python, flag) == ("python", "-c")
    compile(text, "HEALTHCHECK", "exec")
    assert "2381" in text and "/readyz" in text
    environ = dict(
        word.split("=", 1) for word in shlex.split(runtime["ENV"]) if word.startswith("JOTD_")
    )
    config = serve_config([], environ)
    assert config is not None and not config.warnings
    assert str(config.data_dir) == runtime["VOLUME"]


def is_sent(path: str) -> bool:
    """Whether .dockerignore lets a file into the build: the last pattern that matches decides."""
    sent = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        pattern = line.removeprefix("!")
        parts = PurePosixPath(path).parts
        for n in range(1, len(parts) + 1):
            part = "/".join(parts[:n])
            deep = pattern.startswith("**/") and fnmatch(parts[n - 1], pattern[3:])
            if deep or (fnmatch(part, pattern) and part.count("/") == pattern.count("/")):
                sent = line.startswith("!")
                break
    return sent


def test_the_build_gets_what_it_needs_and_nothing_else() -> None:
    for needed in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "MANIFEST.in"):
        assert is_sent(needed)
    for folder in ("kvstore", "journal", "partitioner", "native"):
        for path in (ROOT / folder).rglob("*"):
            name = path.relative_to(ROOT).as_posix()
            if path.suffix in (".py", ".rs", ".toml", ".lock", ".typed") and not (
                name.startswith(("native/target/", "native/fuzz/"))
            ):
                assert is_sent(name), name
    for other in (
        ".git/config",
        ".tools/kube/service-account.key",
        ".venv/bin/python",
        "default.jotd/journal/0",
        "deploy/kube/keys",
        "jotd_native.abi3.so",
        "kvstore/mvcc/view.cpython-311-x86_64-linux-gnu.so",
        "kvstore/__pycache__/server.cpython-311.pyc",
        "native/target/release/jotd",
    ):
        assert not is_sent(other), other
