"""Protobuf by hand, for bytes that no library would write."""

from __future__ import annotations


def varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


def tag(field: int, wire_type: int) -> bytes:
    return varint(field << 3 | wire_type)


def delimited(field: int, body: bytes) -> bytes:
    """A length-delimited field: bytes, string or message."""
    return tag(field, 2) + varint(len(body)) + body


def put_of_length(length: int) -> bytes:
    """A Put request of exactly so many bytes, 16 at least."""
    for key_length in range(1, 8):
        for overhead in range(4, 12):
            key = delimited(1, b"k" * key_length)
            body = key + delimited(2, b"x" * (length - overhead - key_length))
            if len(body) == length:
                return body
    raise AssertionError(length)


def nested_txns(depth: int) -> bytes:
    """A Txn around so many others, the innermost of them around one put of ``deep``."""
    op = delimited(2, delimited(1, b"deep"))
    for _ in range(depth):
        op = delimited(4, delimited(2, op))
    return delimited(2, op)
