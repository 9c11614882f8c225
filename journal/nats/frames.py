"""One message of a journal stream: a header that binds it to what it follows, then payload.

A batch is one message, or several *parts* where it is longer than a message may be. Each message
carries

- the batch's number (the contract's sequence), and which part of how many this is;
- the writer's nonce, random for every journal object that is opened;
- `prev`, the digest of the message it continues: the last part of the batch before, or the part
  before;
- `settled` and its digest: the newest batch that the writer *knew* to be stored when it made this
  one (it may have more under way);
- its own digest, over everything else in it.

So a message is checked by itself, and by its successor it is checked for its place. `chain` has
the rules. The digest is XXH3 with 128 bits: it has to find what was damaged, lost or put in
another's place, and not to withstand somebody who may write to the stream: he could make all
digests anew. Synchronous, no I/O.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from xxhash import xxh3_128, xxh3_128_digest

MAGIC = b"JTDJ"
VERSION = 1
DIGEST_BYTES = 16
NONCE_BYTES = 16
_ROOT = b"jotd journal "
_HEAD = struct.Struct("<4sBxxxII16sQQ16s16s")
# magic, version, part, parts, nonce, batch, settled, settled's digest, prev
HEADER_BYTES = _HEAD.size + DIGEST_BYTES
PARTS_MAX = 1 << 16


class BadFrame(Exception):
    """A message that no writer of this format has made, or that changed since."""


class NewerFrame(Exception):
    """A message of a format version that this code does not know."""

    def __init__(self, found: int) -> None:
        super().__init__(f"format version {found}")
        self.found = found


@dataclass(frozen=True, slots=True)
class Frame:
    """One message, taken apart and found intact."""

    batch: int
    part: int
    """From 1."""
    parts: int
    nonce: bytes
    prev: bytes
    settled: int
    settled_digest: bytes
    digest: bytes
    payload: bytes


def root(identity: bytes) -> bytes:
    """The digest that the first batch of a journal continues."""
    return xxh3_128_digest(_ROOT + identity)


def encode(
    *,
    batch: int,
    part: int,
    parts: int,
    nonce: bytes,
    prev: bytes,
    settled: int,
    settled_digest: bytes,
    pieces: Sequence[bytes | memoryview],
) -> tuple[bytes, bytes]:
    """(the message, its digest)."""
    head = _HEAD.pack(MAGIC, VERSION, part, parts, nonce, batch, settled, settled_digest, prev)
    state = xxh3_128(head)
    for piece in pieces:
        state.update(piece)
    digest = state.digest()
    return b"".join((head, digest, *pieces)), digest


def decode(data: bytes) -> Frame:
    """The message, verified. BadFrame, NewerFrame."""
    if len(data) < HEADER_BYTES or data[:4] != MAGIC:
        raise BadFrame("not a message of a journal")
    if data[4] > VERSION:
        raise NewerFrame(data[4])
    view = memoryview(data)
    state = xxh3_128(view[: _HEAD.size])
    state.update(view[HEADER_BYTES:])
    digest = data[_HEAD.size : HEADER_BYTES]
    if state.digest() != digest:
        raise BadFrame("the digest does not match")
    _, version, part, parts, nonce, batch, settled, settled_digest, prev = _HEAD.unpack_from(data)
    if version != VERSION or not 1 <= part <= parts <= PARTS_MAX or batch <= settled:
        raise BadFrame("impossible figures in the header")
    payload = data[HEADER_BYTES:]
    return Frame(batch, part, parts, nonce, prev, settled, settled_digest, digest, payload)


def cut(parts: Sequence[bytes], size: int, limit: int) -> Iterator[list[bytes | memoryview]]:
    """The concatenation of `parts` (`size` bytes in all) as lists of pieces of up to `limit` bytes.

    At least one list. Pieces are views where a part is divided, so nothing is copied.
    """
    if size <= limit:
        yield list(parts)
        return
    pieces: list[bytes | memoryview] = []
    room = limit
    for part in parts:
        rest = memoryview(part)
        while len(rest) >= room:
            pieces.append(rest[:room])
            yield pieces
            rest, pieces, room = rest[room:], [], limit
        if rest:
            pieces.append(rest)
            room -= len(rest)
    if pieces:
        yield pieces


def parts_of(size: int, limit: int) -> int:
    """How many lists `cut` gives."""
    return max(1, -(-size // limit))
