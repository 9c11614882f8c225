"""Protobuf's wire format, as far as the store writes it itself.

A key-value pair is encoded once, when its version is made, and kept as those bytes (DESIGN §5).
The bytes include the tag and the length that the pair has as field 2 of `RangeResponse`,
`PutResponse`, `Event` and the journal's `Record`, so all four are made by joining.
"""

from __future__ import annotations

from typing import Final

from google.protobuf.message import DecodeError

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
    named = varint(len(key))
    size = len(named) + len(key) + len(mod)
    if not version:
        return b"".join((b"\x12", varint(size + 2), b"\x0a", named, key, b"\x18", mod))
    create = mod if create_revision == mod_revision else varint(create_revision)
    number = varint(version)
    size += len(create) + len(number)
    measured = b""
    if value:
        measured = varint(len(value))
        size += 1 + len(measured) + len(value)
    tail = b""
    if lease:
        tail = b"\x30" + varint(lease)
        size += len(tail)
    return b"".join(
        (
            b"\x12",
            varint(size + 4),
            b"\x0a",
            named,
            key,
            b"\x10",
            create,
            b"\x18",
            mod,
            b"\x20",
            number,
            b"\x2a" if value else b"",
            measured,
            value,
            tail,
        )
    )


def payload_start(framed: bytes) -> int:
    """Where the message begins in what `encode_key_value` returned."""
    at = 1
    while framed[at] & 0x80:
        at += 1
    return at + 1


def decode_key_value(framed: bytes) -> KeyValue:
    """The message that `encode_key_value` wrote."""
    return KeyValue.FromString(framed[payload_start(framed) :])


def read_key_value(framed: bytes) -> tuple[bytes, int, int, int, int]:
    """Key, create_revision, mod_revision, version and lease of what `encode_key_value` wrote.

    Whatever else is a KeyValue is left to protobuf. Raises DecodeError.
    """
    end = len(framed)
    at = payload_start(framed)
    key = b""
    numbers = [0, 0, 0, 0, 0, 0, 0]
    last = 0
    while at < end:
        tag = framed[at]
        field = tag >> 3
        if tag not in _KEY_VALUE_TAGS or field <= last:
            break
        last = field
        number, at = read_varint(framed, at + 1, end)
        if tag & 7:
            if number > end - at:
                break
            if field == 1:
                key = framed[at : at + number]
            at += number
        else:
            numbers[field] = number
    else:
        return key, numbers[2], numbers[3], numbers[4], _signed(numbers[6])
    kv = decode_key_value(framed)
    return kv.key, kv.create_revision, kv.mod_revision, kv.version, kv.lease


_KEY_VALUE_TAGS: Final = frozenset((0x0A, 0x10, 0x18, 0x20, 0x2A, 0x30))


def _signed(number: int) -> int:
    return number - (1 << 64) if number >= 1 << 63 else number


def read_varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    """A varint and where it ends. Raises DecodeError."""
    number = shift = 0
    while at < end and shift < 70:
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number & _MASK64, at
        shift += 7
    raise DecodeError("a number without end")
