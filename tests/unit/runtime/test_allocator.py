"""The allocator's policy, asked of the C library in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, sys
from kvstore.runtime import allocator

class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks",
        "fordblks", "keepcost",
    )]

mallinfo = ctypes.CDLL(None).mallinfo2
mallinfo.restype = Info
if sys.argv[1] == "policy" and not allocator.set_policy():
    sys.exit("refused")
# From this on glibc, left alone, has objects of up to 8 MiB on the heap.
learned = bytearray(b"x") * (8 << 20)
del learned
before = mallinfo().hblks
pieces = [bytearray(b"x") * (1 << 20) for _ in range(10)]
print(mallinfo().hblks - before)
"""


def mapped(how: str) -> int:
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, how],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    if "mallinfo2" in ran.stderr:
        pytest.skip("the C library is not glibc 2.33 or newer")
    assert ran.returncode == 0, ran.stderr
    return int(ran.stdout)


def test_long_objects_are_given_back_one_by_one() -> None:
    assert mapped("alone") == 0, "else the policy is good for nothing here"
    assert mapped("policy") == 10
