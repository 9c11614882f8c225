"""The journal of jotd: an ordered, durable log behind one contract, and its backends.

`contract` says what a journal promises; `registry.open_journal` finds a backend by name.
"""

from journal.contract import (
    Conflict,
    Corrupt,
    Entry,
    IncompatibleVersion,
    Journal,
    JournalError,
    JournalStats,
    Locked,
    NoSpace,
    Opened,
    Poisoned,
    SnapshotInfo,
    SnapshotStore,
    SnapshotWriter,
    Trimmed,
    Unknown,
)
from journal.registry import open_journal

__all__ = [
    "Conflict",
    "Corrupt",
    "Entry",
    "IncompatibleVersion",
    "Journal",
    "JournalError",
    "JournalStats",
    "Locked",
    "NoSpace",
    "Opened",
    "Poisoned",
    "SnapshotInfo",
    "SnapshotStore",
    "SnapshotWriter",
    "Trimmed",
    "Unknown",
    "open_journal",
]
