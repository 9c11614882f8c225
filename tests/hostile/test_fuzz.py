"""Mutated requests for every method: jotd says of them what etcd says, and both go on.

The servers get the same bytes in the same order, so that their stores stay equal and any
difference in what they accepted shows, at the latest in the next answer's revision.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.message import DecodeError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvstore.pb import rpc_pb2
from tests import peers, wire
from tests.hostile import guard, verdicts

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

EXAMPLES = 400 * wire.scale()

#: Not sent at all: what makes etcd take a long time, or changes it for all that follows.
SLOW = {"Defragment"}
UNARY = sorted(
    name
    for name, method in wire.METHODS.items()
    if not method.client_streams and not method.server_streams and name not in SLOW
)

#: What a server may say of a request that it cannot serve.
REFUSALS = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.OUT_OF_RANGE,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.UNIMPLEMENTED,
}

NUMBERS = [0, 1, 2, 3, 7, 99, 127, 128, -1, -2, 2**31 - 1, 2**31, -(2**31), 2**63 - 1, -(2**63)]
KEYS = [b"", b"\x00", b"a", b"b", b"a\x00", b"\xff", b"/registry/pods/x", b"/registry/", b"k" * 300]


def _field(descriptor: Any, depth: int) -> st.SearchStrategy[Any]:
    if descriptor.message_type is not None:
        return _message(descriptor.message_type._concrete_class, depth - 1)
    match descriptor.type:
        case descriptor.TYPE_BYTES:
            return st.sampled_from(KEYS)
        case descriptor.TYPE_STRING:
            return st.sampled_from(["", "x"])
        case descriptor.TYPE_BOOL:
            return st.booleans()
        case descriptor.TYPE_UINT64 | descriptor.TYPE_UINT32:
            return st.sampled_from([abs(number) for number in NUMBERS])
        case descriptor.TYPE_ENUM:
            # Numbers that mean nothing are numbers all the same.
            return st.sampled_from([0, 1, 2, 3, 4, 5, 99, -1, 2**31 - 1])
        case _:
            return st.sampled_from(NUMBERS)


@st.composite
def _message(draw: st.DrawFn, kind: Any, depth: int) -> Any:
    """A message of any contents, mostly sparse."""
    message = kind()
    for descriptor in kind.DESCRIPTOR.fields:
        if descriptor.message_type is not None and depth <= 0:
            continue
        if not draw(st.sampled_from([True, False, descriptor.name == "key"])):
            continue
        if descriptor.is_repeated:
            values = draw(st.lists(_field(descriptor, depth), max_size=3))
            getattr(message, descriptor.name).extend(values)
        elif descriptor.message_type is not None:
            getattr(message, descriptor.name).CopyFrom(draw(_field(descriptor, depth)))
        else:
            setattr(message, descriptor.name, draw(_field(descriptor, depth)))
    return message


@st.composite
def _damaged(draw: st.DrawFn, data: bytes) -> bytes:
    """Bytes changed, cut, doubled or put in, a few times or not at all."""
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(data)))
        end = draw(st.integers(at, min(len(data), at + 8)))
        match draw(st.integers(0, 4)):
            case 0:
                data = data[:at] + draw(st.binary(min_size=1, max_size=2)) + data[at + 1 :]
            case 1:
                data = data[:at]
            case 2:
                data = data[:at] + data[at:end] * 2 + data[end:]
            case 3:
                data = data[:at] + draw(st.binary(max_size=12)) + data[at:]
            case _:
                data = data[:at] + data[end:]
    return data


@st.composite
def _requests(draw: st.DrawFn) -> tuple[str, bytes]:
    name = draw(st.sampled_from(UNARY))
    message = draw(_message(wire.METHODS[name].request, 3))
    return name, draw(_damaged(message.SerializeToString()))


def _left_out(name: str, data: bytes) -> bool:
    """What would make the two stores differ for reasons that are nobody's fault."""
    try:
        request = wire.METHODS[name].request.FromString(data)
    except DecodeError:
        return False
    if name == "LeaseGrant":
        # A lease that the server names, or that ends while the test runs.
        return request.ID == 0 or 0 < request.TTL < 100_000
    if name == "Alarm":
        # An alarm would stop every later request; of other actions etcd dies, each time.
        return request.action not in (rpc_pb2.AlarmRequest.GET, rpc_pb2.AlarmRequest.DEACTIVATE)
    return False


class Servers:
    """Both servers, and a connection to each. Started anew when etcd dies of a request."""

    def __init__(self, base: Path) -> None:
        self._base = base
        self._lives = 0
        self.deaths: list[str] = []
        self.disputes: list[str] = []
        self._start()

    def _start(self) -> None:
        self._lives += 1
        self.etcd = peers.start_etcd(self._base)
        self.jotd = peers.start_jotd(self._base / f"data-{self._lives}")
        self.channels = [verdicts.channel(p.endpoint) for p in (self.etcd, self.jotd)]
        asyncio.run(guard.prepare(self.etcd))
        asyncio.run(guard.prepare(self.jotd))

    def stop(self) -> None:
        for connection in self.channels:
            connection.close()
        self.etcd.stop()
        self.jotd.stop()
        assert "Traceback" not in self.jotd.log_text()

    def _renew(self) -> None:
        self.stop()
        self._start()

    def compare(self, name: str, data: bytes) -> None:
        """Both get the same bytes. Where etcd dies, jotd has to refuse, and both start afresh."""
        theirs, ours = (verdicts.ask(connection, name, data) for connection in self.channels)
        said = (
            f"{name} {data[:400].hex()}\n{_text(name, data)[:2000]}\netcd: {theirs}\njotd: {ours}"
        )
        assert self.jotd.alive, f"jotd died of {said}"
        if theirs.code == grpc.StatusCode.UNAVAILABLE:
            self._after_a_death(ours, said)
        elif (theirs.text == verdicts.MALFORMED) != (ours.text == verdicts.MALFORMED):
            # Go's parser refuses numbers of more than 64 bits, upb cuts them: as each likes.
            self.disputes.append(said)
            if grpc.StatusCode.OK in (theirs.code, ours.code):
                self._renew()
        elif not _is_stored_hash(name, theirs, ours):
            assert ours == theirs, said
            if name == "LeaseGrant":
                self._end_if_short(data)

    def _end_if_short(self, data: bytes) -> None:
        """A TTL of zero or less is taken for the shortest there is: such a lease would end in the
        midst of later requests, with its keys, and in each server at a moment of its own."""
        try:
            request = wire.METHODS["LeaseGrant"].request.FromString(data)
        except DecodeError:
            return
        if request.TTL <= 0:
            revoke = rpc_pb2.LeaseRevokeRequest(ID=request.ID).SerializeToString()
            theirs, ours = (verdicts.ask(each, "LeaseRevoke", revoke) for each in self.channels)
            assert ours == theirs

    def _after_a_death(self, ours: verdicts.Verdict, said: str) -> None:
        self.etcd.wait()
        self.deaths.append(said)
        self._renew()
        assert ours.code in REFUSALS, f"etcd dies of this one: {said}"


def _is_stored_hash(name: str, theirs: verdicts.Verdict, ours: verdicts.Verdict) -> bool:
    """etcd may answer the hash that a compaction stored for a revision below it: one of the
    declared deviations (ARCHITECTURE.md)."""
    return (
        name == "HashKV"
        and theirs.code == grpc.StatusCode.OK
        and ours.text == "etcdserver: mvcc: required revision has been compacted"
    )


def _text(name: str, data: bytes) -> str:
    try:
        return str(wire.METHODS[name].request.FromString(data))
    except DecodeError:
        return "(malformed)"


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    both = Servers(tmp_path_factory.mktemp("fuzz"))
    yield both
    both.stop()
    print(f"etcd died of {len(both.deaths)} requests:", *both.deaths, sep="\n")
    print(f"{len(both.disputes)} disputes over bytes:", *both.disputes, sep="\n")
    # Were it common, the fuzzing would test parsers and nothing else.
    assert len(both.disputes) <= EXAMPLES // 20


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(request_=_requests())
def test_any_bytes_get_the_verdict_of_etcd(servers: Servers, request_: tuple[str, bytes]) -> None:
    name, data = request_
    if not _left_out(name, data):
        servers.compare(name, data)


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes(out) + bytes([number])


def _wrapped(tag: int, body: bytes) -> bytes:
    return bytes([tag]) + _varint(len(body)) + body


def _nested(depth: int) -> bytes:
    """A transaction in a transaction, `depth` deep, with a put in the middle. Built from bytes."""
    put = rpc_pb2.RequestOp(request_put=rpc_pb2.PutRequest(key=b"nested", value=b"v"))
    body = _wrapped(0x12, put.SerializeToString())
    for _ in range(depth - 1):
        body = _wrapped(0x12, _wrapped(0x22, body))
    return body


def _txn(*operations: rpc_pb2.RequestOp) -> bytes:
    return rpc_pb2.TxnRequest(success=operations).SerializeToString()


def _put(**fields: Any) -> rpc_pb2.RequestOp:
    return rpc_pb2.RequestOp(request_put=rpc_pb2.PutRequest(**fields))


def _range(**fields: Any) -> bytes:
    return rpc_pb2.RangeRequest(**fields).SerializeToString()


BIG = 2**63 - 1
WHOLE: dict[str, Any] = {"key": b"\x00", "range_end": b"\x00"}

#: What no sane client asks, and etcd answers all the same.
ABSURD: list[tuple[str, bytes]] = [
    ("Range", _range(**WHOLE, limit=BIG)),
    ("Range", _range(**WHOLE, limit=-1)),
    ("Range", _range(**WHOLE, limit=-BIG - 1)),
    ("Range", _range(**WHOLE, revision=BIG)),
    ("Range", _range(**WHOLE, revision=-BIG)),
    ("Range", _range(**WHOLE, sort_order=2, sort_target=99)),
    ("Range", _range(**WHOLE, sort_order=99, sort_target=4)),
    ("Range", _range(**WHOLE, sort_order=-1, sort_target=-1)),
    ("Range", _range(**WHOLE, min_mod_revision=BIG, max_mod_revision=-BIG)),
    ("Range", _range(**WHOLE, max_create_revision=-1, count_only=True, keys_only=True)),
    ("Range", _range(key=b"b", range_end=b"a")),
    ("Range", _range(key=b"", range_end=b"")),
    ("Range", _range(key=b"k" * 1_000_000)),
    ("Put", rpc_pb2.PutRequest(key=b"").SerializeToString()),
    ("Put", rpc_pb2.PutRequest(key=b"x", lease=BIG).SerializeToString()),
    ("Put", rpc_pb2.PutRequest(key=b"x", lease=-1).SerializeToString()),
    ("Put", rpc_pb2.PutRequest(key=b"none", ignore_value=True).SerializeToString()),
    ("Put", rpc_pb2.PutRequest(key=b"x", value=b"y", ignore_value=True).SerializeToString()),
    ("Put", rpc_pb2.PutRequest(key=b"none", ignore_lease=True).SerializeToString()),
    ("Put", rpc_pb2.PutRequest(key=b"x", lease=5, ignore_lease=True).SerializeToString()),
    ("DeleteRange", rpc_pb2.DeleteRangeRequest(key=b"b", range_end=b"a").SerializeToString()),
    ("DeleteRange", rpc_pb2.DeleteRangeRequest().SerializeToString()),
    ("Compact", rpc_pb2.CompactionRequest(revision=BIG).SerializeToString()),
    ("Compact", rpc_pb2.CompactionRequest(revision=-BIG).SerializeToString()),
    ("Compact", rpc_pb2.CompactionRequest(revision=0).SerializeToString()),
    ("LeaseGrant", rpc_pb2.LeaseGrantRequest(TTL=BIG, ID=11).SerializeToString()),
    ("LeaseGrant", rpc_pb2.LeaseGrantRequest(TTL=0, ID=12).SerializeToString()),
    ("LeaseGrant", rpc_pb2.LeaseGrantRequest(TTL=-5, ID=13).SerializeToString()),
    ("LeaseRevoke", rpc_pb2.LeaseRevokeRequest(ID=-1).SerializeToString()),
    ("LeaseTimeToLive", rpc_pb2.LeaseTimeToLiveRequest(ID=BIG).SerializeToString()),
    ("HashKV", rpc_pb2.HashKVRequest(revision=BIG).SerializeToString()),
    ("HashKV", rpc_pb2.HashKVRequest(revision=-1).SerializeToString()),
    ("Alarm", rpc_pb2.AlarmRequest(action=99, alarm=99).SerializeToString()),
    ("Txn", _txn()),
    ("Txn", _txn(rpc_pb2.RequestOp())),
    ("Txn", _txn(*[_put(key=b"many/%d" % n) for n in range(128)])),
    ("Txn", _txn(*[_put(key=b"many/%d" % n) for n in range(129)])),
    ("Txn", _txn(_put(key=b"same"), _put(key=b"same"))),
    ("Txn", rpc_pb2.TxnRequest(compare=[rpc_pb2.Compare()]).SerializeToString()),
    (
        "Txn",
        rpc_pb2.TxnRequest(
            compare=[rpc_pb2.Compare(key=b"a", target=99, result=99)]
        ).SerializeToString(),
    ),
    (
        "Txn",
        rpc_pb2.TxnRequest(
            compare=[rpc_pb2.Compare(key=b"a", target=3, version=1)]
        ).SerializeToString(),
    ),
    # Between etcd's two limits on size, and above both.
    ("Put", rpc_pb2.PutRequest(key=b"x", value=b"v" * (3 << 19)).SerializeToString()),
    ("Put", rpc_pb2.PutRequest(key=b"x", value=b"v" * ((3 << 19) + 1000)).SerializeToString()),
    ("Put", rpc_pb2.PutRequest(key=b"x", value=b"v" * (2 << 20)).SerializeToString()),
    ("Txn", _nested(2)),
    ("Txn", _nested(20)),
    ("Txn", _nested(45)),
]


@pytest.mark.parametrize(("name", "data"), ABSURD, ids=itertools.count())
def test_the_absurd_gets_the_verdict_of_etcd(servers: Servers, name: str, data: bytes) -> None:
    servers.compare(name, data)


def test_far_too_large_a_message(servers: Servers) -> None:
    """Refused by its length before it is read; the words are the gRPC library's."""
    data = rpc_pb2.PutRequest(key=b"x", value=b"v" * (40 << 20)).SerializeToString()
    theirs, ours = (verdicts.ask(connection, "Put", data) for connection in servers.channels)
    assert ours.code == theirs.code == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "eceived message larger than max" in ours.text


@pytest.mark.parametrize("depth", [60, 100, 1000, 20_000, 50_000])
def test_deep_nesting_is_refused(servers: Servers, depth: int) -> None:
    """A declared deviation: etcd takes thousands of levels; here it ends with the parser's."""
    connection = servers.channels[1]
    before = verdicts.ask(connection, "Range", _range(key=b"nested")).revision
    verdict = verdicts.ask(connection, "Txn", _nested(depth))
    assert verdict.code in (
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    ), verdict
    assert "recursion" not in verdict.text.lower()
    assert verdicts.ask(connection, "Range", _range(key=b"nested")).revision == before


#: Transactions that pass etcd's check and fail when they are carried out: they make etcd panic.
HALF_WAY: list[bytes] = [
    _txn(_put(key=b"half/1"), _put(key=b"half/2", lease=404)),
    _txn(_put(key=b"half/1"), _put(key=b"half/none", ignore_lease=True)),
    _txn(
        _put(key=b"half/1"),
        rpc_pb2.RequestOp(request_txn=rpc_pb2.TxnRequest(success=[_put(key=b"half/3", lease=404)])),
    ),
    _txn(
        _put(key=b"half/1"),
        rpc_pb2.RequestOp(request_range=rpc_pb2.RangeRequest(key=b"a", revision=BIG)),
    ),
]


@pytest.mark.parametrize("data", HALF_WAY, ids=itertools.count())
def test_a_transaction_that_fails_half_way_leaves_nothing(servers: Servers, data: bytes) -> None:
    """Evaluated completely before any of it is journaled (R4)."""
    connection = servers.channels[1]
    probe = _range(key=b"half/", range_end=b"half0")
    before = verdicts.ask(connection, "Range", probe)
    verdict = verdicts.ask(connection, "Txn", data)
    assert verdict.code not in (grpc.StatusCode.OK, grpc.StatusCode.INTERNAL), verdict
    assert verdict.code != grpc.StatusCode.UNKNOWN, verdict
    assert verdicts.ask(connection, "Range", probe) == before
    assert servers.jotd.alive


STREAMS: list[tuple[str, Callable[[], Any]]] = [
    ("Watch", lambda: rpc_pb2.WatchRequest(
        create_request=rpc_pb2.WatchCreateRequest(key=b"a", start_revision=1, filters=[0]))),
    ("Watch", lambda: rpc_pb2.WatchRequest(
        cancel_request=rpc_pb2.WatchCancelRequest(watch_id=BIG))),
    ("LeaseKeepAlive", lambda: rpc_pb2.LeaseKeepAliveRequest(ID=BIG)),
]  # fmt: skip


def test_streams_take_any_bytes(servers: Servers) -> None:
    """Damaged messages on streams end that stream at most; the text is never our own fault's."""

    async def run() -> None:
        async with guard.guarding(servers.jotd) as client:
            for n in range(150 * wire.scale()):
                name, make = STREAMS[n % len(STREAMS)]
                data = bytearray(make().SerializeToString() + os.urandom(n % 5))
                for _ in range(n % 4):
                    data[n * 7 % len(data)] = n * 13 % 256
                call = client.stream(name, raw=True)
                try:
                    await call.write(bytes(data))
                    await call.done_writing()
                    async with asyncio.timeout(0.05):
                        while await call.read() is not grpc.aio.EOF:
                            pass
                    code, text = await call.code(), await call.details()
                    assert code != grpc.StatusCode.UNKNOWN, (name, bytes(data), text)
                    assert "Error(" not in text
                except (TimeoutError, grpc.aio.AioRpcError, asyncio.InvalidStateError):
                    pass
                call.cancel()

    asyncio.run(run())
