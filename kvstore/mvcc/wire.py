"""Protobuf's wire format, as far as the store writes it itself.

A key-value pair is encoded once, when its version is made, and kept as those bytes (DESIGN §5).
The bytes include the tag and the length that the pair has as field 2 of `RangeResponse`,
`PutResponse`, `Event` and the journal's `Record`, so all four are made by joining.
"""

from __future__ import annotations

from typing import Final

from kvstore.pb.kv_pb2 import KeyValue

_MASK64: Final = (1 << 64) - 1
_LAST: Final = tuple(
    bytes((n,)) if n < 0x80 else bytes((n & 0x7F | 0x80, n >> 7)) for n in range(0x4000)
)
_MORE: Final = tuple(bytes((n & 0x7F | 0x80, n >> 7 | 0x80)) for n in range(0x4000))
"""Fourteen bits as the end of a varint, and as a part that is not its end."""


def varint(number: int) -> bytes:
    """A base-128 varint; negative numbers as their 64-bit two's complement."""
    if 0 <= number < 0x4000:
        return _LAST[number]
    if 0 <= number < 0x1000_0000:
        return _MORE[number & 0x3FFF] + _LAST[number >> 14]
    number &= _MASK64
    parts = []
    while number >= 0x4000:
        parts.append(_MORE[number & 0x3FFF])
        number >>= 14
    parts.append(_LAST[number])
    return b"".join(parts)


def field_varint(tag: bytes, number: int) -> bytes:
    """A varint field, left out when it is zero (proto3)."""
    return tag + varint(number) if number else b""


def field_bytes(tag: bytes, value: bytes) -> bytes:
    """A length-delimited field, present even when it is empty."""
    return tag + varint(len(value)) + value


def encode_key_value(
    key: bytes, create_revision: int, mod_revision: int, version: int, value: bytes, lease: int
) -> bytes:
    """A `KeyValue` as field 2 of its parent: tag, length, message.

    A deletion has version and create_revision 0 (etcd's tombstone: key and mod_revision only).
    """
    mod = varint(mod_revision)
    head = b"\x0a" + varint(len(key)) + key
    if version:
        create = mod if create_revision == mod_revision else varint(create_revision)
        head = b"".join((head, b"\x10", create, b"\x18", mod, b"\x20", varint(version)))
    else:
        head = head + b"\x18" + mod
    if value:
        head = head + b"\x2a" + varint(len(value))
    tail = b"\x30" + varint(lease) if lease else b""
    return b"".join((b"\x12", varint(len(head) + len(value) + len(tail)), head, value, tail))


def payload_start(framed: bytes) -> int:
    """Where the message begins in what `encode_key_value` returned."""
    at = 1
    while framed[at] & 0x80:
        at += 1
    return at + 1


def decode_key_value(framed: bytes) -> KeyValue:
    """The message that `encode_key_value` wrote."""
    return KeyValue.FromString(framed[payload_start(framed) :])
