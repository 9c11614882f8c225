"""Cluster and Maintenance: what the server says about itself."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

from kvstore.api import errors
from kvstore.api.headers import Headers
from kvstore.mvcc.hashing import hash_steps
from kvstore.mvcc.store import Steps
from kvstore.mvcc.wire import field_varint, varint
from kvstore.node.node import Node
from kvstore.node.state import Alarm
from kvstore.pb import rpc_pb2 as pb
from kvstore.version import ETCD_VERSION, STORAGE_VERSION


def status(node: Node, headers: Headers) -> bytes:
    """A StatusResponse.

    dbSize is the memory of all kept versions, dbSizeInUse what would remain after a compaction
    at the current revision. raftIndex and raftAppliedIndex are the journal's tail.
    """
    state = node.state
    leader = node.leader_id
    found = [_alarm_text(alarm) for alarm in node.alarms()]
    if not leader:
        found.append(errors.NO_LEADER.message)
    response = pb.StatusResponse(
        version=ETCD_VERSION,
        # Not 0, as etcd's never is: etcdctl divides by it.
        dbSize=max(state.store.size_bytes, 1),
        leader=leader,
        raftIndex=node.journal_tail,
        raftTerm=state.term,
        raftAppliedIndex=node.applied,
        errors=found,
        dbSizeInUse=state.store.live_size_bytes,
        storageVersion=STORAGE_VERSION,
        dbSizeQuota=node.options.quota_bytes,
        downgradeInfo=pb.DowngradeInfo(),
    )
    return headers.at(state.store.revision) + response.SerializeToString()


def _alarm_text(alarm: Alarm) -> str:
    member_id, kind = alarm
    name = pb.AlarmType.Name(kind) if kind in pb.AlarmType.values() else str(kind)
    return f"memberID:{member_id} alarm:{name}"


def alarms(headers: Headers, revision: int, found: list[Alarm]) -> bytes:
    """An AlarmResponse."""
    parts = [headers.at(revision)]
    for member_id, kind in found:
        body = field_varint(b"\x08", member_id) + field_varint(b"\x10", kind)
        parts.append(b"\x12%b%b" % (varint(len(body)), body))
    return b"".join(parts)


def member_list(node: Node, headers: Headers) -> bytes:
    """A MemberListResponse, which is a MemberRemoveResponse too: the members that there are.

    Like etcd's, its header has no revision.
    """
    response = pb.MemberListResponse(
        members=[
            pb.Member(ID=member.id, name=member.name, clientURLs=member.client_urls)
            for member in node.members()
        ]
    )
    return headers.without_revision + response.SerializeToString()


def timed_steps(job: Steps[bytes], observe: Callable[[float], None]) -> Steps[bytes]:
    """The same, and `observe` is told how many seconds it took, pauses included."""
    started = perf_counter()
    response = yield from job
    observe(perf_counter() - started)
    return response


def hash_kv_steps(node: Node, headers: Headers, request: pb.HashKVRequest) -> Steps[bytes]:
    """A HashKVResponse. Raises FutureRevision, Compacted."""
    store = node.state.store
    current, compacted = store.revision, store.compact_revision
    revision = request.revision
    if revision >= 0:
        revision = store.read_revision(revision)
    crc = yield from hash_steps(store, revision, compacted, node.now())
    return b"".join(
        (
            headers.at(current),
            field_varint(b"\x10", crc),
            b"\x18" + varint(compacted) if compacted else b"",
            field_varint(b"\x20", revision),
        )
    )


def hash_all_steps(node: Node, headers: Headers) -> Steps[bytes]:
    """A HashResponse: over all keys, for tests only, as in etcd."""
    store = node.state.store
    current = store.revision
    crc = yield from hash_steps(store, current, store.compact_revision, node.now())
    return headers.at(current) + field_varint(b"\x10", crc)
