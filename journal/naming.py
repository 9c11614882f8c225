"""Which names snapshots may have: ones that are safe as a file name and as an object name."""

from __future__ import annotations

import re

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def check_snapshot_name(name: str) -> str:
    """Return `name`; ValueError unless it matches `[A-Za-z0-9][A-Za-z0-9._-]{0,127}`."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"not a snapshot name: {name!r}")
    return name
