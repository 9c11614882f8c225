"""Adds the native front door to the build where there is Rust to build it with.

Everything else is in pyproject.toml. Without cargo, or with JOTD_NO_NATIVE set, the wheel is pure
Python; where the compiler fails it goes on without the module. `jotd version` says what serves.
"""

import os
import shutil

from setuptools import setup
from setuptools_rust import Binding, RustExtension

if os.environ.get("JOTD_NO_NATIVE"):
    missing = "JOTD_NO_NATIVE is set"
elif shutil.which(os.environ.get("CARGO", "cargo")) is None:
    missing = "there is no Rust (cargo) here"
else:
    missing = ""

if missing:
    print(f"jotd: {missing}, so the native front door is not built; grpcio will serve")
    setup()
else:
    setup(
        rust_extensions=[
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
        ],
        options={"bdist_wheel": {"py_limited_api": "cp311"}},
    )
