"""Ranges and transactions, counted as etcd's mvcc counts them (storage/mvcc/metrics_txn.go)."""

from __future__ import annotations


class Tally:
    """Totals since the start, of what was evaluated here.

    In etcd everything reads and writes in a transaction of the store, and one counts as such if it
    had more than one operation. A compare is a range, and so is the look at a previous value; what
    a Txn that writes compares is read in a transaction of its own.
    """

    __slots__ = ("ranges", "txns")

    def __init__(self) -> None:
        self.ranges = 0
        self.txns = 0

    def add(self, ranges: int, writes: int) -> None:
        """A transaction of the store, with so many ranges, and so many puts and deletes."""
        self.ranges += ranges
        if ranges + writes > 1:
            self.txns += 1
