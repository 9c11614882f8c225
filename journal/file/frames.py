"""Frames: how a batch lies in a segment (and a chunk in a snapshot).

    header  40 bytes   magic, kind, flags, length, payload CRC, sequence, chain, 0, header CRC
    payload `length` bytes, then zeros up to a multiple of 8
    trailer  8 bytes   header CRC again, end magic

All numbers are little-endian. The header has a CRC of its own, so a damaged length is never
followed. That CRC starts from a *seed* made of the journal's identity: a frame of another
journal does not verify. `chain` is what the previous frame's header and payload CRCs make
(`Frame.link`), so a frame verifies only right behind its predecessor. Frames start at multiples
of 8, and space behind the last frame is always zero.

A frame that a crash left half written ("torn") is told from a damaged one by that zero space:
a device writes whole sectors, so in a torn frame some sector still reads as zeros, or, if the
write stopped short, everything from some byte on does. The trailer never is zero, so a
complete frame cannot look short. `tear` decides; it cannot tell the loss of a whole
sector of the very last frame from a crash (nothing in the file can), nor other damage to that
frame if its payload has a sector of zeros of its own.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

import google_crc32c

from journal.file.blocks import SECTOR

_extend: Callable[[int, bytes], int] = google_crc32c.extend
_value: Callable[[bytes], int] = google_crc32c.value

_HEADER = struct.Struct("<4sHHIIQQII")
_HEADER_CRC = struct.Struct("<I")
_TRAILER = struct.Struct("<I4s")
HEADER_BYTES = _HEADER.size
TRAILER_BYTES = _TRAILER.size
_CRC_AT = HEADER_BYTES - 4
ALIGN = 8
OVERHEAD_BYTES_MAX = HEADER_BYTES + TRAILER_BYTES + ALIGN - 1
"""What a frame takes beyond its payload, at most."""
MAGIC = b"jFr\x01"
END = b"jEnd"
_PADS = tuple(bytes(n) for n in range(ALIGN))
_CRC_SLICE = 1 << 20

BATCH = 1
CHUNK = 2
CHUNKS_END = 3


class BadFrame(Exception):
    """There is no valid frame at `offset` of the data looked at; `what` says why."""

    def __init__(self, offset: int, what: str) -> None:
        super().__init__(f"offset {offset}: {what}")
        self.offset = offset
        self.what = what


def seed_of(*parts: bytes) -> int:
    """The CRC that headers start from."""
    return _value(b"\0".join(parts))


def frame_bytes(length: int) -> int:
    """What a frame with `length` bytes of payload occupies."""
    return HEADER_BYTES + (length + ALIGN - 1 & -ALIGN) + TRAILER_BYTES


def payload_crc(payload: bytes) -> int:
    """CRC32C; in slices when long, so that other threads get the interpreter in between."""
    if len(payload) <= _CRC_SLICE:
        return _value(payload)
    crc = 0
    for start in range(0, len(payload), _CRC_SLICE):
        crc = _extend(crc, payload[start : start + _CRC_SLICE])
    return crc


def encode(
    seed: int, kind: int, sequence: int, chain: int, payload: bytes
) -> tuple[bytes, bytes, int]:
    """(what comes before the payload, what comes after it, the next frame's chain value)."""
    length = len(payload)
    crc = payload_crc(payload)
    head = _HEADER.pack(MAGIC, kind, 0, length, crc, sequence, chain, 0, 0)[:_CRC_AT]
    head_crc = _extend(seed, head)
    return (
        head + _HEADER_CRC.pack(head_crc),
        _PADS[-length & 7] + _TRAILER.pack(head_crc, END),
        head_crc << 32 | crc,
    )


class Frame:
    """A verified header: where its frame lies and what it says."""

    __slots__ = ("chain", "end", "head_crc", "kind", "length", "offset", "payload_crc", "sequence")

    def __init__(self, data: bytes, at: int, offset: int) -> None:
        fields = _HEADER.unpack_from(data, at)
        self.kind: int = fields[1]
        self.length: int = fields[3]
        self.payload_crc: int = fields[4]
        self.sequence: int = fields[5]
        self.chain: int = fields[6]
        self.head_crc: int = fields[8]
        self.offset = offset
        self.end = offset + frame_bytes(self.length)

    @property
    def link(self) -> int:
        """The chain value of the next frame."""
        return self.head_crc << 32 | self.payload_crc

    def closing(self) -> bytes:
        """The bytes that must follow the payload."""
        return _PADS[-self.length & 7] + _TRAILER.pack(self.head_crc, END)


def header_at(seed: int, data: bytes, at: int, offset: int) -> Frame | None:
    """The header at `data[at:]` (offset `offset` of the file) if its own CRC is right."""
    if data[at : at + 4] != MAGIC or at + HEADER_BYTES > len(data):
        return None
    (crc,) = _HEADER_CRC.unpack_from(data, at + _CRC_AT)
    if _extend(seed, data[at : at + _CRC_AT]) != crc:
        return None
    return Frame(data, at, offset)


def decode_run(
    data: bytes,
    at: int,
    base: int,
    seed: int,
    kind: int,
    sequence: int,
    chain: int,
    count_max: int,
    bytes_max: int,
) -> tuple[list[bytes], int, int]:
    """The payloads of the frames at `data[at:]` that follow each other from (sequence, chain).

    Stops after `count_max` frames, after the frame with which `bytes_max` is reached, before a
    frame that `data` does not hold completely, and before one of another kind. `base` is the
    file offset of `data[0]`. Returns (payloads, position behind the last, its link). Raises
    BadFrame (with a file offset) only when the first frame looked at is bad; a bad one after
    good ones is met by the next call.
    """
    payloads: list[bytes] = []
    size = 0
    end = len(data)
    unpack = _HEADER.unpack_from
    what = ""
    while len(payloads) < count_max and size < bytes_max and at + HEADER_BYTES <= end:
        magic, found, _, length, crc, number, prev, _, head_crc = unpack(data, at)
        if magic != MAGIC or _extend(seed, data[at : at + _CRC_AT]) != head_crc:
            what = "frame header checksum does not match"
            break
        if number != sequence or prev != chain:
            what = f"frame {number} does not follow frame {sequence - 1} here"
            break
        if found != kind:
            break
        start = at + HEADER_BYTES
        stop = start + length
        after = stop + (-length & 7) + TRAILER_BYTES
        if after > end:
            break
        payload = data[start:stop]
        if (_value(payload) if length <= _CRC_SLICE else payload_crc(payload)) != crc:
            what = f"payload checksum of frame {sequence} does not match"
            break
        if data[stop:after] != _PADS[-length & 7] + _TRAILER.pack(head_crc, END):
            what = f"frame {sequence} is not properly closed"
            break
        payloads.append(payload)
        size += length
        at = after
        sequence += 1
        chain = head_crc << 32 | crc
    if what and not payloads:
        raise BadFrame(base + at, what)
    return payloads, at, chain


def find_header(
    read: Callable[[int, int], bytes], start: int, end: int, seed: int, sequence_min: int
) -> Frame | None:
    """The first header in [start, end) with a right CRC and a sequence of at least that.

    `read(size, offset)` gives the file's bytes. Any position may start one (a damaged length
    says nothing), as long as it is a multiple of `ALIGN`.
    """
    step = 1 << 20
    while start + HEADER_BYTES <= end:
        # Pieces overlap by one header, so that none is missed at a seam.
        data = read(min(step, end - start), start)
        at = data.find(MAGIC)
        while at >= 0:
            if (start + at) % ALIGN == 0:
                frame = header_at(seed, data, at, start + at)
                if frame is not None and frame.sequence >= sequence_min:
                    return frame
            at = data.find(MAGIC, at + 1)
        if len(data) <= HEADER_BYTES or start + len(data) >= end:
            return None
        start += len(data) - HEADER_BYTES
    return None


def _zero(data: bytes) -> bool:
    return not data.strip(b"\0")


def tear(data: bytes, offset: int, frame: Frame | None) -> bool:
    """Can an interrupted write have left the bad frame at `offset`?

    `data` is the file from `offset` to its end. `frame` is the frame's header, None when
    that itself is bad. The caller made sure that no valid frame follows.
    """
    head_end = (offset + HEADER_BYTES + SECTOR - 1) // SECTOR * SECTOR
    if frame is None:
        if _zero(data[HEADER_BYTES:]):
            return True
        # A sector with a part of the header in it is either there or still zero.
        bounds = range(offset // SECTOR * SECTOR, head_end, SECTOR)
        return any(
            _zero(data[max(start - offset, 0) : start + SECTOR - offset]) for start in bounds
        )
    size = frame.end - offset
    if size > len(data) or not _zero(data[size:]):
        return False
    body = data[:size]
    close = frame.closing()
    kept = body.rstrip(b"\0")
    trailer_at = size - TRAILER_BYTES
    if len(kept) <= trailer_at:
        return True
    if payload_crc(body[HEADER_BYTES : HEADER_BYTES + frame.length]) == frame.payload_crc:
        # All there but the end of the trailer, which ends in no zero.
        missing = size - len(kept)
        return missing > 0 and body[trailer_at:-missing] == close[-TRAILER_BYTES:-missing]
    return any(
        _zero(body[start - offset : start + SECTOR - offset])
        for start in range(head_end, frame.end, SECTOR)
    )
