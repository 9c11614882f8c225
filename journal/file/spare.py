"""The next segment, allocated ahead, so that a roll-over neither stalls nor runs out of space.

The file is zeroed as well as allocated: syncing a write into space that was merely allocated
also has to journal that the space is in use now, which costs about as much again as the sync.
It survives restarts, because on a full disk what was given back might not be had again.
"""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

from journal.contract import NoSpace
from journal.file.disk import Disk, zero
from journal.file.recovery import SPARE_NAME

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EMFILE, errno.ENFILE, errno.ENOMEM}


def no_space(error: OSError) -> bool:
    """Does the error say that something has run out (and may be there again later)?"""
    return error.errno in _NO_SPACE


class Spare:
    """One preallocated, zeroed file of `size` bytes. Safe to use from several threads."""

    def __init__(self, disk: Disk, directory: Path, size: int) -> None:
        self._disk = disk
        self._directory = directory
        self._lock = threading.Lock()
        self._fd: int | None = None
        self._taken = False
        self.path = directory / SPARE_NAME
        self.size = size
        self.coming = False
        """One is being made, and there was room for it when that began."""

    @property
    def ready(self) -> bool:
        return self._fd is not None

    def prepare(self) -> None:
        """Have one ready. NoSpace when there is no room, OSError when the device fails."""
        with self._lock:
            if self._fd is None and not self._taken:
                self._get_ready()

    def take(self) -> int:
        """Its descriptor, now the caller's; makes one if need be. As `prepare`.

        No other is made before `placed` says that the file has left the spare's name.
        """
        with self._lock:
            if self._fd is None:
                self._get_ready()
            assert self._fd is not None
            fd, self._fd = self._fd, None
            self._taken = True
            return fd

    def placed(self) -> None:
        """The file that was taken has another name now."""
        with self._lock:
            self._taken = False

    def _get_ready(self) -> None:
        try:
            # Asked before it takes its own blocks, which are no longer free from then on.
            self.coming = self.has_room()
            self._fd = self._make()
        finally:
            self.coming = False

    def has_room(self) -> bool:
        """Is there room for one, and as much again for others? An estimate."""
        try:
            return self._disk.free_bytes(self._directory) >= 2 * self.size
        except OSError:
            return False

    def _make(self) -> int:
        disk = self._disk
        fd = None
        try:
            fd = disk.open(self.path, os.O_RDWR | os.O_CREAT)
            if disk.size(fd) > self.size:
                disk.truncate(fd, self.size)
            old = disk.size(fd)
            disk.allocate(fd, self.size)
            # What an earlier process left has been zeroed already, or holds an append that
            # never came to be.
            zero(disk, fd, 0, old, only_nonzero=True)
            zero(disk, fd, old, self.size)
            disk.sync(fd)
            disk.sync_dir(self._directory)
            return fd
        except OSError as error:
            if fd is not None:
                disk.close(fd)
            if no_space(error):
                self._discard()
                raise NoSpace(f"no room for a segment of {self.size} bytes: {error}") from error
            raise

    def _discard(self) -> None:
        """Give back what was had of it: on a full disk others may need it more."""
        try:
            self._disk.unlink(self.path)
        except OSError:
            pass

    def close(self) -> None:
        with self._lock:
            if self._fd is not None:
                self._disk.close(self._fd)
                self._fd = None
