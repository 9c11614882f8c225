"""Response headers, encoded once per revision."""

from __future__ import annotations

from kvstore.mvcc.wire import field_varint, varint


class Headers:
    """Makes `ResponseHeader` as field 1 of a response: tag, length, message."""

    __slots__ = (
        "_head",
        "_last",
        "_last_revision",
        "_prefix",
        "_size",
        "_suffix",
        "without_revision",
    )

    def __init__(self, cluster_id: int, member_id: int, term: int) -> None:
        self._prefix = field_varint(b"\x08", cluster_id) + field_varint(b"\x10", member_id)
        self.begin_term(term)

    def begin_term(self, term: int) -> None:
        """Answers from now on are of a new term."""
        self._suffix = field_varint(b"\x20", term)
        body = self._prefix + self._suffix
        self.without_revision = b"\x0a%b%b" % (varint(len(body)), body)
        self._head = b""
        self._size = 0
        """What comes before a revision of that many bytes."""
        self._last_revision = 0
        self._last = self.without_revision

    def at(self, revision: int) -> bytes:
        """The header of an answer at a revision."""
        if revision != self._last_revision:
            number = varint(revision)
            if len(number) != self._size:
                self._size = len(number)
                size = len(self._prefix) + 1 + self._size + len(self._suffix)
                self._head = b"\x0a%b%b\x18" % (varint(size), self._prefix)
            self._last = b"".join((self._head, number, self._suffix))
            self._last_revision = revision
        return self._last


def inner(revision: int) -> bytes:
    """The header of an operation inside a transaction: a revision and nothing else."""
    body = field_varint(b"\x18", revision)
    return b"\x0a" + varint(len(body)) + body
