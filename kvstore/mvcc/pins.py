"""Revisions that running reads still need (R10).

Only work that the server itself paces pins: the slices of one answer, a hash, a snapshot. A
pin holds physical compaction back, for a bounded time; after that the reader gets
`Compacted`, as it would from etcd.
"""

from __future__ import annotations

from kvstore.mvcc.errors import Compacted


class Pin:
    """One reader's hold on a revision."""

    __slots__ = ("expired", "revision", "taken_at")

    def __init__(self, revision: int, taken_at: float) -> None:
        self.revision = revision
        self.taken_at = taken_at
        self.expired = False

    def check(self) -> None:
        """Raise Compacted if the hold has been lost."""
        if self.expired:
            raise Compacted


class Pins:
    """The pins of one store. `deadline_s` bounds how long one may hold compaction back."""

    def __init__(self, deadline_s: float = 60.0) -> None:
        self.deadline_s = deadline_s
        self._pins: set[Pin] = set()

    def take(self, revision: int, now: float) -> Pin:
        """Hold a revision; give it back with `release`."""
        pin = Pin(revision, now)
        self._pins.add(pin)
        return pin

    def release(self, pin: Pin) -> None:
        """Give a hold back."""
        self._pins.discard(pin)

    def floor(self, revision: int, now: float) -> int:
        """The lowest held revision, at most `revision`; holds past their deadline are lost."""
        for pin in list(self._pins):
            if pin.revision < revision:
                if now - pin.taken_at > self.deadline_s:
                    pin.expired = True
                    self._pins.discard(pin)
                else:
                    revision = pin.revision
        return revision
