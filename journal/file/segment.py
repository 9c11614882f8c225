"""Segment files: a header block, frames, and zeros up to the preallocated size.

A segment is called after the sequence of its first frame, and appears under that name only
with its header and first frame in it and synced (see `writer`). So a named segment is never
empty, and neither its header nor its first frame can be torn.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from pathlib import Path

from journal.contract import Corrupt, Entry
from journal.file.blocks import RESTORE, SECTOR, pack_block, unpack_block
from journal.file.disk import Disk
from journal.file.frames import BATCH, BadFrame, decode_run, frame_bytes, header_at

MAGIC = b"JOTDSEG\0"
DATA_AT = SECTOR
_BODY = struct.Struct("<16sQQQQQ")
_NAME = re.compile(r"(\d{20})\.seg")


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment's header, and where the file is."""

    path: Path
    identity: bytes
    first: int
    """Sequence of its first frame."""
    chain: int
    """Link of the last frame before it, 0 at the start of a journal."""
    previous: int
    """`first` of the segment before it, 0 for the journal's first."""
    size: int
    """Bytes of the whole file, as preallocated."""
    created_ns: int


def segment_name(first: int) -> str:
    return f"{first:020d}.seg"


def parse_segment_name(name: str) -> int | None:
    match = _NAME.fullmatch(name)
    return int(match[1]) if match else None


def bytes_for(payload: int) -> int:
    """Size of a segment that holds one batch of `payload` bytes."""
    return DATA_AT + frame_bytes(payload)


def pack_segment(segment: Segment) -> bytes:
    body = _BODY.pack(
        segment.identity,
        segment.first,
        segment.chain,
        segment.previous,
        segment.size,
        segment.created_ns,
    )
    return pack_block(MAGIC, body)


def load_segment(disk: Disk, path: Path, identity: bytes) -> Segment:
    """Read and check a segment's header. Corrupt, IncompatibleVersion, OSError."""
    fd = disk.open(path, 0)
    try:
        body = unpack_block(disk.read(fd, SECTOR, 0), MAGIC, path, 0)
        found, first, chain, previous, size, created_ns = _BODY.unpack_from(body)
        if found != identity:
            what = f"segment of another journal ({found.hex()}, this one is {identity.hex()})"
            raise Corrupt(path, 0, what, RESTORE)
        if path.name != segment_name(first):
            raise Corrupt(path, 0, f"the header says {segment_name(first)}", RESTORE)
        actual = disk.size(fd)
        if actual != size:
            what = f"the file has {actual} bytes, its header says {size}"
            raise Corrupt(path, min(actual, size), what, RESTORE)
        return Segment(path, found, first, chain, previous, size, created_ns)
    finally:
        disk.close(fd)


class SegmentCursor:
    """Reads the entries of one segment in order, verifying each."""

    __slots__ = (
        "_base",
        "_data",
        "_disk",
        "_fd",
        "_seed",
        "chain",
        "limit",
        "position",
        "segment",
        "sequence",
    )

    def __init__(self, disk: Disk, segment: Segment, seed: int) -> None:
        self._disk = disk
        self._fd = disk.open(segment.path, 0)
        self._seed = seed
        self._data = b""
        self._base = DATA_AT
        self.limit = segment.size
        """The file is not looked at from that offset on; may grow."""
        self.segment = segment
        self.position = DATA_AT
        """File offset of the next frame."""
        self.sequence = segment.first
        """Its sequence."""
        self.chain = segment.chain

    def step(self, count_max: int, bytes_max: int) -> list[Entry]:
        """The next entries, [] at the limit. Raises BadFrame when there is no valid frame next.

        Zeros are not a valid frame either: who does not know the tail looks at the offset.
        """
        if self.position >= self.limit:
            return []
        payloads = self._decode(count_max, bytes_max)
        if not payloads:
            self._fill(max(bytes_max, 1 << 16))
            payloads = self._decode(count_max, bytes_max)
        if not payloads:
            self._fill(self._next_frame_bytes())
            payloads = self._decode(count_max, bytes_max)
        if not payloads:
            raise BadFrame(self.position, "a frame of an unknown kind, or cut off")
        first = self.sequence
        self.sequence += len(payloads)
        return [Entry(first + index, payload) for index, payload in enumerate(payloads)]

    def _decode(self, count_max: int, bytes_max: int) -> list[bytes]:
        payloads, at, chain = decode_run(
            self._data,
            self.position - self._base,
            self._base,
            self._seed,
            BATCH,
            self.sequence,
            self.chain,
            count_max,
            bytes_max,
        )
        if payloads:
            self.position = self._base + at
            self.chain = chain
        return payloads

    def _fill(self, size: int) -> None:
        self._base = self.position
        self._data = self._disk.read(self._fd, min(size, self.limit - self._base), self._base)

    def _next_frame_bytes(self) -> int:
        frame = header_at(self._seed, self._data, 0, self.position)
        if frame is None or frame.end > self.limit:
            raise BadFrame(self.position, "a frame that goes beyond the end of its segment")
        return frame.end - frame.offset

    def close(self) -> None:
        self._disk.close(self._fd)
