"""``jotd`` with a break in its journal: `python -m tests.cluster.broken MODE serve ...`.

A judge that never finds anything proves nothing, so here is something for it to find.

- ``unfenced``: an append that another node's entries overtook goes behind them (against I6).
- ``early``: an append is answered first, and sent later (against I1).
- ``unbroken``: nothing is changed; what is found then is not the break's.
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import Sequence
from typing import Any

from journal.contract import Conflict, JournalError
from journal.nats.backend import NatsJournal
from kvstore.cli.main import main

_append = NatsJournal.append
_tasks: set[asyncio.Task[Any]] = set()
_late: deque[tuple[float, NatsJournal, list[bytes], int]] = deque()

LATE_S = 0.1
"""What has been sent is stored even if its sender dies: so it is kept for as long."""


def _is_data(journal: NatsJournal) -> bool:
    return journal.control is not None


async def _unfenced(self: NatsJournal, parts: Sequence[bytes], expected_tail: int) -> int:
    while True:
        try:
            return await _append(self, parts, expected_tail)
        except Conflict:
            if not _is_data(self):
                raise
            expected_tail = await self.tail()


async def _early(self: NatsJournal, parts: Sequence[bytes], expected_tail: int) -> int:
    if not _is_data(self):
        return await _append(self, parts, expected_tail)
    loop = asyncio.get_running_loop()
    if not _tasks:
        _tasks.add(loop.create_task(_store_late()))
    _late.append((loop.time() + LATE_S, self, list(parts), expected_tail))
    return expected_tail + 1


async def _store_late() -> None:
    loop = asyncio.get_running_loop()
    while True:
        await asyncio.sleep(_late[0][0] - loop.time() if _late else LATE_S)
        while _late and _late[0][0] <= loop.time():
            _, journal, parts, expected_tail = _late.popleft()
            task = loop.create_task(_append(journal, parts, expected_tail))
            _tasks.add(task)
            task.add_done_callback(_forget)


def _forget(task: asyncio.Task[int]) -> None:
    _tasks.discard(task)
    if not task.cancelled() and not isinstance(task.exception(), JournalError | None):
        print(f"broken: {task.exception()!r}", file=sys.stderr)


MODES = {"unfenced": _unfenced, "early": _early, "unbroken": _append}

if __name__ == "__main__":
    NatsJournal.append = MODES[sys.argv[1]]  # type: ignore[method-assign]
    raise SystemExit(main(sys.argv[2:]))
