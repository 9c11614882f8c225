"""What ranges are read from: a store at a revision, or the view of a transaction.

A base class and no protocol: calls through it are direct where it is compiled.
"""

from __future__ import annotations

from kvstore.mvcc.store import Sink, Steps
from kvstore.mvcc.version import Version


class Reader:
    """State to read."""

    __slots__ = ()

    @property
    def read_revision(self) -> int:
        """The revision of the state that is read."""
        raise NotImplementedError

    def live(self, key: bytes) -> Version | None:
        """The live version of a key."""
        raise NotImplementedError

    def range_steps(
        self, low: bytes, high: bytes | None, revision: int, limit: int, sink: Sink
    ) -> Steps[int]:
        """Live versions in key order, in parts; `revision` 0: of the state itself.

        Returns how many there were.
        """
        raise NotImplementedError

    def count_steps(self, low: bytes, high: bytes | None, revision: int) -> Steps[int]:
        """Number of live keys."""
        raise NotImplementedError
