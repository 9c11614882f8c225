"""The policy for the C library's allocator, which has what is longer than 512 bytes.

Left alone, glibc gives memory back to the kernel as soon as some 128 KiB at the end of the heap
are free, and has to have it again, zeroed, a moment later: the join of a batch or of a list's page
is as long. And it learns from what is freed to keep ever larger objects on the heap, where the free
of the last of many may give back a gigabyte in one step (I9).
"""

from __future__ import annotations

import ctypes

# From malloc.h.
_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_M_MMAP_THRESHOLD = -3

KEPT_BYTES = 16 << 20
"""Free memory at the end of the heap that is kept: some milliseconds to give back."""

GROWTH_BYTES = 1 << 20
"""What is asked of the kernel at once, at least."""

MAPPED_BYTES = 1 << 20
"""Objects from this size on are mapped each by itself, and given back each by itself."""


def set_policy() -> bool:
    """Apply the policy to this process. False where the C library has none of it (musl, macOS)."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    wanted = (
        (_M_TRIM_THRESHOLD, KEPT_BYTES),
        (_M_TOP_PAD, GROWTH_BYTES),
        (_M_MMAP_THRESHOLD, MAPPED_BYTES),
    )
    return all(mallopt(parameter, value) for parameter, value in wanted)
