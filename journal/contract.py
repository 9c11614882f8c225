"""What a journal promises: the calls, the values they exchange, and how they fail.

A journal is one ordered sequence of *batches*. A batch is opaque bytes with a sequence
number; the first one has sequence 1 and sequence 0 stands for "nothing yet". Whoever appends
names the tail it believes in, and that condition is the fence against a second writer (I6).

Rules that hold for every backend:

- `append` is all or nothing. When it returns, the batch survives the loss of every process
  (I1). When it raises `Conflict`, `NoSpace` or `ValueError`, nothing was written. When it
  raises `Unknown` or `Poisoned`, or is cancelled, the batch may or may not be there.
- Appends take effect in the order of the calls, and at most `pipeline_depth` of them may be
  under way at once. A backend queues what is above that; it never reorders.
- Readers get entries in order, without holes, and never one that is not durable yet.
- After `Poisoned` no call succeeds except `stats` and `close` (I10).
- A journal object belongs to the event loop that opened it. No method is to be called from
  another thread.
- No call holds the event loop for longer than 5 ms (I9).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

FORMAT_VERSION = 1
"""Version of the on-disk and on-wire framing that this package writes."""


class JournalError(Exception):
    """Something went wrong in a journal; the base of every error that a journal raises itself."""


class Conflict(JournalError):
    """The tail is not where the caller believes it is; nothing was written (I6)."""

    def __init__(self, expected: int, actual: int) -> None:
        super().__init__(f"journal tail is {actual}, the writer expected {expected}")
        self.expected = expected
        self.actual = actual


class Unknown(JournalError):
    """It cannot be told whether the append took effect (I7); R5 says what to do next."""


class NoSpace(JournalError):
    """Space could not be had; nothing was written, and the journal is still healthy."""


class Poisoned(JournalError):
    """A write or fsync failed, so the journal accepts nothing more (I10).

    What is on disk after a failed fsync cannot be known, not even by trying again, so the
    process has to stop serving writes and start anew from what recovery finds.
    """

    def __init__(self, cause: BaseException | str) -> None:
        super().__init__(f"journal is out of service after a failed write or sync: {cause}")
        self.cause = cause


class Corrupt(JournalError):
    """Stored data is damaged, and not in the way that a crash leaves behind (I10)."""

    def __init__(self, file: str | Path, offset: int, what: str, advice: str) -> None:
        super().__init__(f"{file}: offset {offset}: {what}. {advice}")
        self.file = str(file)
        self.offset = offset
        self.what = what
        self.advice = advice


class Trimmed(JournalError):
    """A reader asked for entries that were trimmed; it needs a snapshot first."""

    def __init__(self, after: int, oldest: int) -> None:
        super().__init__(f"entries after {after} were asked for, the oldest one kept is {oldest}")
        self.after = after
        self.oldest = oldest


class Locked(JournalError):
    """Another process (or another journal object of this one) has the directory open."""

    def __init__(self, path: str | Path, pid: int | None) -> None:
        who = f"process {pid}" if pid else "another process"
        super().__init__(f"{path} is in use by {who}")
        self.path = str(path)
        self.pid = pid


class IncompatibleVersion(JournalError):
    """The data was written by a newer version of this code, and is intact."""

    def __init__(self, file: str | Path, found: int, supported: int = FORMAT_VERSION) -> None:
        super().__init__(
            f"{file}: format version {found} is newer than {supported}, the newest that this "
            f"version can read; use the version that wrote it"
        )
        self.file = str(file)
        self.found = found
        self.supported = supported


@dataclass(frozen=True, slots=True)
class Opened:
    """What `Journal.open` found."""

    identity: bytes
    """16 random bytes, made when the journal was created and never changed."""
    tail: int
    """Sequence of the last entry, 0 when there never was one."""
    oldest: int
    """Sequence of the first entry that is kept: 1 at first, `tail + 1` when none is left."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One batch as it was appended."""

    sequence: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class SnapshotInfo:
    """One committed snapshot."""

    name: str
    size: int
    """Stored bytes, framing included."""
    created: float | None = None
    """Seconds since the epoch, or None where the backend does not keep it."""


@dataclass(frozen=True, slots=True)
class JournalStats:
    """Figures for metrics and for a person; counters start at 0 when the journal is opened."""

    bytes_on_disk: int = 0
    """What the batches occupy, preallocated space included, snapshots not."""
    segments: int = 0
    """Files (or whatever the backend keeps batches in)."""
    entries: int = 0
    """Batches that are kept."""
    appends: int = 0
    """Batches appended since open."""
    appended_bytes: int = 0
    """Payload bytes appended since open."""
    conflicts: int = 0
    """Appends refused since open because of their expected tail."""
    syncs: int = 0
    """Completed syncs of batches since open."""
    sync_seconds: float = 0.0
    """Time spent in those."""
    free_bytes: int = 0
    """Room that `reserve` could still promise, headroom included."""
    snapshots: int = 0
    snapshot_bytes: int = 0


class SnapshotWriter(Protocol):
    """Takes the chunks of one snapshot."""

    async def write(self, chunk: bytes) -> None:
        """Add one chunk. Raises NoSpace when there is no room, which discards the snapshot."""


class SnapshotStore(Protocol):
    """Named immutable blobs. A reader never sees half of one.

    Names match `[A-Za-z0-9][A-Za-z0-9._-]{0,127}`; anything else is a ValueError.
    """

    def writer(self, name: str) -> AbstractAsyncContextManager[SnapshotWriter]:
        """Write a snapshot: durable and visible when the block ends, gone if it raises.

        An existing snapshot of that name is replaced at once, or stays as it was.
        """

    async def list(self) -> list[SnapshotInfo]:
        """The committed snapshots, sorted by name."""

    def read(self, name: str) -> AsyncIterator[bytes]:
        """The chunks exactly as they were written.

        Raises KeyError when there is no such snapshot, Corrupt when it is damaged or has no end.
        Chunks that come before the damage may have been handed out by then.
        """

    async def delete(self, name: str) -> None:
        """Remove a snapshot, durably. Removing one that is not there is not an error."""


@runtime_checkable
class Journal(Protocol):
    """One journal. See the module for the rules that every method keeps."""

    name: str
    """The backend's name, as `registry.open_journal` knows it."""
    max_batch_bytes: int
    """Longest payload that `append` takes."""
    pipeline_depth: int
    """Appends that may be in flight at once; 1 means that one waits for the other."""
    snapshots: SnapshotStore
    control: Journal | None
    """The small journal beside it, for leadership and membership; None where only one process can
    have the journal open. Its caller opens it before this one and closes it after this one. It
    has no control journal of its own, and nobody puts snapshots into it."""

    on_sync: Callable[[float], None] | None
    """Called on the loop with the seconds that each sync took."""
    on_write: Callable[[float], None] | None
    """Called on the loop with the seconds that each write (without its sync) took."""
    on_progress: Callable[[int, int], None] | None
    """Called with (bytes done, bytes in total) during `open` and `read`, often."""

    async def open(self) -> Opened:
        """Take the journal into use, creating it when it is not there.

        Raises Locked, Corrupt, IncompatibleVersion, or JournalError with a reason.
        """

    async def append(self, parts: Sequence[bytes], expected_tail: int) -> int:
        """Append one batch, the concatenation of `parts`, and return its sequence.

        `parts` must not be changed before the call returns. Durable on return. Raises Conflict,
        NoSpace, Unknown, Poisoned, or ValueError for a batch above `max_batch_bytes`. Cancelling
        the call does not take the batch back.
        """

    def read(self, after: int) -> AsyncIterator[Sequence[Entry]]:
        """Entries with a sequence above `after`, in order, up to the tail as of the first step.

        They come in lists, never empty, of about 1 MiB (one entry may be larger).
        Raises Trimmed when `after + 1` is no longer kept, ValueError when `after` is beyond the
        tail, Corrupt when an entry is damaged or missing.
        """

    def follow(self, after: int) -> AsyncIterator[Sequence[Entry]]:
        """As `read`, then entries as they become durable; ends when the journal is closed.

        A follower that is overtaken by `trim` gets Trimmed.
        """

    async def tail(self) -> int:
        """The last sequence known. A hint, not a linearizable read (R6)."""

    async def trim(self, before: int) -> None:
        """Entries below `before` may be dropped, now or later, as far as it suits the backend."""

    def reserve(self, nbytes: int, *, urgent: bool = False) -> bool:
        """Is there room for `nbytes` more of journal? Ask before proposing a write.

        True sets that room aside: it adds up over calls, and the next call of `append` takes
        everything that was set aside before it (so a caller appends all it has proposed, and
        there is nothing to hand back for what it dropped). `urgent` may use the headroom that is
        kept for deletes, compaction and lease revokes. False costs nothing and may change by
        itself when space comes free. Raises Poisoned.
        """

    def stats(self) -> JournalStats:
        """Current figures; cheap, works in every state."""

    async def close(self) -> None:
        """Finish what was appended, end followers, let go of the journal. Idempotent."""
