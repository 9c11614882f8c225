"""The control file: whose journal this is, and how far it is known to reach.

Two sectors that are written alternately and in place (a full disk must not keep a server
from starting), each with a generation; the newer one counts. It holds

- the identity, made at creation,
- the oldest sequence kept, written *before* a trim removes files: what is older and still
  there is rubbish, what should be there and is not has been lost;
- a sequence that is known to be durable: a journal that ends below it has lost data. It is
  brought up to date with every new segment, every second or so, and at open and close;
- whether the journal was closed properly, in which case it must end exactly there, and
  what looks like a torn frame is damage.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass, replace
from pathlib import Path

from journal.contract import Corrupt
from journal.file.blocks import RESTORE, SECTOR, pack_block, unpack_block
from journal.file.disk import Disk

NAME = "control"
MAGIC = b"JOTDCTL\0"
_SLOT_BYTES = 4096
FILE_BYTES = 2 * _SLOT_BYTES
_BODY = struct.Struct("<16sQQQQB")


@dataclass(frozen=True, slots=True)
class Control:
    identity: bytes
    created_ns: int
    generation: int
    oldest: int
    """First sequence that must be there (of a segment; 1 in a new journal)."""
    known_tail: int
    """A sequence that was durable when this was written."""
    clean: bool
    """Closed properly: `known_tail` is the tail."""


def _pack(control: Control) -> bytes:
    body = _BODY.pack(
        control.identity,
        control.created_ns,
        control.generation,
        control.oldest,
        control.known_tail,
        control.clean,
    )
    return pack_block(MAGIC, body)


def create_control(disk: Disk, directory: Path, identity: bytes, created_ns: int) -> Control:
    """Write the control file of a new journal, durably. OSError."""
    control = Control(identity, created_ns, 1, oldest=1, known_tail=0, clean=True)
    temporary = directory / (NAME + ".tmp")
    fd = disk.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    try:
        disk.write(fd, [bytes(FILE_BYTES)], 0)
        disk.write(fd, [_pack(control)], _slot(control))
        disk.sync(fd)
    finally:
        disk.close(fd)
    disk.rename(temporary, directory / NAME)
    disk.sync_dir(directory)
    return control


def load_control(disk: Disk, directory: Path) -> Control:
    """Read and check the control file. FileNotFoundError, Corrupt, IncompatibleVersion."""
    path = directory / NAME
    fd = disk.open(path, os.O_RDONLY)
    try:
        data = disk.read(fd, FILE_BYTES + 1, 0)
    finally:
        disk.close(fd)
    if len(data) != FILE_BYTES:
        what = f"control file of {len(data)} bytes, {FILE_BYTES} expected"
        raise Corrupt(path, min(len(data), FILE_BYTES), what, RESTORE)
    found: list[Control] = []
    for offset in (0, _SLOT_BYTES):
        block = data[offset : offset + SECTOR]
        if block.strip(b"\0"):
            body = unpack_block(block, MAGIC, path, offset)
            identity, created_ns, generation, oldest, tail, clean = _BODY.unpack_from(body)
            found.append(Control(identity, created_ns, generation, oldest, tail, bool(clean)))
    found.sort(key=lambda control: control.generation)
    generations = [control.generation for control in found]
    whole = generations == [1] or (len(found) == 2 and generations[1] == generations[0] + 1)
    if not whole or len({control.identity for control in found}) != 1:
        raise Corrupt(path, 0, "the two halves of the control file do not belong together", RESTORE)
    return found[-1]


def store_control(
    disk: Disk, directory: Path, control: Control, *, oldest: int, known_tail: int, clean: bool
) -> Control:
    """Write the next generation, durably, and return it. OSError."""
    control = replace(
        control,
        generation=control.generation + 1,
        oldest=oldest,
        known_tail=known_tail,
        clean=clean,
    )
    fd = disk.open(directory / NAME, os.O_RDWR)
    try:
        disk.write(fd, [_pack(control)], _slot(control))
        disk.datasync(fd)
    finally:
        disk.close(fd)
    return control


def _slot(control: Control) -> int:
    return control.generation % 2 * _SLOT_BYTES
