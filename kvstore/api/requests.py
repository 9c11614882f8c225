"""The requests that a server gets all the time, read from the wire into plain values.

Protobuf's own parser for Python makes a message object and an arena for each, copies everything
twice, and has glibc trim its whole heap every 10,000 of them, which held the loop for tens of
milliseconds at a million keys (I9). So these few are read here, in the form that clients give them:
fields that etcd knows, each in the usual shape. *Anything* else is left to protobuf, which refuses
it or says what it means: it is written anew by protobuf and then read here.
"""

from __future__ import annotations

from typing import Any, Final

from kvstore.pb import rpc_pb2 as pb

Compare = tuple[bytes, bytes, int, int, "int | bytes"]
"""(key, range_end, target, result, value to compare with). A value of another kind than the
target's is zero or empty."""

_VALUE: Final = int(pb.Compare.VALUE)
_UNION: Final = 4
"""The field of the union in Compare that goes with a target is the target's number and this."""
_LEVELS: Final = 4
"""Transactions nested deeper than this are looked at by protobuf first, which bounds the depth."""
_LEVELS_MAX: Final = 1000
"""More than protobuf lets pass."""
_INT32_MAX: Final = (1 << 31) - 1
_INT32_MIN: Final = -(1 << 31)
_INT64_MAX: Final = (1 << 63) - 1
_TWO64: Final = 1 << 64


class Range:
    """etcdserverpb.RangeRequest."""

    __slots__ = (
        "count_only",
        "key",
        "keys_only",
        "limit",
        "max_create_revision",
        "max_mod_revision",
        "min_create_revision",
        "min_mod_revision",
        "range_end",
        "revision",
        "sort_order",
        "sort_target",
    )

    def __init__(self) -> None:
        self.key = b""
        self.range_end = b""
        self.limit = 0
        self.revision = 0
        self.sort_order = 0
        self.sort_target = 0
        self.keys_only = False
        self.count_only = False
        self.min_mod_revision = 0
        self.max_mod_revision = 0
        self.min_create_revision = 0
        self.max_create_revision = 0


class Put:
    """etcdserverpb.PutRequest."""

    __slots__ = ("ignore_lease", "ignore_value", "key", "lease", "prev_kv", "value")

    def __init__(self) -> None:
        self.key = b""
        self.value = b""
        self.lease = 0
        self.prev_kv = False
        self.ignore_value = False
        self.ignore_lease = False


class Delete:
    """etcdserverpb.DeleteRangeRequest; an empty `range_end` stands for one key."""

    __slots__ = ("key", "prev_kv", "range_end")

    def __init__(self) -> None:
        self.key = b""
        self.range_end = b""
        self.prev_kv = False


class Op:
    """etcdserverpb.RequestOp: one of these is there, or none."""

    __slots__ = ("delete", "put", "range", "txn")

    def __init__(self) -> None:
        self.put: Put | None = None
        self.delete: Delete | None = None
        self.range: Range | None = None
        self.txn: Txn | None = None


class Txn:
    """etcdserverpb.TxnRequest."""

    __slots__ = ("compares", "failure", "success")

    def __init__(self) -> None:
        self.compares: list[Compare] = []
        self.success: list[Op] = []
        self.failure: list[Op] = []


class _Unusual(Exception):
    """Not for this parser."""


def read_range(raw: bytes) -> Range:
    """A RangeRequest. Raises DecodeError, as the others do."""
    try:
        return _range(raw, 0, len(raw))
    except (_Unusual, IndexError):
        usual = _rewritten(pb.RangeRequest.FromString(raw))
        return _range(usual, 0, len(usual))


def read_put(raw: bytes) -> Put:
    """A PutRequest."""
    try:
        return _put(raw, 0, len(raw))
    except (_Unusual, IndexError):
        usual = _rewritten(pb.PutRequest.FromString(raw))
        return _put(usual, 0, len(usual))


def read_delete(raw: bytes) -> Delete:
    """A DeleteRangeRequest."""
    try:
        return _delete(raw, 0, len(raw))
    except (_Unusual, IndexError):
        usual = _rewritten(pb.DeleteRangeRequest.FromString(raw))
        return _delete(usual, 0, len(usual))


def read_txn(raw: bytes) -> Txn:
    """A TxnRequest."""
    try:
        return _txn(raw, 0, len(raw), _LEVELS)
    except (_Unusual, IndexError):
        usual = _rewritten(pb.TxnRequest.FromString(raw))
        return _txn(usual, 0, len(usual), _LEVELS_MAX)


def read_keep_alive(raw: bytes) -> int:
    """The lease of a LeaseKeepAliveRequest."""
    try:
        return _keep_alive(raw, 0, len(raw))
    except (_Unusual, IndexError):
        usual = _rewritten(pb.LeaseKeepAliveRequest.FromString(raw))
        return _keep_alive(usual, 0, len(usual))


def _rewritten(message: Any) -> bytes:
    message.DiscardUnknownFields()
    written: bytes = message.SerializeToString()
    return written


# -- the wire ------------------------------------------------------------------------------
#
# All read data[at:end]; past the end of `data` an index fails, past `end` the last test does.


def _long(data: bytes, at: int) -> tuple[int, int]:
    """The varint at `at`, of any length: (value, position behind it)."""
    number = shift = 0
    while True:
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            break
        shift += 7
        if shift > 63:
            raise _Unusual
    if number >= _TWO64:
        raise _Unusual
    return number, at


def _int64(data: bytes, at: int) -> tuple[int, int]:
    byte = data[at]
    if byte < 0x80:
        return byte, at + 1
    number, at = _long(data, at)
    return (number if number <= _INT64_MAX else number - _TWO64), at


def _enum(data: bytes, at: int) -> tuple[int, int]:
    number, at = _int64(data, at)
    if not _INT32_MIN <= number <= _INT32_MAX:
        raise _Unusual
    return number, at


def _bool(data: bytes, at: int) -> tuple[bool, int]:
    number, at = _int64(data, at)
    return number != 0, at


def _span(data: bytes, at: int, end: int) -> tuple[int, int]:
    """A length: (where what follows begins, where it ends)."""
    size, at = _int64(data, at)
    if size < 0 or at + size > end:
        raise _Unusual
    return at, at + size


def _put(data: bytes, at: int, end: int) -> Put:
    put = Put()
    while at < end:
        tag = data[at]
        if tag == 0x0A:
            start, at = _span(data, at + 1, end)
            put.key = data[start:at]
        elif tag == 0x12:
            start, at = _span(data, at + 1, end)
            put.value = data[start:at]
        elif tag == 0x18:
            put.lease, at = _int64(data, at + 1)
        elif tag == 0x20:
            put.prev_kv, at = _bool(data, at + 1)
        elif tag == 0x28:
            put.ignore_value, at = _bool(data, at + 1)
        elif tag == 0x30:
            put.ignore_lease, at = _bool(data, at + 1)
        else:
            raise _Unusual
    if at != end:
        raise _Unusual
    return put


def _delete(data: bytes, at: int, end: int) -> Delete:
    delete = Delete()
    while at < end:
        tag = data[at]
        if tag == 0x0A:
            start, at = _span(data, at + 1, end)
            delete.key = data[start:at]
        elif tag == 0x12:
            start, at = _span(data, at + 1, end)
            delete.range_end = data[start:at]
        elif tag == 0x18:
            delete.prev_kv, at = _bool(data, at + 1)
        else:
            raise _Unusual
    if at != end:
        raise _Unusual
    return delete


def _range(data: bytes, at: int, end: int) -> Range:
    request = Range()
    while at < end:
        tag = data[at]
        if tag == 0x0A:
            start, at = _span(data, at + 1, end)
            request.key = data[start:at]
        elif tag == 0x12:
            start, at = _span(data, at + 1, end)
            request.range_end = data[start:at]
        elif tag == 0x18:
            request.limit, at = _int64(data, at + 1)
        elif tag == 0x20:
            request.revision, at = _int64(data, at + 1)
        elif tag == 0x28:
            request.sort_order, at = _enum(data, at + 1)
        elif tag == 0x30:
            request.sort_target, at = _enum(data, at + 1)
        elif tag == 0x38:
            # serializable: one node's reads are linearizable anyway.
            _, at = _bool(data, at + 1)
        elif tag == 0x40:
            request.keys_only, at = _bool(data, at + 1)
        elif tag == 0x48:
            request.count_only, at = _bool(data, at + 1)
        elif tag == 0x50:
            request.min_mod_revision, at = _int64(data, at + 1)
        elif tag == 0x58:
            request.max_mod_revision, at = _int64(data, at + 1)
        elif tag == 0x60:
            request.min_create_revision, at = _int64(data, at + 1)
        elif tag == 0x68:
            request.max_create_revision, at = _int64(data, at + 1)
        else:
            raise _Unusual
    if at != end:
        raise _Unusual
    return request


def _txn(data: bytes, at: int, end: int, levels: int) -> Txn:
    if not levels:
        raise _Unusual
    txn = Txn()
    while at < end:
        tag = data[at]
        start, at = _span(data, at + 1, end)
        if tag == 0x0A:
            txn.compares.append(_compare(data, start, at))
        elif tag == 0x12:
            txn.success.append(_op(data, start, at, levels))
        elif tag == 0x1A:
            txn.failure.append(_op(data, start, at, levels))
        else:
            raise _Unusual
    if at != end:
        raise _Unusual
    return txn


def _op(data: bytes, at: int, end: int, levels: int) -> Op:
    op = Op()
    if at == end:
        return op
    tag = data[at]
    start, at = _span(data, at + 1, end)
    if at != end:
        # A second one takes the place of the first, or is merged with it.
        raise _Unusual
    if tag == 0x0A:
        op.range = _range(data, start, at)
    elif tag == 0x12:
        op.put = _put(data, start, at)
    elif tag == 0x1A:
        op.delete = _delete(data, start, at)
    elif tag == 0x22:
        op.txn = _txn(data, start, at, levels - 1)
    else:
        raise _Unusual
    return op


def _compare(data: bytes, at: int, end: int) -> Compare:
    key = range_end = value = b""
    result = target = field = number = 0
    while at < end:
        tag = data[at]
        if tag == 0x08:
            result, at = _enum(data, at + 1)
        elif tag == 0x10:
            target, at = _enum(data, at + 1)
        elif tag == 0x1A:
            start, at = _span(data, at + 1, end)
            key = data[start:at]
        elif tag == 0x20 or tag == 0x28 or tag == 0x30 or tag == 0x40:
            field = tag >> 3
            number, at = _int64(data, at + 1)
        elif tag == 0x3A:
            field = 7
            start, at = _span(data, at + 1, end)
            value = data[start:at]
        elif tag == 0x82 and data[at + 1] == 0x04:
            start, at = _span(data, at + 2, end)
            range_end = data[start:at]
        else:
            raise _Unusual
    if at != end:
        raise _Unusual
    fits = field == target + _UNION
    if target == _VALUE:
        return key, range_end, target, result, value if fits else b""
    return key, range_end, target, result, number if fits else 0


def _keep_alive(data: bytes, at: int, end: int) -> int:
    lease_id = 0
    while at < end:
        if data[at] != 0x08:
            raise _Unusual
        lease_id, at = _int64(data, at + 1)
    if at != end:
        raise _Unusual
    return lease_id
