"""Lease: the unary calls and the keep-alive stream."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from heapq import merge
from itertools import islice

from google.protobuf.message import DecodeError

from kvstore.api import errors
from kvstore.api.headers import Headers
from kvstore.api.requests import read_keep_alive
from kvstore.lease.lessor import whole_seconds
from kvstore.mvcc.errors import LeaseNotFound
from kvstore.mvcc.store import SLICE, Steps
from kvstore.mvcc.wire import field_varint, varint
from kvstore.node.state import State
from kvstore.pb import rpc_pb2 as pb
from kvstore.transport.seam import Stream


def granted(headers: Headers, lease_id: int, ttl_s: int) -> Callable[[int], bytes]:
    """Makes a LeaseGrantResponse for a revision."""
    fields = field_varint(b"\x10", lease_id) + field_varint(b"\x18", ttl_s)
    return lambda revision: headers.at(revision) + fields


def time_to_live_steps(
    state: State, headers: Headers, request: pb.LeaseTimeToLiveRequest, now: float
) -> Steps[bytes]:
    """A LeaseTimeToLiveResponse; a lease that is gone has TTL -1 and is no error."""
    lease = state.lessor.get(request.ID)
    header = headers.at(state.store.revision)
    named = header + field_varint(b"\x10", request.ID)
    if lease is None:
        return named + field_varint(b"\x18", -1)
    remaining = whole_seconds(max(0.0, lease.remaining_s(now)))
    parts = [named, field_varint(b"\x18", remaining), field_varint(b"\x20", lease.ttl_s)]
    if request.keys:
        for keys in lease.keys.parts():
            parts.extend(b"\x2a%b%b" % (varint(len(key)), key) for key in keys)
            if len(keys) > 100:
                yield
    return b"".join(parts)


def listed_steps(state: State, headers: Headers) -> Steps[bytes]:
    """A LeaseLeasesResponse: the first to expire comes first, as in etcd."""
    header = headers.at(state.store.revision)
    runs: list[list[tuple[float, int]]] = []
    for part in state.lessor.parts():
        runs.append(sorted((lease.expires_at, lease.id) for lease in part))
        if len(part) > SLICE // 8:
            yield
    out = [header]
    ordered = merge(*runs)
    while part_of := list(islice(ordered, SLICE)):
        fields = (field_varint(b"\x08", lease_id) for _, lease_id in part_of)
        out.append(b"".join(b"\x12%b%b" % (varint(len(body)), body) for body in fields))
        if len(part_of) == SLICE:
            yield
    return b"".join(out)


class KeepAliveStream:
    """The server's side of one LeaseKeepAlive stream (a seam StreamHandler)."""

    def __init__(
        self, stream: Stream, state: State, headers: Headers, now: Callable[[], float]
    ) -> None:
        self._stream = stream
        self._state = state
        self._headers = headers
        self._now = now

    def on_messages(self, messages: Sequence[bytes]) -> None:
        """Renew leases; one that is gone is answered with TTL 0."""
        for raw in messages:
            try:
                lease_id = read_keep_alive(raw)
            except DecodeError as error:
                malformed = errors.malformed_message(error)
                self._stream.close(malformed.code, malformed.message)
                return
            header = self._headers.at(self._state.store.revision)
            try:
                ttl_s = self._state.lessor.renew(lease_id, self._now())
            except LeaseNotFound:
                ttl_s = 0
            self._stream.send(
                header + field_varint(b"\x10", lease_id) + field_varint(b"\x18", ttl_s)
            )
        if -self._stream.room > BACKLOG_BYTES_MAX:
            too_many = errors.TOO_MANY_REQUESTS
            self._stream.close(too_many.code, too_many.message)

    def on_half_close(self) -> None:
        """The client is done."""
        self._stream.close()

    def on_room(self) -> None:
        """Answers are small and follow requests: nothing waits for room."""

    def on_closed(self) -> None:
        """Nothing to give back."""


BACKLOG_BYTES_MAX = 8 << 20
"""Answers that a client may leave unread before its stream is ended (I8)."""
