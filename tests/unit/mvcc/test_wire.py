"""What is encoded by hand is what protobuf would have encoded, byte for byte."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kvstore.api.headers import Headers, inner
from kvstore.mvcc.version import delete_version, put_version, version_from_wire
from kvstore.mvcc.wire import (
    decode_key_value,
    encode_key_value,
    field_bytes,
    field_varint,
    payload_start,
    varint,
)
from kvstore.pb import kv_pb2, record_pb2
from kvstore.pb import rpc_pb2 as pb
from kvstore.watch.hub import Shape, encode_event
from tests.property.profiles import moderate

int64s = st.one_of(
    st.integers(-(1 << 63), (1 << 63) - 1),
    st.sampled_from([0, 1, 127, 128, 0x3FFF, 0x4000, 0xFFFFFFF, 0x10000000, -1]),
    st.integers(0, 70).map(lambda n: (1 << min(n, 62)) - n % 2),
)
positive = st.one_of(st.integers(1, (1 << 63) - 1), st.integers(1, 300), st.integers(16300, 16500))
binaries = st.one_of(st.binary(max_size=20), st.integers(0, 40_000).map(bytes))


@moderate(300)
@given(int64s)
def test_varints_are_protobufs(number: int) -> None:
    expected = kv_pb2.KeyValue(lease=number).SerializeToString()
    assert field_varint(b"\x30", number) == expected
    assert varint(number) == (expected[1:] if number else b"\x00")


@moderate(300)
@given(binaries.filter(bool), positive, positive, positive, binaries, int64s)
def test_pairs_are_protobufs(
    key: bytes, create: int, mod: int, number: int, value: bytes, lease: int
) -> None:
    kv = kv_pb2.KeyValue(
        key=key,
        create_revision=create,
        mod_revision=mod,
        version=number,
        value=value,
        lease=lease,
    )
    framed = encode_key_value(key, create, mod, number, value, lease)
    assert framed == record_pb2.Record(versions=[kv]).SerializeToString()
    assert framed == pb.RangeResponse(kvs=[kv]).SerializeToString()
    assert framed == pb.PutResponse(prev_kv=kv).SerializeToString()
    assert framed[payload_start(framed) :] == kv.SerializeToString()
    assert decode_key_value(framed) == kv
    again = version_from_wire(framed, 3)
    assert (again.key, again.create, again.mod, again.number, again.lease, again.value) == (
        key, create, mod, number, lease, value,
    )  # fmt: skip
    deleted = delete_version(mod, 0, again)
    tombstone = kv_pb2.KeyValue(key=key, mod_revision=mod)
    assert deleted.framed == pb.RangeResponse(kvs=[tombstone]).SerializeToString()
    kv.ClearField("value")
    kv.ClearField("lease")
    assert again.without_value() == pb.RangeResponse(kvs=[kv]).SerializeToString()


@moderate(100)
@given(binaries, positive, positive, positive)
def test_headers_are_protobufs(data: bytes, cluster: int, member: int, revision: int) -> None:
    headers = Headers(cluster, member, 7)
    for at in (revision, revision, revision % 5 + 1):
        header = pb.ResponseHeader(cluster_id=cluster, member_id=member, revision=at, raft_term=7)
        assert headers.at(at) == pb.PutResponse(header=header).SerializeToString()
        plain = pb.PutResponse(header=pb.ResponseHeader(revision=at))
        assert inner(at) == plain.SerializeToString()
    header.ClearField("revision")
    assert headers.without_revision == pb.PutResponse(header=header).SerializeToString()
    assert field_bytes(b"\x0a", data) == b"\x0a" + varint(len(data)) + data


@moderate(100)
@given(binaries.filter(bool), binaries, st.booleans())
def test_events_are_protobufs(key: bytes, value: bytes, prev_kv: bool) -> None:
    """A creation has no previous value, nor has anything one that the same revision made."""
    shape = Shape(prev_kv=prev_kv)
    first = put_version(key, value, 0, 2, 0, None)
    update = put_version(key, b"new", 5, 3, 0, first)
    gone = delete_version(3, 1, update)
    anew = put_version(key, b"x", 0, 3, 2, gone)
    later = delete_version(4, 0, anew)
    again = put_version(key, b"y", 0, 9, 0, later)
    for version, before in [
        (first, None), (update, first), (gone, first), (anew, None), (later, anew), (again, None),
    ]:  # fmt: skip
        event = pb.WatchResponse().events.add()
        event.type = 0 if version.number else 1  # type: ignore[assignment]
        event.kv.CopyFrom(decode_key_value(version.framed))
        if prev_kv and before is not None:
            event.prev_kv.CopyFrom(decode_key_value(before.framed))
        expected = pb.WatchResponse(events=[event]).SerializeToString()
        assert encode_event(version, shape) == expected
