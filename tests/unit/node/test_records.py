"""Journal entries are read by hand: held against protobuf, which wrote them or would have."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from kvstore.mvcc.version import version_from_wire
from kvstore.mvcc.wire import encode_key_value
from kvstore.node.records import read_batch
from kvstore.pb import kv_pb2, record_pb2

INT64 = st.integers(-(1 << 63), (1 << 63) - 1)
COUNTS = st.integers(0, (1 << 63) - 1)
KEY_VALUES = st.builds(
    kv_pb2.KeyValue,
    key=st.binary(max_size=300),
    create_revision=COUNTS,
    mod_revision=COUNTS,
    version=COUNTS,
    value=st.binary(max_size=300),
    lease=INT64,
)
RECORDS = st.builds(
    record_pb2.Record,
    revision=COUNTS,
    versions=st.lists(KEY_VALUES, max_size=3),
    lease_revoke=st.none() | COUNTS,
)


@given(st.lists(RECORDS, max_size=4))
def test_a_batch_is_what_protobuf_says(found: list[record_pb2.Record]) -> None:
    payload = record_pb2.Batch(records=found).SerializeToString()
    changes = read_batch(payload)
    assert [change.revision for change in changes] == [record.revision for record in found]
    for change, record in zip(changes, found, strict=True):
        assert b"".join(change.versions) == b"".join(
            record_pb2.Batch(records=[record_pb2.Record(versions=[kv])]).records[0]
            .SerializeToString() for kv in record.versions
        )  # fmt: skip
        has_change = record.WhichOneof("change") is not None
        assert (change.record is not None) == has_change
        if change.record is not None:
            assert change.record == record


@given(KEY_VALUES)
def test_a_version_is_what_protobuf_says(kv: kv_pb2.KeyValue) -> None:
    framed = record_pb2.Record(versions=[kv]).SerializeToString()
    version = version_from_wire(framed, 1)
    assert (version.key, version.create, version.mod, version.number, version.lease) == (
        kv.key, kv.create_revision, kv.mod_revision, kv.version, kv.lease,
    )  # fmt: skip
    assert version.framed == framed and version.sub == 1


@given(st.binary(max_size=40))
def test_damage_is_refused_and_nothing_else_happens(payload: bytes) -> None:
    for read in (read_batch, lambda data: version_from_wire(b"\x12" + data, 0)):
        call: Any = read
        try:
            call(payload)
        except (DecodeError, IndexError):
            pass


@given(st.lists(RECORDS, min_size=1, max_size=3), st.data())
def test_a_cut_batch_is_refused(found: list[record_pb2.Record], data: Any) -> None:
    payload = record_pb2.Batch(records=found).SerializeToString()
    cut = data.draw(st.integers(1, max(1, len(payload) - 1)))
    try:
        whole = record_pb2.Batch.FromString(payload[:cut])
    except DecodeError:
        with pytest.raises(DecodeError):
            read_batch(payload[:cut])
    else:
        assert len(read_batch(payload[:cut])) == len(whole.records)


def test_fields_in_another_order_are_understood() -> None:
    body = b"\x18\x05" + b"\x0a\x01k" + b"\x20\x01" + b"\x10\x05"
    version = version_from_wire(b"\x12" + bytes([len(body)]) + body, 0)
    assert (version.key, version.create, version.mod, version.number) == (b"k", 5, 5, 1)
    ours = encode_key_value(b"k", 5, 5, 1, b"", 0)
    assert version_from_wire(ours, 0).key == b"k"
