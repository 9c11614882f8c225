"""The parser of hot requests against protobuf's own: the same values, and the same refusals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.message import DecodeError
from hypothesis import example, given
from hypothesis import strategies as st

from kvstore.api import requests
from kvstore.pb import rpc_pb2 as pb

RANGE_FIELDS = requests.Range.__slots__
PUT_FIELDS = requests.Put.__slots__
DELETE_FIELDS = requests.Delete.__slots__
UNION = ("version", "create_revision", "mod_revision", "value", "lease")

int64 = st.integers(-(1 << 63), (1 << 63) - 1) | st.integers(0, 300)
enum = st.integers(-(1 << 31), (1 << 31) - 1) | st.integers(0, 4)
text = st.binary(max_size=3) | st.binary(min_size=120, max_size=140)


def fields(names: Any, message: Any) -> tuple[Any, ...]:
    return tuple(getattr(message, name) for name in names)


def of_range(message: Any) -> Any:
    return ("range", *fields(RANGE_FIELDS, message))


def of_put(message: Any) -> Any:
    return ("put", *fields(PUT_FIELDS, message))


def of_delete(message: Any) -> Any:
    return ("delete", *fields(DELETE_FIELDS, message))


def pb_compare(compare: pb.Compare) -> Any:
    at = compare.target
    wanted = getattr(compare, UNION[at]) if 0 <= at < len(UNION) else 0
    return compare.key, compare.range_end, at, compare.result, wanted


def pb_op(op: pb.RequestOp) -> Any:
    match op.WhichOneof("request"):
        case "request_range":
            return of_range(op.request_range)
        case "request_put":
            return of_put(op.request_put)
        case "request_delete_range":
            return of_delete(op.request_delete_range)
        case "request_txn":
            return pb_txn(op.request_txn)
    return None


def pb_txn(txn: pb.TxnRequest) -> Any:
    compares = [pb_compare(compare) for compare in txn.compare]
    return compares, [pb_op(op) for op in txn.success], [pb_op(op) for op in txn.failure]


def own_op(op: requests.Op) -> Any:
    if op.range is not None:
        return of_range(op.range)
    if op.put is not None:
        return of_put(op.put)
    if op.delete is not None:
        return of_delete(op.delete)
    return own_txn(op.txn) if op.txn is not None else None


def own_txn(txn: requests.Txn) -> Any:
    return txn.compares, [own_op(op) for op in txn.success], [own_op(op) for op in txn.failure]


READERS: dict[str, tuple[Any, Callable[[Any], Any], Callable[[bytes], Any]]] = {
    "range": (pb.RangeRequest, of_range, lambda raw: of_range(requests.read_range(raw))),
    "put": (pb.PutRequest, of_put, lambda raw: of_put(requests.read_put(raw))),
    "delete": (pb.DeleteRangeRequest, of_delete, lambda raw: of_delete(requests.read_delete(raw))),
    "txn": (pb.TxnRequest, pb_txn, lambda raw: own_txn(requests.read_txn(raw))),
    "keep-alive": (pb.LeaseKeepAliveRequest, lambda m: m.ID, requests.read_keep_alive),
}

puts = st.builds(
    pb.PutRequest,
    key=text,
    value=text,
    lease=int64,
    prev_kv=st.booleans(),
    ignore_value=st.booleans(),
    ignore_lease=st.booleans(),
)
deletes = st.builds(pb.DeleteRangeRequest, key=text, range_end=text, prev_kv=st.booleans())
ranges = st.builds(
    pb.RangeRequest,
    key=text,
    range_end=text,
    limit=int64,
    revision=int64,
    sort_order=enum,
    sort_target=enum,
    serializable=st.booleans(),
    keys_only=st.booleans(),
    count_only=st.booleans(),
    min_mod_revision=int64,
    max_mod_revision=int64,
    min_create_revision=int64,
    max_create_revision=int64,
)
compares = st.one_of(
    st.builds(pb.Compare, result=enum, target=enum, key=text, range_end=text, **{name: value})
    for name, value in zip(UNION, (int64, int64, int64, text, int64), strict=True)
)
leaves = st.one_of(
    st.builds(pb.RequestOp),
    st.builds(pb.RequestOp, request_put=puts),
    st.builds(pb.RequestOp, request_range=ranges),
    st.builds(pb.RequestOp, request_delete_range=deletes),
)


def txns_of(ops: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    some = st.lists(ops, max_size=2)
    return st.builds(
        pb.TxnRequest, compare=st.lists(compares, max_size=2), success=some, failure=some
    )


ops = st.recursive(
    leaves, lambda inner: st.builds(pb.RequestOp, request_txn=txns_of(inner)), max_leaves=8
)
messages = st.one_of(
    puts, deletes, ranges, txns_of(ops), st.builds(pb.LeaseKeepAliveRequest, ID=int64)
)
KINDS = {cls: name for name, (cls, _, _) in READERS.items()}


def check(kind: str, raw: bytes) -> None:
    cls, of_message, own = READERS[kind]
    try:
        expected = of_message(cls.FromString(raw))
    except DecodeError as error:
        with pytest.raises(DecodeError) as raised:
            own(raw)
        assert str(raised.value) == str(error)
    else:
        assert own(raw) == expected


@given(messages)
def test_what_protobuf_writes_is_read_as_it_was_meant(message: Any) -> None:
    check(KINDS[type(message)], message.SerializeToString())


@given(messages, st.data())
def test_damaged_messages_are_what_protobuf_takes_them_for(
    message: Any, data: st.DataObject
) -> None:
    raw = bytearray(message.SerializeToString())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(raw)))
        match data.draw(st.sampled_from(["byte", "cut", "insert", "twice"])):
            case "byte" if at < len(raw):
                raw[at] = data.draw(st.integers(0, 255))
            case "cut":
                del raw[at : at + data.draw(st.integers(1, 3))]
            case "insert":
                raw[at:at] = data.draw(st.binary(min_size=1, max_size=12))
            case "twice":
                raw += raw[at:]
    check(KINDS[type(message)], bytes(raw))


@pytest.mark.parametrize("kind", READERS)
@given(st.binary(max_size=40))
@example(b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01")
@example(b"\x18\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02")
@example(b"\x18\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01")
@example(b"\x28\x80\x80\x80\x80\x10")
@example(b"\x0b\x0c")
@example(b"\x18")
def test_any_bytes_are_what_protobuf_takes_them_for(kind: str, raw: bytes) -> None:
    check(kind, raw)


@pytest.mark.parametrize("levels", [1, 3, 4, 5, 40, 49, 50, 60, 5000])
def test_depth_is_bounded_as_by_protobuf(levels: int) -> None:
    raw = b""
    for _ in range(levels):
        op = _field(b"\x22", raw)
        raw = _field(b"\x12", op)
    if levels < 40:
        check("txn", raw)
        return
    try:
        pb.TxnRequest.FromString(raw)
    except DecodeError:
        with pytest.raises(DecodeError):
            requests.read_txn(raw)
    else:
        requests.read_txn(raw)


def _field(tag: bytes, body: bytes) -> bytes:
    length, size = b"", len(body)
    while size >= 0x80:
        length += bytes((size & 0x7F | 0x80,))
        size >>= 7
    return tag + length + bytes((size,)) + body


def test_the_usual_requests_never_come_to_protobuf(monkeypatch: pytest.MonkeyPatch) -> None:
    """That is what the parser is for."""
    put = pb.PutRequest(key=b"k" * 200, value=b"v" * 70_000, lease=1 << 60)
    get = pb.RangeRequest(key=b"k", limit=500, revision=1 << 40, serializable=True)
    update = pb.TxnRequest(
        compare=[pb.Compare(target=pb.Compare.MOD, key=b"k", mod_revision=1 << 33)],
        success=[pb.RequestOp(request_put=put)],
        failure=[pb.RequestOp(request_range=get)],
    )
    raws = [message.SerializeToString() for message in (put, get, update)]

    def rewritten(message: Any) -> bytes:
        raise AssertionError("left to protobuf")

    monkeypatch.setattr(requests, "_rewritten", rewritten)
    assert requests.read_put(raws[0]).value == b"v" * 70_000
    assert requests.read_range(raws[1]).revision == 1 << 40
    assert requests.read_txn(raws[2]).compares == [(b"k", b"", pb.Compare.MOD, 0, 1 << 33)]
    with pytest.raises(AssertionError, match="left to protobuf"):
        requests.read_put(raws[0] + b"\x78\x01")
