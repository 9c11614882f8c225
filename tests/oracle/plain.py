"""Answers as plain values that can be compared, and what differs between two of them.

`plain` keeps presence: a field that was not set is not in the dict, so an empty header differs from
none. Only what two healthy servers may differ in is taken away:

- cluster_id, member_id and raft_term of headers become "set" or are absent;
- lease ids that a server chose are mapped by the caller;
- the order of sort ties, of a lease's keys and of the lease list;
- seconds left of a lease, addresses and sizes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from google.protobuf.message import Message

from kvstore.pb import rpc_pb2 as rpc
from tests.oracle.client import Answer

_IDENTITIES = ("cluster_id", "member_id", "raft_term")
_LEASE_FIELDS = {
    ("KeyValue", "lease"),
    ("LeaseGrantResponse", "ID"),
    ("LeaseKeepAliveResponse", "ID"),
    ("LeaseTimeToLiveResponse", "ID"),
    ("LeaseStatus", "ID"),
}
_TARGETS = {
    rpc.RangeRequest.VERSION: "version",
    rpc.RangeRequest.CREATE: "create_revision",
    rpc.RangeRequest.MOD: "mod_revision",
    rpc.RangeRequest.VALUE: "value",
}


def plain(message: Message, leases: Mapping[int, int] | None = None) -> dict[str, Any]:
    """A message as nested dicts and lists. `leases` maps ids of this server to common ones."""
    out: dict[str, Any] = {}
    name = message.DESCRIPTOR.name
    for field, value in message.ListFields():
        if name == "ResponseHeader" and field.name in _IDENTITIES:
            value = "set"
        elif leases and (name, field.name) in _LEASE_FIELDS:
            value = leases.get(value, value)
        elif field.message_type is not None:
            if isinstance(value, Message):
                value = plain(value, leases)
            else:
                value = [plain(one, leases) for one in value]
        elif field.is_repeated:
            value = list(value)
        out[field.name] = value
    return out


def differences(left: Any, right: Any, path: str = "") -> list[str]:
    """Where two plain values differ, as ``path: left <> right``."""
    if isinstance(left, dict) and isinstance(right, dict):
        out = []
        for key in sorted(left.keys() | right.keys()):
            here = f"{path}.{key}" if path else str(key)
            out += differences(left.get(key, "(absent)"), right.get(key, "(absent)"), here)
        return out
    if isinstance(left, list) and isinstance(right, list):
        out = []
        if len(left) != len(right):
            out.append(f"{path}: {len(left)} <> {len(right)} elements: {left!r} <> {right!r}")
        for n, (one, other) in enumerate(zip(left, right, strict=False)):
            out += differences(one, other, f"{path}[{n}]")
        return out
    if type(left) is not type(right) or left != right:
        return [f"{path}: {_short(left)} <> {_short(right)}"]
    return []


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 300 else f"{text[:200]}... ({len(text)} characters)"


def comparable(
    method: str, request: Message | None, answer: Answer, leases: Mapping[int, int] | None = None
) -> dict[str, Any]:
    """An answer of `method` to `request` as plain values."""
    out: dict[str, Any] = {"code": answer.code}
    if not answer.ok:
        out["text"] = answer.text
    if answer.message is not None:
        out["message"] = plain(answer.message, leases)
        special = _SPECIAL.get(method)
        if special is not None:
            special(request, out["message"])
    if method == "KV.RangeStream":
        out["stream"] = _range_stream(answer, leases)
    return out


def _range(request: Any, message: dict[str, Any]) -> None:
    """Puts ties in one order, where the target of the sort leaves any."""
    kvs = message.get("kvs")
    if not kvs or request is None or request.sort_target not in _TARGETS:
        return
    field = _TARGETS[request.sort_target]
    more = message.get("more", False)
    if field == "value" and request.keys_only:
        # The values that decided the order are not in the answer.
        message["kvs"] = len(kvs) if more else sorted(kvs, key=lambda kv: kv["key"])
        return
    default = b"" if field == "value" else 0
    groups: list[list[dict[str, Any]]] = []
    for kv in kvs:
        if groups and groups[-1][0].get(field, default) == kv.get(field, default):
            groups[-1].append(kv)
        else:
            groups.append([kv])
    ordered: list[Any] = []
    for n, group in enumerate(groups):
        if more and n == len(groups) - 1:
            # Which of the ties fell behind the limit is the server's choice.
            ordered.append({"ties": len(group), field: group[0].get(field, default)})
        else:
            ordered += sorted(group, key=lambda kv: kv["key"])
    message["kvs"] = ordered


def _range_stream(answer: Answer, leases: Mapping[int, int] | None) -> dict[str, Any]:
    """Chunk borders are free; header, more and count come in the last chunk only."""
    chunks = [plain(one.range_response, leases) for one in answer.messages]
    out: dict[str, Any] = {
        "kvs": [kv for chunk in chunks for kv in chunk.get("kvs", ())],
        "early": [sorted(chunk.keys()) for chunk in chunks[:-1] if list(chunk) != ["kvs"]],
        "chunks": min(len(chunks), 1),
    }
    if chunks:
        out |= {key: value for key, value in chunks[-1].items() if key != "kvs"}
    return out


def _txn(request: Any, message: dict[str, Any]) -> None:
    if request is None:
        return
    ops = request.success if message.get("succeeded") else request.failure
    for op, response in zip(ops, message.get("responses", ()), strict=False):
        if op.HasField("request_range") and "response_range" in response:
            _range(op.request_range, response["response_range"])
        elif op.HasField("request_txn") and "response_txn" in response:
            _txn(op.request_txn, response["response_txn"])


def _time_to_live(request: Any, message: dict[str, Any]) -> None:
    left = message.get("TTL", 0)
    if left > 0:
        assert left <= message.get("grantedTTL", 0), message
        message["TTL"] = "some"
    message["keys"] = sorted(message.get("keys", ()))


def _leases(request: Any, message: dict[str, Any]) -> None:
    message["leases"] = sorted(one.get("ID", 0) for one in message.get("leases", ()))


def _members(request: Any, message: dict[str, Any]) -> None:
    for member in message.get("members", ()):
        for key in ("ID", "name"):
            member[key] = "set" if member.get(key) else "(absent)"
        member["clientURLs"] = len(member.get("clientURLs", ()))
        # The journal has no peers: whatever stands there is for show.
        member.pop("peerURLs", None)


def _status(request: Any, message: dict[str, Any]) -> None:
    # An empty etcd has pages of its own.
    assert message.get("dbSizeInUse", 0) <= message.get("dbSize", 0), message
    for key in ("dbSize", "dbSizeInUse"):
        message.pop(key, None)
    for key in ("raftIndex", "raftTerm", "raftAppliedIndex", "leader"):
        message[key] = "set" if message.get(key) else "(absent)"
    version = message.get("version", "")
    message["version"] = "3.7" if re.fullmatch(r"3\.7\.\d+", version) else version
    message["errors"] = sorted(message.get("errors", ()))


def _hash(request: Any, message: dict[str, Any]) -> None:
    """Hash covers the whole database file of an etcd: only its presence compares."""
    message["hash"] = "set" if message.get("hash") else "(absent)"


_SPECIAL = {
    "KV.Range": _range,
    "KV.Txn": _txn,
    "Lease.LeaseTimeToLive": _time_to_live,
    "Lease.LeaseLeases": _leases,
    "Cluster.MemberList": _members,
    "Maintenance.Status": _status,
    "Maintenance.Hash": _hash,
}
