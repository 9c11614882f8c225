"""A snapshot as an object of a JetStream object store (ADR-20), as pure values.

The object's bytes are the snapshot's chunks in frames (length and CRC-32C before each), and an end
frame with count and length, cut into messages of one size. So boundaries come back as they were
written, damage is found before anything behind it is handed out, and `nats object get` gives the
same bytes. The object's own SHA-256 is as the ADR wants it.
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import google_crc32c

MESSAGE_BYTES = 256 << 10
"""Length of an object's messages."""
_HEAD = struct.Struct("<IIQ")
_END = struct.Struct("<QQ")
_END_LENGTH = 0xFFFFFFFF


class BadObject(Exception):
    """What was read is no snapshot, or was changed."""


def meta_subject(bucket: str, name: str) -> str:
    return f"$O.{bucket}.M.{base64.urlsafe_b64encode(name.encode()).decode()}"


def chunk_subject(bucket: str, nuid: str) -> str:
    return f"$O.{bucket}.C.{nuid}"


@dataclass(frozen=True, slots=True)
class Meta:
    """What is known of one object."""

    name: str
    nuid: str
    size: int
    chunks: int
    digest: str
    deleted: bool = False
    created: float | None = None

    def encode(self, bucket: str) -> bytes:
        return json.dumps(
            {
                "name": self.name,
                "bucket": bucket,
                "nuid": self.nuid,
                "size": self.size,
                "chunks": self.chunks,
                "digest": self.digest,
                "mtime": datetime.fromtimestamp(self.created or 0, UTC).isoformat(),
                "options": {"max_chunk_size": MESSAGE_BYTES},
            }
        ).encode()

    @classmethod
    def decode(cls, data: bytes) -> Meta:
        """BadObject."""
        try:
            found: dict[str, Any] = json.loads(data)
            created = None
            if found.get("mtime"):
                created = datetime.fromisoformat(found["mtime"]).timestamp()
            return cls(
                found["name"],
                found["nuid"],
                int(found["size"]),
                int(found["chunks"]),
                found.get("digest", ""),
                bool(found.get("deleted")),
                created,
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadObject(f"its description cannot be read: {error!r}") from None


def digest_text(digest: bytes) -> str:
    return "SHA-256=" + base64.urlsafe_b64encode(digest).decode()


def _check(length: int, number: int, payload: bytes) -> int:
    return int(
        google_crc32c.extend(google_crc32c.value(struct.pack("<IQ", length, number)), payload)
    )


class Framer:
    """Chunks in, messages out."""

    def __init__(self) -> None:
        self._pieces: list[bytes | memoryview] = []
        self._buffered = 0
        self._number = 0
        self._total = 0

    def add(self, chunk: bytes) -> Iterator[bytes]:
        """The messages that are full now."""
        self._number += 1
        self._total += len(chunk)
        yield from self._frame(len(chunk), chunk)

    def end(self) -> Iterator[bytes]:
        """The messages that are left."""
        total = _END.pack(self._number, self._total)
        self._number += 1
        yield from self._frame(_END_LENGTH, total)
        if self._buffered:
            yield b"".join(self._pieces)

    def _frame(self, length: int, payload: bytes) -> Iterator[bytes]:
        head = _HEAD.pack(length, _check(length, self._number, payload), self._number)
        for part in (head, payload):
            rest = memoryview(part)
            while self._buffered + len(rest) >= MESSAGE_BYTES:
                room = MESSAGE_BYTES - self._buffered
                yield b"".join((*self._pieces, rest[:room]))
                self._pieces, self._buffered = [], 0
                rest = rest[room:]
            if rest:
                self._pieces.append(rest)
                self._buffered += len(rest)
        if len(self._pieces) > 4096:
            self._pieces = [b"".join(self._pieces)]


class Unframer:
    """Messages in, chunks out."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._at = 0
        self._number = 0
        self._total = 0
        self.ended = False

    def add(self, message: bytes) -> Iterator[bytes]:
        """The chunks that are whole now. BadObject."""
        if self.ended:
            raise BadObject("there is something behind its end")
        if self._at:
            del self._data[: self._at]
            self._at = 0
        self._data += message
        while len(self._data) - self._at >= _HEAD.size:
            length, check, number = _HEAD.unpack_from(self._data, self._at)
            size = _END.size if length == _END_LENGTH else length
            begin = self._at + _HEAD.size
            if number != self._number + 1:
                raise BadObject(f"chunk {self._number + 1} is missing")
            if len(self._data) - begin < size:
                return
            with memoryview(self._data) as view:
                payload = bytes(view[begin : begin + size])
            if _check(length, number, payload) != check:
                raise BadObject(f"the checksum of chunk {number} does not match")
            self._at = begin + size
            self._number = number
            if length == _END_LENGTH:
                if _END.unpack(payload) != (number - 1, self._total) or self._at != len(self._data):
                    raise BadObject("it does not end as its end frame says")
                self.ended = True
                return
            self._total += size
            yield payload
