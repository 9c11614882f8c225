"""Header blocks: one 512-byte sector with a magic, a version, a body and a CRC32C at the end.

Segments, snapshots and the control file start with one. The place of magic, version and
CRC is fixed for all versions, so that "written by newer code" (`IncompatibleVersion`) can be told
from "damaged" (`Corrupt`): the version counts only when the CRC is right. A sector is written
by the device as a whole or not at all, so a block is never torn.
"""

from __future__ import annotations

import struct
from pathlib import Path

import google_crc32c

from journal.contract import FORMAT_VERSION, Corrupt, IncompatibleVersion

SECTOR = 512
_HEAD = struct.Struct("<8sI")
_CRC = struct.Struct("<I")
BODY_MAX = SECTOR - _HEAD.size - _CRC.size

RESTORE = (
    "Acknowledged writes may be in it, so it is neither skipped nor cut: put back an intact copy "
    "of this file, or restore the data directory from a backup. `jotd journal verify` "
    "lists what is intact"
)


def pack_block(magic: bytes, body: bytes, version: int = FORMAT_VERSION) -> bytes:
    """One sector. `magic` has 8 bytes, `body` at most `BODY_MAX`."""
    assert len(magic) == 8 and len(body) <= BODY_MAX
    block = (_HEAD.pack(magic, version) + body).ljust(SECTOR - _CRC.size, b"\0")
    return block + _CRC.pack(google_crc32c.value(block))


def unpack_block(block: bytes, magic: bytes, file: Path, offset: int) -> bytes:
    """The body (padded with zeros) of a block; Corrupt or IncompatibleVersion otherwise."""
    if len(block) != SECTOR:
        raise Corrupt(file, offset, f"header of {len(block)} bytes, {SECTOR} expected", RESTORE)
    found, version = _HEAD.unpack_from(block)
    (crc,) = _CRC.unpack_from(block, SECTOR - _CRC.size)
    if google_crc32c.value(block[: -_CRC.size]) != crc:
        raise Corrupt(file, offset, "header checksum does not match", RESTORE)
    if found != magic:
        raise Corrupt(file, offset, f"not the kind of file its name says ({found!r})", RESTORE)
    if version > FORMAT_VERSION:
        raise IncompatibleVersion(file, version)
    return block[_HEAD.size : -_CRC.size]
