"""Journal records: what a batch's bytes are (proto/kvstore/pb/record.proto)."""

from __future__ import annotations

from collections.abc import Iterator

from kvstore.mvcc.wire import varint
from kvstore.pb import record_pb2


def transaction_head(revision: int, nbytes: int) -> bytes:
    """What comes before a transaction's `nbytes` of versions."""
    head = b"\x08" + varint(revision)
    return b"\x0a" + varint(len(head) + nbytes) + head


def record_part(record: record_pb2.Record) -> bytes:
    """Any other record, as a part."""
    body = record.SerializeToString()
    return b"\x0a%b%b" % (varint(len(body)), body)


def read_batch(payload: bytes) -> Iterator[record_pb2.Record]:
    """The records of one journal entry."""
    yield from record_pb2.Batch.FromString(payload).records


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
