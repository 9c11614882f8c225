"""The files of a deployment, read: compose file, dashboard, Dockerfile."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from tests.peers import ROOT

DEPLOY = ROOT / "deploy"
COMPOSE = ROOT / "docker-compose.yml"
DOCKERFILE = ROOT / "Dockerfile"


class _Loader(yaml.SafeLoader):
    """Refuses a key given twice, as docker does; PyYAML lets the last one win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        if twice := {key for key in keys if keys.count(key) > 1}:
            raise yaml.constructor.ConstructorError(None, None, f"twice: {twice}", node.start_mark)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> Any:
    # Ours, and a SafeLoader.
    return yaml.load(path.read_text(), _Loader)


def compose() -> dict[str, Any]:
    found = read_yaml(COMPOSE)
    assert isinstance(found, dict)
    return found


def services() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = compose()["services"]
    return found


def dashboard() -> dict[str, Any]:
    found = json.loads((DEPLOY / "grafana" / "jotd.json").read_text())
    assert isinstance(found, dict)
    return found


def instructions() -> list[tuple[str, str]]:
    """(word, rest) of every instruction of the Dockerfile, continued lines joined."""
    lines = [
        line for line in DOCKERFILE.read_text().splitlines() if not line.lstrip().startswith("#")
    ]
    joined = "\n".join(lines).replace("\\\n", " ")
    found = []
    for line in joined.splitlines():
        if line.strip():
            word, _, rest = line.strip().partition(" ")
            found.append((word, " ".join(rest.split())))
    return found
