"""The policy for the interpreter lock, seen in a process of its own."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys, threading, time
from kvstore.runtime import threads

if sys.argv[1] == "policy":
    threads.set_policy()

def work():
    for _ in range(5_000_000):
        pass

other = threading.Thread(target=work)
other.start()
turns = 0
while other.is_alive():
    time.sleep(0)  # lets go of the lock, as the loop does around each system call
    turns += 1
print(turns)
"""


def turns_beside_a_busy_thread(how: str) -> int:
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, how], check=True, capture_output=True, text=True, timeout=60
    )
    return int(ran.stdout)


def test_the_loop_gets_the_lock_soon_while_another_thread_works() -> None:
    """As a count of turns in the same work, not as a time; others may use the machine, too."""
    alone, policy = (
        [turns_beside_a_busy_thread(how) for _ in range(3)] for how in ("alone", "policy")
    )
    assert max(policy) > 2 * min(alone)
