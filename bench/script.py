"""tools/cluster as a module: the commands of a cluster, for measurements and for tests.

It is a script that runs from a checkout with nothing installed, so it is in no package.
"""

from __future__ import annotations

import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from typing import Any

from bench.programs import ROOT


def cluster_script() -> Any:
    """The script, run once; the same module each time."""
    name = "jotd_tools_cluster"
    if name in sys.modules:
        return sys.modules[name]
    loader = SourceFileLoader(name, str(ROOT / "tools" / "cluster"))
    spec = spec_from_loader(name, loader)
    assert spec is not None
    module = module_from_spec(spec)
    # Its dataclasses look themselves up here.
    sys.modules[name] = module
    # Nothing is to lie in tools/ afterwards.
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = before
    return module
