"""``jotd`` with a break in its journal: `python -m tests.cluster.broken MODE serve ...`.

A judge that never finds anything proves nothing, so here is something for it to find.

- ``unfenced``: an append that another node's entries overtook goes behind them (against I6).
- ``early``: an append is answered before it is stored (against I1).
- ``unbroken``: nothing is changed; what is found then is not the break's.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence

from journal.contract import Conflict, JournalError
from journal.nats.backend import NatsJournal
from kvstore.cli.main import main

_append = NatsJournal.append
_tasks: set[asyncio.Task[int]] = set()


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
    task = asyncio.get_running_loop().create_task(_append(self, list(parts), expected_tail))
    _tasks.add(task)
    task.add_done_callback(_forget)
    return expected_tail + 1


def _forget(task: asyncio.Task[int]) -> None:
    _tasks.discard(task)
    if not task.cancelled() and not isinstance(task.exception(), JournalError | None):
        print(f"broken: {task.exception()!r}", file=sys.stderr)


MODES = {"unfenced": _unfenced, "early": _early, "unbroken": _append}

if __name__ == "__main__":
    NatsJournal.append = MODES[sys.argv[1]]  # type: ignore[method-assign]
    raise SystemExit(main(sys.argv[2:]))
