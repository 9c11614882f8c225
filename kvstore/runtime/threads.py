"""The policy for threads that take turns with the event loop's at the interpreter lock.

A thread that wants the lock asks the one that has it to let go after an interval, 5 ms unless
told otherwise (sys.setswitchinterval). So while a snapshot is written or metrics are rendered, on
threads of their own, each return of the loop from the kernel could cost it 5 ms (I9).
"""

from __future__ import annotations

import sys

SWITCH_S = 0.0005
"""A tenth of what may hold the loop; shorter, and threads that take turns would do little else."""


def set_policy() -> None:
    """Apply the policy to this process."""
    sys.setswitchinterval(SWITCH_S)
