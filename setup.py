"""Adds the native parts to the build where there are compilers for them.

Everything else is in pyproject.toml. Two parts, each left out by itself:

- `jotd_native`, the front door and the journal's writer, where there is cargo;
- the hot modules of the write and read path, compiled by mypyc from the very sources that are
  interpreted otherwise, where there is a C compiler.

Without either, or with JOTD_NO_NATIVE set, the wheel is pure Python. `jotd version` says what is
there.
"""

import os
import shutil
import sysconfig
from pathlib import Path

from setuptools import setup
from setuptools.command.build_ext import build_ext
from setuptools_rust import Binding, RustExtension

COMPILED = (
    "kvstore/api/checks.py",
    "kvstore/api/headers.py",
    "kvstore/api/leases.py",
    "kvstore/api/range_stream.py",
    "kvstore/api/ranges.py",
    "kvstore/api/requests.py",
    "kvstore/api/service.py",
    "kvstore/api/tally.py",
    "kvstore/api/txn.py",
    "kvstore/api/watch.py",
    "kvstore/api/writes.py",
    "kvstore/lease/lessor.py",
    "kvstore/mvcc/buckets.py",
    "kvstore/mvcc/history.py",
    "kvstore/mvcc/index.py",
    "kvstore/mvcc/pins.py",
    "kvstore/mvcc/reader.py",
    "kvstore/mvcc/shard.py",
    "kvstore/mvcc/store.py",
    "kvstore/mvcc/version.py",
    "kvstore/mvcc/view.py",
    "kvstore/mvcc/wire.py",
    "kvstore/node/commands.py",
    "kvstore/node/committer.py",
    "kvstore/node/operation.py",
    "kvstore/node/proposer.py",
    "kvstore/node/records.py",
    "kvstore/node/replay.py",
    "kvstore/node/slicer.py",
    "kvstore/node/state.py",
    "kvstore/watch/hub.py",
    "kvstore/watch/intervals.py",
    "partitioner/table.py",
)


class BuildExt(build_ext):
    """Builds all compiled modules or none: they call each other directly."""

    def build_extensions(self):
        try:
            super().build_extensions()
        except Exception as error:
            print(f"jotd: the hot modules stay interpreted: {error}")
            for extension in self.extensions:
                Path(self.get_ext_fullpath(extension.name)).unlink(missing_ok=True)
            self.extensions.clear()


def missing(tool):
    """Why a part that needs `tool` is not built; empty if it can be."""
    if os.environ.get("JOTD_NO_NATIVE"):
        return "JOTD_NO_NATIVE is set"
    return "" if shutil.which(tool) else f"there is no {tool} here"


def rust_modules():
    why = missing(os.environ.get("CARGO", "cargo"))
    if why:
        print(f"jotd: {why}, so the native front door is not built; grpcio will serve")
        return []
    return [
        RustExtension(
            "jotd_native",
            path="native/Cargo.toml",
            binding=Binding.PyO3,
            py_limited_api=True,
            args=["--locked"],
            # An editable install would be unoptimized otherwise.
            debug=False,
            strip=True,
            optional=True,
        )
    ]


def compiled_modules():
    compiler = os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc"
    why = missing(compiler.split()[0])
    if not why and not Path(sysconfig.get_path("include"), "Python.h").is_file():
        why = "there is no Python.h here"
    if why:
        print(f"jotd: {why}, so the hot modules stay interpreted")
        return []
    from mypyc.build import mypycify

    # What mypy has to say of the sources is `make lint`'s business, with its own settings.
    quiet = ["--config-file=", "--ignore-missing-imports", "--follow-imports=silent"]
    return mypycify([*quiet, *COMPILED], opt_level="3", debug_level="0", group_name="jotd")


rust = rust_modules()
compiled = compiled_modules()
setup(
    rust_extensions=rust,
    ext_modules=compiled,
    cmdclass={"build_ext": BuildExt},
    # The Rust module alone would do for every later Python.
    options={} if compiled or not rust else {"bdist_wheel": {"py_limited_api": "cp311"}},
)
