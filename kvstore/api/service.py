"""The etcd v3 service: what each method does with its bytes.

Behind the transport seam, so it serves any transport. Calls come in batches and cost neither a
task nor a future here; answers go out when they are there.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from google.protobuf.message import DecodeError

from kvstore.api import checks, errors, leases, maintenance
from kvstore.api.headers import Headers
from kvstore.api.range_stream import RangeStream
from kvstore.api.ranges import StoreReader, is_plain_get, range_steps
from kvstore.api.requests import read_delete, read_put, read_range, read_txn
from kvstore.api.tally import Tally
from kvstore.api.txn import Planner, TxnOperation, read_context, txn_steps
from kvstore.api.watch import WatchStream
from kvstore.api.writes import DeleteOperation, PutOperation, looks_before
from kvstore.lease.lessor import effective_ttl_s
from kvstore.mvcc.errors import StoreError
from kvstore.mvcc.store import Steps
from kvstore.node import commands
from kvstore.node.errors import NodeError
from kvstore.node.node import Node
from kvstore.pb import health_pb2
from kvstore.pb import rpc_pb2 as pb
from kvstore.transport.seam import Call, Code, Kind, Stream, StreamHandler

log = logging.getLogger(__name__)

GRPC_OVERHEAD_BYTES = 512 * 1024
"""What etcd lets a message be longer than a request."""

PROGRESS_JITTER = 0.1
"""By how much more of it at most a stream's progress interval is longer than what was asked for, as
in etcd: so that streams that began together, as after a restart, are not all told together."""

STREAMS_PER_STEP = 50
"""Streams that are ended in one step (I9)."""


@dataclass(frozen=True, slots=True)
class ServiceOptions:
    """What the service can be told."""

    request_bytes_max: int = 1536 * 1024
    txn_ops_max: int = 128
    progress_interval_s: float = 600.0
    """--watch-progress-notify-interval"""


Handler = Callable[[Call], None]


class EtcdService:
    """All RPCs of etcd that jotd has (a seam Service)."""

    def __init__(self, node: Node, options: ServiceOptions) -> None:
        self._node = node
        self._proposer = node.proposer
        self._request_bytes_max = options.request_bytes_max
        self._txn_ops_max = options.txn_ops_max
        self._progress_interval_s = options.progress_interval_s
        self.max_request_bytes = options.request_bytes_max + GRPC_OVERHEAD_BYTES
        state = node.state
        self._state = state
        self._store = state.store
        self._headers = Headers(node.cluster_id, node.member_id, state.term)
        node.on_term = self._begin_term
        self._watch_streams: set[WatchStream] = set()
        self._health_streams: set[_HealthWatch] = set()
        self._draining = False
        self.tally = Tally()
        self.observe_hash: Callable[[float], None] = lambda seconds: None
        """Told how long a Hash took."""
        self.observe_hash_kv: Callable[[float], None] = lambda seconds: None
        """Told how long a HashKV took."""
        self._unary: dict[str, Handler] = {
            "/etcdserverpb.KV/Range": self._range,
            "/etcdserverpb.KV/Put": self._put,
            "/etcdserverpb.KV/DeleteRange": self._delete_range,
            "/etcdserverpb.KV/Txn": self._txn,
            "/etcdserverpb.KV/Compact": self._compact,
            "/etcdserverpb.Lease/LeaseGrant": self._lease_grant,
            "/etcdserverpb.Lease/LeaseRevoke": self._lease_revoke,
            "/etcdserverpb.Lease/LeaseTimeToLive": self._lease_time_to_live,
            "/etcdserverpb.Lease/LeaseLeases": self._lease_leases,
            "/etcdserverpb.Cluster/MemberList": self._member_list,
            "/etcdserverpb.Cluster/MemberRemove": self._member_remove,
            "/etcdserverpb.Maintenance/Alarm": self._alarm,
            "/etcdserverpb.Maintenance/MoveLeader": self._move_leader,
            "/etcdserverpb.Maintenance/Status": self._status,
            "/etcdserverpb.Maintenance/Defragment": self._defragment,
            "/etcdserverpb.Maintenance/Hash": self._hash,
            "/etcdserverpb.Maintenance/HashKV": self._hash_kv,
            "/grpc.health.v1.Health/Check": self._health_check,
        }
        self._streams: dict[str, tuple[Kind, Callable[[Stream], StreamHandler]]] = {
            "/etcdserverpb.KV/RangeStream": (Kind.SERVER_STREAM, self._range_stream),
            "/etcdserverpb.Watch/Watch": (Kind.BIDI_STREAM, self._watch),
            "/etcdserverpb.Lease/LeaseKeepAlive": (Kind.BIDI_STREAM, self._keep_alive),
            "/grpc.health.v1.Health/Watch": (Kind.SERVER_STREAM, self._health_watch),
        }
        self._services = {name.split("/")[1] for name in (*self._unary, *self._streams)}

    # -- the seam --------------------------------------------------------------------------

    def kind(self, method: str) -> Kind | None:
        """See seam.Service."""
        if method in self._unary:
            return Kind.UNARY
        stream = self._streams.get(method)
        return stream[0] if stream is not None else None

    def unimplemented(self, method: str) -> str:
        """See seam.Service. The texts are grpc-go's."""
        service, slash, name = method.removeprefix("/").rpartition("/")
        if not slash:
            return f'malformed method name: "{method}"'
        if service in self._services:
            return f"unknown method {name} for service {service}"
        return f"unknown service {service}"

    def on_calls(self, calls: Sequence[Call]) -> None:
        """See seam.Service. A request that breaks its handler breaks nothing else."""
        unary = self._unary
        for call in calls:
            try:
                unary[call.method](call)
            except (errors.ApiError, StoreError, NodeError) as error:
                _fail(call, error)
            except DecodeError as error:
                _fail(call, errors.malformed(error))
            except Exception as error:
                log.exception("%s failed", call.method)
                call.fail(Code.INTERNAL, f"{type(error).__name__}")

    def on_stream(self, stream: Stream) -> StreamHandler:
        """See seam.Service."""
        return self._streams[stream.method][1](stream)

    def _begin_term(self) -> None:
        self._headers.begin_term(self._state.term)

    def leader_lost(self) -> None:
        """Nobody leads: end the watches of clients that asked to be told (`hasleader`)."""
        self._node.slicer.start(self._lose_steps(list(self._watch_streams)))

    def _lose_steps(self, streams: list[WatchStream]) -> Steps[None]:
        lost = errors.NO_LEADER
        for at, stream in enumerate(streams, 1):
            if stream.needs_leader:
                stream.end(lost.code, lost.message)
            if at % STREAMS_PER_STEP == 0:
                yield

    def drain(self) -> None:
        """End streams; calls under way are answered by the node (SIGTERM)."""
        self._draining = True
        for health in list(self._health_streams):
            health.update(False)
        stopped = errors.STOPPED
        for stream in list(self._watch_streams):
            stream.end(stopped.code, stopped.message)

    @property
    def watch_streams(self) -> int:
        """Open Watch streams."""
        return len(self._watch_streams)

    # -- reads -----------------------------------------------------------------------------

    def _run(self, call: Call, job: Steps[bytes]) -> None:
        """Answer a call with a job's result."""

        def done(response: bytes | None, error: BaseException | None) -> None:
            if response is not None:
                call.finish(response)
                return
            assert error is not None
            if not isinstance(error, errors.ApiError | StoreError | NodeError):
                log.error("%s failed", call.method, exc_info=error)
            _fail(call, error)

        self._node.slicer.start(_while_wanted(call, job), done)

    def _pinned(self, revision: int, job: Steps[bytes]) -> Steps[bytes]:
        """Hold a revision's versions while an answer is made of them in slices (R10)."""
        pins = self._store.pins
        pin = pins.take(revision, self._node.now())
        try:
            response = yield from job
            pin.check()
            return response
        finally:
            pins.release(pin)

    def _range(self, call: Call) -> None:
        request = read_range(call.request)
        checks.check_range(request)
        self.tally.ranges += 1
        if not request.range_end and is_plain_get(request):
            store = self._store
            version = store.get(request.key, store.revision)
            header = self._headers.at(store.revision)
            call.finish(header if version is None else b"%b%b\x20\x01" % (header, version.framed))
            return
        revision = self._store.read_revision(request.revision)
        reader = StoreReader(self._store, self._node.now())
        job = range_steps(reader, request, self._headers.at(reader.read_revision), call)
        self._run(call, self._pinned(revision, job) if request.range_end else job)

    # -- writes ----------------------------------------------------------------------------

    def _put(self, call: Call) -> None:
        raw = call.request
        put = read_put(raw)
        checks.check_put(put)
        checks.check_size(raw, self._request_bytes_max)
        if looks_before(put):
            self.tally.add(1, 1)
        self._proposer.submit(PutOperation(call, self._headers, put))

    def _delete_range(self, call: Call) -> None:
        raw = call.request
        delete = read_delete(raw)
        checks.check_delete(delete)
        checks.check_size(raw, self._request_bytes_max)
        if delete.prev_kv:
            self.tally.add(1, 1)
        self._proposer.submit(DeleteOperation(call, self._headers, delete))

    def _txn(self, call: Call) -> None:
        raw = call.request
        plan = Planner(self._txn_ops_max).plan(read_txn(raw))
        if plan.read_only:
            context = read_context(self._store, self._node.now())
            job = txn_steps(context, plan, self._headers, self.tally)
            self._run(call, self._pinned(max(self._store.compact_revision, 0), job))
            return
        checks.check_size(raw, self._request_bytes_max)
        self._proposer.submit(TxnOperation(call, self._headers, plan, self.tally))

    def _compact(self, call: Call) -> None:
        request = pb.CompactionRequest.FromString(call.request)
        finish = _finisher(call)

        def done(response: bytes | None, error: Exception | None) -> None:
            if error is None and request.physical:
                self._node.when_compacted(request.revision, lambda: finish(response, None))
            else:
                finish(response, error)

        self._proposer.submit(
            commands.Compaction(self._state, request.revision, self._headers.at, done)
        )

    # -- leases ----------------------------------------------------------------------------

    def _lease_grant(self, call: Call) -> None:
        request = pb.LeaseGrantRequest.FromString(call.request)
        lease_id = request.ID
        while not lease_id:
            lease_id = secrets.randbits(63)
        ttl_s = effective_ttl_s(request.TTL)
        respond = leases.granted(self._headers, lease_id, ttl_s)
        self._proposer.submit(
            commands.LeaseGrant(self._state, lease_id, request.TTL, respond, _finisher(call))
        )

    def _lease_revoke(self, call: Call) -> None:
        request = pb.LeaseRevokeRequest.FromString(call.request)
        self._proposer.submit(
            commands.LeaseRevoke(self._state, request.ID, self._headers.at, _finisher(call))
        )

    def _lease_time_to_live(self, call: Call) -> None:
        request = pb.LeaseTimeToLiveRequest.FromString(call.request)
        now = self._node.now()
        self._run(call, leases.time_to_live_steps(self._state, self._headers, request, now))

    def _lease_leases(self, call: Call) -> None:
        pb.LeaseLeasesRequest.FromString(call.request)
        self._run(call, leases.listed_steps(self._state, self._headers))

    def _keep_alive(self, stream: Stream) -> StreamHandler:
        return leases.KeepAliveStream(stream, self._state, self._headers, self._node.now)

    # -- cluster and maintenance -----------------------------------------------------------

    def _member_list(self, call: Call) -> None:
        pb.MemberListRequest.FromString(call.request)
        call.finish(maintenance.member_list(self._node, self._headers))

    def _member_remove(self, call: Call) -> None:
        request = pb.MemberRemoveRequest.FromString(call.request)
        left = partial(maintenance.member_list, self._node, self._headers)
        self._node.remove_member(request.ID, _teller(call, left))

    def _status(self, call: Call) -> None:
        pb.StatusRequest.FromString(call.request)
        call.finish(maintenance.status(self._node, self._headers))

    def _move_leader(self, call: Call) -> None:
        request = pb.MoveLeaderRequest.FromString(call.request)
        # etcd sends no header either.
        self._node.move_leader(request.targetID, _teller(call, bytes))

    def _defragment(self, call: Call) -> None:
        """Nothing is fragmented here: answer as etcd does when it is done."""
        pb.DefragmentRequest.FromString(call.request)
        call.finish(b"")

    def _hash(self, call: Call) -> None:
        pb.HashRequest.FromString(call.request)
        job = maintenance.hash_all_steps(self._node, self._headers)
        self._run(call, maintenance.timed_steps(job, self.observe_hash))

    def _hash_kv(self, call: Call) -> None:
        request = pb.HashKVRequest.FromString(call.request)
        job = maintenance.hash_kv_steps(self._node, self._headers, request)
        self._run(call, maintenance.timed_steps(job, self.observe_hash_kv))

    def _alarm(self, call: Call) -> None:
        request = pb.AlarmRequest.FromString(call.request)
        kind, state = request.alarm, self._state
        if request.action == pb.AlarmRequest.GET:
            found = [alarm for alarm in self._node.alarms() if kind in (pb.NONE, alarm[1])]
            call.finish(maintenance.alarms(self._headers, self._store.revision, found))
            return
        if request.action not in (pb.AlarmRequest.ACTIVATE, pb.AlarmRequest.DEACTIVATE):
            raise errors.INVALID_ALARM_ACTION
        active = request.action == pb.AlarmRequest.ACTIVATE
        alarm = (request.memberID, int(kind))
        if kind == pb.NONE or (not active and alarm not in state.alarms):
            call.finish(maintenance.alarms(self._headers, self._store.revision, []))
            return
        self._proposer.submit(
            commands.AlarmChange(
                state,
                *alarm,
                active,
                lambda revision: maintenance.alarms(self._headers, revision, [alarm]),
                _finisher(call),
            )
        )

    # -- streams ---------------------------------------------------------------------------

    def _watch(self, stream: Stream) -> StreamHandler:
        interval_s = self._progress_interval_s * (1 + PROGRESS_JITTER * random.random())

        def start_timer(call: Callable[[], None]) -> asyncio.TimerHandle:
            return self._node.call_later(interval_s, call)

        handler = WatchStream(
            stream,
            self._store,
            self._node.hub,
            self._node.slicer,
            self._headers,
            self.max_request_bytes,
            start_timer,
            self._watch_streams.discard,
        )
        self._watch_streams.add(handler)
        return handler

    def _range_stream(self, stream: Stream) -> StreamHandler:
        return RangeStream(
            stream,
            self._store,
            self._node.slicer,
            self._headers,
            self._node.now,
            self._request_bytes_max,
            self.tally,
        )

    # -- health ----------------------------------------------------------------------------

    def _health_check(self, call: Call) -> None:
        request = health_pb2.HealthCheckRequest.FromString(call.request)
        if request.service:
            call.fail(Code.NOT_FOUND, "unknown service")
        else:
            call.finish(_health(not self._draining))

    def _health_watch(self, stream: Stream) -> StreamHandler:
        handler = _HealthWatch(stream, not self._draining, self._health_streams.discard)
        self._health_streams.add(handler)
        return handler


def _health(serving: bool) -> bytes:
    response = health_pb2.HealthCheckResponse
    return response(
        status=response.SERVING if serving else response.NOT_SERVING
    ).SerializeToString()


class _HealthWatch:
    """grpc.health.v1 Watch: the status now, and each change (a seam StreamHandler)."""

    def __init__(
        self, stream: Stream, serving: bool, on_closed: Callable[[_HealthWatch], None]
    ) -> None:
        self._stream = stream
        self._serving = serving
        self._on_closed = on_closed
        self._known = False

    def on_messages(self, messages: Sequence[bytes]) -> None:
        """The one request: which service."""
        for raw in messages:
            try:
                request = health_pb2.HealthCheckRequest.FromString(raw)
            except DecodeError as error:
                malformed = errors.malformed_message(error)
                self._stream.close(malformed.code, malformed.message)
                return
            self._known = not request.service
            if self._known:
                self._stream.send(_health(self._serving))
            else:
                unknown = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
                self._stream.send(
                    health_pb2.HealthCheckResponse(status=unknown).SerializeToString()
                )

    def update(self, serving: bool) -> None:
        """The status changed."""
        self._serving = serving
        if self._known:
            self._stream.send(_health(serving))

    def on_half_close(self) -> None:
        """The request was all."""

    def on_room(self) -> None:
        """Nothing waits for room."""

    def on_closed(self) -> None:
        """The stream is over."""
        self._on_closed(self)


def _fail(call: Call, error: BaseException) -> None:
    answer = errors.to_api_error(error)
    call.fail(answer.code, answer.message)


def _finisher(call: Call) -> Callable[[bytes | None, Exception | None], None]:
    def finish(response: bytes | None, error: Exception | None) -> None:
        if error is not None:
            _fail(call, error)
        else:
            call.finish(response or b"")

    return finish


def _teller(call: Call, answer: Callable[[], bytes]) -> Callable[[Exception | None], None]:
    """Tells a call how a change ended; `answer` is asked for when it went well."""

    def tell(error: Exception | None) -> None:
        if error is not None:
            _fail(call, error)
        else:
            call.finish(answer())

    return tell


def _while_wanted(call: Call, job: Steps[bytes]) -> Generator[None, None, bytes]:
    """A job that ends early when its client is gone."""
    while True:
        try:
            next(job)
        except StopIteration as stop:
            result: Any = stop.value
            return bytes(result)
        if call.cancelled:
            job.close()
            return b""
        yield
