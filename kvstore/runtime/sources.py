"""Compiled or interpreted: which of the two forms of the hot modules this process runs.

setup.py compiles some modules (mypyc) and leaves the result beside their sources, where Python
finds it first. Nothing else of the program knows which one it is.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

VARIABLE = "JOTD_PURE_PYTHON"
"""Set in the environment: this process runs the sources."""

_OWN = frozenset({"journal", "kvstore", "partitioner"})
_SAMPLE = "kvstore.mvcc.view"


class _Sources(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if path is None or fullname.partition(".")[0] not in _OWN:
            return None
        for folder in path:
            file = Path(folder, fullname.rpartition(".")[2] + ".py")
            if file.is_file():
                return spec_from_file_location(fullname, file)
        return None


def prefer_sources() -> None:
    """Have modules of ours that are imported from now on come from their sources."""
    if not any(isinstance(finder, _Sources) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Sources())


def is_compiled() -> bool:
    """Whether the hot modules are compiled in this process."""
    spec = find_spec(_SAMPLE)
    return spec is not None and not str(spec.origin).endswith(".py")
