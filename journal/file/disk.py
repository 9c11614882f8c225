"""The system calls that the file journal makes, in one place, so that tests can make them fail.

Everything blocks: nothing here may run on the event loop, except `free_bytes`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

_CHUNK = 1 << 20
ZEROS = bytes(_CHUNK)


class Disk:
    """Plain files. Offsets and sizes are bytes; errors are OSError."""

    def open(self, path: Path, flags: int) -> int:
        return os.open(path, flags | os.O_CLOEXEC, 0o640)

    def close(self, fd: int) -> None:
        os.close(fd)

    def write(self, fd: int, buffers: Sequence[bytes], offset: int) -> None:
        """Write all of `buffers`, one after the other, at `offset`."""
        total = sum(map(len, buffers))
        done = os.pwritev(fd, buffers, offset)
        if done != total:
            # Linux writes at most 2 GiB at once; anything else that stops early stops with an
            # error on the next call.
            rest = memoryview(b"".join(buffers))[done:]
            while rest:
                count = os.pwrite(fd, rest, offset + total - len(rest))
                rest = rest[count:]

    def read(self, fd: int, size: int, offset: int) -> bytes:
        """Up to `size` bytes; fewer only at the end of the file."""
        data = os.pread(fd, size, offset)
        if len(data) == size or not data:
            return data
        pieces = [data]
        got = len(data)
        while got < size:
            data = os.pread(fd, size - got, offset + got)
            if not data:
                break
            pieces.append(data)
            got += len(data)
        return b"".join(pieces)

    def datasync(self, fd: int) -> None:
        os.fdatasync(fd)

    def sync(self, fd: int) -> None:
        os.fsync(fd)

    def allocate(self, fd: int, size: int) -> None:
        """Make the file `size` bytes long with every block of it reserved on the device."""
        os.posix_fallocate(fd, 0, size)

    def truncate(self, fd: int, size: int) -> None:
        os.ftruncate(fd, size)

    def size(self, fd: int) -> int:
        return os.fstat(fd).st_size

    def rename(self, old: Path, new: Path) -> None:
        os.rename(old, new)

    def unlink(self, path: Path) -> None:
        os.unlink(path)

    def sync_dir(self, path: Path) -> None:
        """Make creations, renames and removals in `path` durable."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def free_bytes(self, path: Path) -> int:
        """What an unprivileged process could still allocate on the file system of `path`."""
        status = os.statvfs(path)
        return status.f_bavail * status.f_frsize


def first_nonzero(disk: Disk, fd: int, start: int, end: int) -> int | None:
    """Offset of the first byte in [start, end) that is not zero, or None."""
    while start < end:
        data = disk.read(fd, min(_CHUNK, end - start), start)
        if not data:
            return None
        if data != ZEROS[: len(data)]:
            return start + len(data) - len(data.lstrip(b"\0"))
        start += len(data)
    return None


def zero(disk: Disk, fd: int, start: int, end: int, *, only_nonzero: bool = False) -> None:
    """Write zeros over [start, end), syncing as it goes so that no big flush piles up.

    With `only_nonzero`, pieces that read as zeros are left alone.
    """
    while start < end:
        count = min(_CHUNK, end - start)
        piece = ZEROS[:count]
        if not only_nonzero or disk.read(fd, count, start) != piece:
            disk.write(fd, [piece], start)
            disk.datasync(fd)
        start += count
