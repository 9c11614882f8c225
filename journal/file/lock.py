"""Keeps a second process (or a second journal object) out of a journal's directory."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from journal.contract import Locked

NAME = "lock"


class DirectoryLock:
    """An exclusive flock on the file `lock`, which says who holds it. Goes with the process."""

    def __init__(self, directory: Path) -> None:
        """Raises Locked, OSError."""
        path = directory / NAME
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = _read_pid(self._fd)
            os.close(self._fd)
            raise Locked(directory, pid) from None
        except BaseException:
            os.close(self._fd)
            raise
        try:
            os.pwrite(self._fd, f"{os.getpid():<20}\n".encode(), 0)
        except OSError:
            # The number is a courtesy; on a full disk the lock itself still holds.
            pass

    def release(self) -> None:
        os.close(self._fd)


def holder(directory: Path) -> int | None:
    """The process that has the directory open, None when nobody has. Takes no lock itself.

    A lock taken only to look would turn away a server that starts at that moment, so this
    reads the kernel's table (Linux; None elsewhere).
    """
    try:
        with open(directory / NAME, "rb") as file:
            status = os.fstat(file.fileno())
            pid = _read_pid(file.fileno())
        table = Path("/proc/locks").read_text()
    except OSError:
        return None
    key = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    for line in table.splitlines():
        fields = line.split()
        if len(fields) >= 6 and fields[1] == "FLOCK" and fields[5] == key:
            # In another pid namespace the table's number means nothing here.
            return pid or int(fields[4])
    return None


def _read_pid(fd: int) -> int | None:
    try:
        return int(os.pread(fd, 32, 0).strip() or b"0") or None
    except ValueError:
        return None
