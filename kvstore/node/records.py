"""Journal records: what a batch's bytes are (proto/kvstore/pb/record.proto)."""

from __future__ import annotations

from google.protobuf.message import DecodeError

from kvstore.mvcc.wire import read_varint, varint
from kvstore.pb import record_pb2


def transaction_head(revision: int, nbytes: int) -> bytes:
    """What comes before a transaction's `nbytes` of versions."""
    head = b"\x08" + varint(revision)
    return b"\x0a" + varint(len(head) + nbytes) + head


def record_part(record: record_pb2.Record) -> bytes:
    """Any other record, as a part."""
    body = record.SerializeToString()
    return b"\x0a%b%b" % (varint(len(body)), body)


class Change:
    """One record of a batch: its versions as the stored bytes that they become, and the rest."""

    __slots__ = ("record", "revision", "versions")

    def __init__(
        self, revision: int, versions: list[bytes], record: record_pb2.Record | None
    ) -> None:
        """`record`: what is no version of a key, if there is any; it has the revision too."""
        self.revision = revision
        self.versions = versions
        self.record = record


def read_batch(payload: bytes) -> list[Change]:
    """The records of one journal entry. Raises DecodeError.

    Versions are cut out as they are: they are stored as they are journaled.
    """
    found: list[Change] = []
    at, end = 0, len(payload)
    while at < end:
        if payload[at] != 0x0A:
            raise DecodeError("not a record")
        size, at = _length(payload, at + 1, end)
        found.append(_read_record(payload, at, at + size))
        at += size
    return found


def _read_record(payload: bytes, at: int, end: int) -> Change:
    revision = 0
    versions: list[bytes] = []
    start = at
    plain = True
    while at < end:
        tag = payload[at]
        if tag == 0x12:
            size, after = _length(payload, at + 1, end)
            versions.append(payload[at : after + size])
            at = after + size
        elif tag == 0x08:
            revision, at = read_varint(payload, at + 1, end)
        else:
            plain = False
            break
    if plain:
        return Change(revision, versions, None)
    # Changes without versions, mostly: rare, and short.
    record = record_pb2.Record.FromString(payload[start:end])
    rest = [b"\x12%b%b" % (varint(kv.ByteSize()), kv.SerializeToString()) for kv in record.versions]
    return Change(record.revision, rest, record)


def _length(payload: bytes, at: int, end: int) -> tuple[int, int]:
    """A length and where what it measures begins; that ends before `end`."""
    size, at = read_varint(payload, at, end)
    if size > end - at:
        raise DecodeError("a length that is too long")
    return size, at


def lease_grant(lease_id: int, ttl_s: int) -> record_pb2.Record:
    """A lease was granted."""
    return record_pb2.Record(lease_grant=record_pb2.LeaseGrant(id=lease_id, ttl_s=ttl_s))


def lease_revoke(lease_id: int, revision: int) -> record_pb2.Record:
    """A lease was revoked, its keys deleted at `revision` (0: it had none)."""
    return record_pb2.Record(revision=revision, lease_revoke=lease_id)


def delete_range(low: bytes, high: bytes | None, revision: int) -> record_pb2.Record:
    """A huge range was deleted at one revision (R13). `high` None travels as a zero byte."""
    end = high if high is not None else b"\x00"
    return record_pb2.Record(
        revision=revision, delete_range=record_pb2.KeyRange(key=low, range_end=end)
    )


def compaction(revision: int) -> record_pb2.Record:
    """The store was compacted."""
    return record_pb2.Record(compact=revision)


def term(number: int, member_id: int, cluster_id: int) -> record_pb2.Record:
    """A leader's first record: its fence (I6)."""
    return record_pb2.Record(
        term=record_pb2.Term(term=number, member_id=member_id, cluster_id=cluster_id)
    )


def alarm(member_id: int, kind: int, active: bool) -> record_pb2.Record:
    """An alarm was raised or cleared."""
    return record_pb2.Record(alarm=record_pb2.Alarm(member_id=member_id, type=kind, active=active))
