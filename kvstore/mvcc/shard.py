"""One shard: its index, its history, and what they weigh."""

from __future__ import annotations

from collections.abc import Iterable

from kvstore.mvcc.history import History
from kvstore.mvcc.index import KeyIndex, Node
from kvstore.mvcc.version import Version

VERSION_OVERHEAD_BYTES = 256
"""What a kept version costs besides its wire bytes: objects, index and history entries.

Measured at one million keys (`make bench ARGS=million`); counted in sizes and quotas.
"""


class Shard:
    """The versions of the keys that one shard owns, and counters of its own."""

    __slots__ = (
        "budget_bytes",
        "deletes",
        "history",
        "index",
        "kept_bytes",
        "live_bytes",
        "name",
        "put_bytes",
        "puts",
    )

    def __init__(self, name: str, budget_bytes: int = 0) -> None:
        self.name = name
        self.budget_bytes = budget_bytes
        self.index = KeyIndex()
        self.history = History()
        self.kept_bytes = 0
        self.live_bytes = 0
        self.puts = 0
        self.put_bytes = 0
        """Of all puts so far, as they are stored."""
        self.deletes = 0

    def link(self, version: Version, node: Node | None = None) -> Version | None:
        """Apply one version, of the key with that node if it is known.

        Returns the live version it replaced, if any.
        """
        size = len(version.framed)
        replaced = self.index.link(version, node)
        self.history.append(version)
        self.kept_bytes += size
        if replaced is not None and replaced.number:
            self.live_bytes -= len(replaced.framed)
        else:
            replaced = None
        if version.number:
            self.live_bytes += size
            self.puts += 1
            self.put_bytes += size
        else:
            self.deletes += 1
        return replaced

    def restore(self, version: Version) -> None:
        """Take in one version of a snapshot, in write order; `adopt` ends this."""
        self.history.append(version)
        self.kept_bytes += len(version.framed)

    def adopt(self, newest: Iterable[Version]) -> None:
        """Index the newest version of each key, after all were restored."""
        for version in self.index.load(newest):
            self.live_bytes += len(version.framed)

    def bury(self, version: Version) -> None:
        """Compact one version away."""
        self.kept_bytes -= len(version.framed)
        self.history.bury(version)

    @property
    def size_bytes(self) -> int:
        """Memory that all kept versions take, roughly."""
        return self.kept_bytes + VERSION_OVERHEAD_BYTES * len(self.history)

    @property
    def live_size_bytes(self) -> int:
        """Memory that the current versions alone take, roughly."""
        return self.live_bytes + VERSION_OVERHEAD_BYTES * len(self.index)
