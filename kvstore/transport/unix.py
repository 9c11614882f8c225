"""Unix sockets that an earlier server left behind, or still listens on."""

from __future__ import annotations

import errno
import os
import socket
import stat


def refuse_live(path: str) -> None:
    """Raise OSError (EADDRINUSE) if a server listens there."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except OSError:
            return
    raise OSError(errno.EADDRINUSE, f"listen unix {path}: bind: address already in use")


def make_way(path: str) -> None:
    """Remove the socket of a server that is gone. Raises as `refuse_live`; leaves other files."""
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            return
    except OSError:
        return
    refuse_live(path)
    os.unlink(path)
