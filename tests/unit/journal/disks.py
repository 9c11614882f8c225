"""Disks that fail, and disks that lose what was not synced, for the file journal's tests."""

from __future__ import annotations

import errno
import os
import random
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from journal.file.blocks import SECTOR
from journal.file.disk import Disk

CALLS = (
    "open",
    "close",
    "write",
    "read",
    "datasync",
    "sync",
    "allocate",
    "truncate",
    "size",
    "rename",
    "unlink",
    "sync_dir",
)


class TracedDisk(Disk):
    """Every call goes through `before` (which may raise) with its name and a number from 1."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self._lock = threading.RLock()
        for name in CALLS:
            setattr(self, name, self._wrap(name, getattr(self, name)))

    def _wrap(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def traced(*args: Any) -> Any:
            with self._lock:
                self.calls.append(name)
                number = len(self.calls)
            self.before(name, number, args)
            return call(*args)

        return traced

    def before(self, name: str, number: int, args: tuple[Any, ...]) -> None:
        """May raise, may block."""


class FaultyDisk(TracedDisk):
    """Fails calls: those for which `fails` says so, with the error that `error` names."""

    def __init__(
        self, fails: Callable[[str, int], bool] = lambda *_: False, error: int = errno.EIO
    ) -> None:
        super().__init__()
        self.fails = fails
        self.error = error
        self.failed: list[str] = []

    def before(self, name: str, number: int, args: tuple[Any, ...]) -> None:
        if self.fails(name, number):
            self.failed.append(name)
            raise OSError(self.error, f"injected: {os.strerror(self.error)} in {name}")


class CrashDisk(Disk):
    """Real files, plus a memory of how to take back whatever no sync has covered.

    The machine crashes at call number `crash_at`: that call and all later ones fail. `settle`
    then does what a power cut does to a page cache: each unsynced *sector* and each unsynced file
    size is kept or lost at random, and of the unsynced directory changes some first part is kept.

    `ignored` names calls that this disk only pretends to do: negative controls.
    """

    def __init__(
        self, crash_at: int, seed: int, attic: Path, ignored: frozenset[str] = frozenset()
    ) -> None:
        self._random = random.Random(seed)
        self._crash_at = crash_at
        self._attic = attic
        self._ignored = ignored
        self._lock = threading.RLock()
        self._serial = 0
        self._files: dict[tuple[int, int], _Unsynced] = {}
        self._changes: list[tuple[Path, Callable[[], None]]] = []
        self.count = 0
        self.crashed = False

    def _next(self) -> bool:
        """Count a call; True when the machine goes down in the middle of it."""
        if self.crashed:
            raise OSError(errno.EIO, "the machine is down")
        self.count += 1
        self.crashed = self.count >= self._crash_at
        return self.crashed

    def _down(self) -> None:
        raise OSError(errno.EIO, "the machine went down")

    def _unsynced(self, fd: int) -> _Unsynced:
        status = os.fstat(fd)
        key = (status.st_dev, status.st_ino)
        if key not in self._files:
            self._files[key] = _Unsynced(os.dup(fd), status.st_size)
        return self._files[key]

    def open(self, path: Path, flags: int) -> int:
        with self._lock:
            down = self._next()
            created = flags & os.O_CREAT and not path.exists()
            if flags & os.O_TRUNC and not created:
                fd = super().open(path, flags & ~os.O_TRUNC)
                self._truncate(fd, 0)
            else:
                fd = super().open(path, flags)
            if created:
                self._changes.append((path.parent, lambda: os.unlink(path)))
            if down:
                os.close(fd)
                self._down()
            return fd

    def write(self, fd: int, buffers: Sequence[bytes], offset: int) -> None:
        with self._lock:
            down = self._next()
            self._unsynced(fd).remember(offset, offset + sum(map(len, buffers)))
            super().write(fd, buffers, offset)
            if down:
                self._down()

    def allocate(self, fd: int, size: int) -> None:
        with self._lock:
            down = self._next()
            self._unsynced(fd)
            super().allocate(fd, size)
            if down:
                self._down()

    def truncate(self, fd: int, size: int) -> None:
        with self._lock:
            down = self._next()
            self._truncate(fd, size)
            if down:
                self._down()

    def _truncate(self, fd: int, size: int) -> None:
        self._unsynced(fd).remember(size, os.fstat(fd).st_size)
        super().truncate(fd, size)

    def datasync(self, fd: int) -> None:
        self._sync("datasync", fd)

    def sync(self, fd: int) -> None:
        self._sync("sync", fd)

    def _sync(self, name: str, fd: int) -> None:
        with self._lock:
            if self._next():
                self._down()
            if name not in self._ignored:
                status = os.fstat(fd)
                unsynced = self._files.pop((status.st_dev, status.st_ino), None)
                if unsynced is not None:
                    os.close(unsynced.fd)

    def _keep_link(self, path: Path) -> Path:
        self._serial += 1
        kept = self._attic / str(self._serial)
        os.link(path, kept)
        return kept

    def rename(self, old: Path, new: Path) -> None:
        with self._lock:
            down = self._next()
            kept = self._keep_link(new) if new.exists() else None
            super().rename(old, new)

            def undo() -> None:
                os.rename(new, old)
                if kept is not None:
                    os.rename(kept, new)

            self._changes.append((new.parent, undo))
            if down:
                self._down()

    def unlink(self, path: Path) -> None:
        with self._lock:
            down = self._next()
            if path.exists():
                kept = self._keep_link(path)
                super().unlink(path)
                self._changes.append((path.parent, lambda: os.rename(kept, path)))
            elif not down:
                super().unlink(path)
            if down:
                self._down()

    def sync_dir(self, path: Path) -> None:
        with self._lock:
            if self._next():
                self._down()
            if "sync_dir" not in self._ignored:
                self._changes = [change for change in self._changes if change[0] != path]

    def settle(self) -> None:
        """Leave on the real disk what the crash would have left."""
        self.crashed = True
        kept = self._random.randint(0, len(self._changes))
        for unsynced in self._files.values():
            unsynced.settle(self._random)
        for _, undo in reversed(self._changes[kept:]):
            undo()


class _Unsynced:
    """What one file was like at its last sync, as far as it was changed since."""

    def __init__(self, fd: int, size: int) -> None:
        self.fd = fd
        self.size = size
        self.sectors: dict[int, bytes] = {}

    def remember(self, start: int, end: int) -> None:
        for at in range(start // SECTOR * SECTOR, end, SECTOR):
            if at not in self.sectors:
                self.sectors[at] = os.pread(self.fd, SECTOR, at).ljust(SECTOR, b"\0")

    def settle(self, rng: random.Random) -> None:
        size = os.fstat(self.fd).st_size
        mode = rng.choice(("none", "all", "some"))
        for at, old in self.sectors.items():
            if mode == "all" or (mode == "some" and rng.random() < 0.5):
                os.pwrite(self.fd, old, at)
        os.ftruncate(self.fd, rng.choice((size, self.size)))
        os.close(self.fd)
