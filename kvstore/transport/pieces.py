"""A message that comes in parts, for transports that can send it only as a whole."""

from __future__ import annotations

from io import BytesIO


class Pieces:
    """See the module."""

    __slots__ = ("_written",)

    def __init__(self) -> None:
        self._written: BytesIO | None = None

    def write(self, parts: list[bytes]) -> None:
        if self._written is None:
            self._written = BytesIO()
        self._written.write(b"".join(parts))

    def joined(self, last: bytes) -> bytes:
        """All that was written, and `last`."""
        if self._written is None:
            return last
        self._written.write(last)
        return self._written.getvalue()
