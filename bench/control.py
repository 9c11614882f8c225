"""What the machine alone does to an event loop: the server's own sampling in a process that rests.

A hypervisor that takes a processor away is in no figure that the guest has. A process that does
nothing but sample shows how often that happens beside a server.
"""

from __future__ import annotations

import asyncio
import json
import math
import subprocess
import sys
from itertools import accumulate
from types import TracebackType
from typing import Self

import uvloop

from kvstore.metrics.stalls import STALL_S, LoopStalls


class Control:
    """The process, while it is entered."""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.control"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.held()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.communicate()

    def held(self) -> dict[float, float]:
        """How often its loop was held so far, by upper bound in seconds, added up."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return dict(json.loads(self._process.stdout.readline()))


async def _sample() -> None:
    loop = asyncio.get_running_loop()
    stalls = LoopStalls(loop)
    stalls.start()
    over = loop.create_future()

    def asked() -> None:
        if not sys.stdin.readline():
            over.set_result(None)
            loop.remove_reader(sys.stdin.fileno())
            return
        up_to = accumulate(stalls.held_s.counts)
        print(json.dumps([*zip((*STALL_S, math.inf), up_to, strict=True)]), flush=True)

    loop.add_reader(sys.stdin.fileno(), asked)
    await over
    stalls.stop()


if __name__ == "__main__":
    uvloop.run(_sample())
