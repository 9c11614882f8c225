"""Negative controls: a comparison that cannot fail proves nothing.

Two real etcds take the part of both servers, and what the second one answers is falsified on its
way in one of the ways that stores for Kubernetes are known to get wrong. Each must be noticed; and
where servers may differ (ties of a sort, cuts between responses), nothing must be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from google.protobuf.message import Message

from kvstore.pb import kv_pb2 as kv
from kvstore.pb import rpc_pb2 as rpc
from tests import peers
from tests.differential import strategies as some
from tests.differential.conftest import needs_oracle, oracle_version
from tests.differential.runner import run_steps, shorter
from tests.differential.watching import watch_example
from tests.oracle import faults
from tests.oracle.client import Answer, Client, Duplex
from tests.oracle.pair import CURRENT, Divergence, Pair
from tests.oracle.plain import comparable, differences

pytestmark = pytest.mark.once

fair_watches = needs_oracle(faults.FAIR, "reports progress too early")

Forge = Callable[[Any], Any]


class ForgedDuplex(Duplex):
    """Each message may become several, or none."""

    def __init__(self, stream: Duplex, forge: Forge) -> None:
        self._stream, self._forge = stream, forge
        self._ready: list[Any] = []

    def send(self, request: Message | bytes) -> None:
        self._stream.send(request)

    def next(self, timeout: float = 30.0) -> Any:
        while not self._ready:
            message = self._stream.next(timeout)
            if message is None or isinstance(message, Answer):
                return message
            self._ready += self._forge(message)
        return self._ready.pop(0)

    def close(self) -> None:
        self._stream.close()


def forged(answer: Answer, forge: Forge) -> Answer:
    done = forge(answer.message if answer.ok and answer.message is not None else answer)
    return done if isinstance(done, Answer) else answer


class ForgingClient(Client):
    """A client that lies about the answers to one method."""

    def __init__(self, endpoint: str, method: str, forge: Forge) -> None:
        super().__init__(endpoint)
        self._method, self._forge = method, forge

    def call(self, method: str, request: Message | bytes, **how: Any) -> Answer:
        answer = super().call(method, request, **how)
        return forged(answer, self._forge) if method == self._method else answer

    def stream(self, method: str, request: Message | bytes, **how: Any) -> Answer:
        answer = super().stream(method, request, **how)
        if method == self._method and answer.ok:
            return Answer(0, messages=tuple(self._forge(list(answer.messages))))
        return answer

    def open(self, method: str, **how: Any) -> Duplex:
        stream = super().open(method, **how)
        return ForgedDuplex(stream, self._forge) if method == self._method else stream


@pytest.fixture(scope="module")
def etcds(start_oracle: Callable[[], peers.Process]) -> Iterator[Pair]:
    running: list[peers.Process] = []

    def start() -> tuple[str, str]:
        while running:
            running.pop().stop()
        running.extend([start_oracle(), start_oracle()])
        return running[0].endpoint, running[1].endpoint

    pair = Pair(start, oracle_version())
    yield pair
    pair.close()
    for process in running:
        process.stop()


def change(**fields: Any) -> Forge:
    """Sets fields of an OK answer: dotted by ``__``; a callable gets the old value."""

    def forge(message: Any) -> None:
        if isinstance(message, Answer):
            return
        for path, value in fields.items():
            *parents, name = path.split("__")
            at = message
            for parent in parents:
                at = at[int(parent)] if parent.isdigit() else getattr(at, parent)
            setattr(at, name, value(getattr(at, name)) if callable(value) else value)

    return forge


def first_kv(**fields: Any) -> Forge:
    def forge(message: Any) -> None:
        if not isinstance(message, Answer) and message.kvs:
            change(**fields)(message.kvs[0])

    return forge


def swap_kvs(message: Any) -> None:
    if not isinstance(message, Answer) and len(message.kvs) > 1:
        one, other = kv.KeyValue(), kv.KeyValue()
        one.CopyFrom(message.kvs[0])
        other.CopyFrom(message.kvs[1])
        message.kvs[0].CopyFrom(other)
        message.kvs[1].CopyFrom(one)


def lose_kv(message: Any) -> None:
    if not isinstance(message, Answer) and message.kvs:
        del message.kvs[-1]


def no_header(message: Any) -> None:
    if not isinstance(message, Answer):
        message.ClearField("header")


def no_prev(message: Any) -> None:
    if not isinstance(message, Answer):
        message.ClearField("prev_kv")


def nested_without_header(message: Any) -> None:
    if not isinstance(message, Answer):
        for response in message.responses:
            if response.HasField("response_txn"):
                response.response_txn.ClearField("header")


def other_text(message: Any) -> Answer | None:
    if isinstance(message, Answer):
        return Answer(message.code, message.text.replace("etcdserver: ", ""))
    return None


def other_code(message: Any) -> Answer | None:
    return Answer(2, message.text) if isinstance(message, Answer) else None


def more_by_one(value: int) -> int:
    return value + 1


UNARY = {
    "a revision too far": ("KV.Put", change(header__revision=more_by_one)),
    "a revision behind": ("KV.Range", change(header__revision=lambda n: n - 1)),
    "no header": ("KV.Range", no_header),
    "no cluster id": ("KV.Range", change(header__cluster_id=0)),
    "no term": ("KV.DeleteRange", change(header__raft_term=0)),
    "count stops at the limit": ("KV.Range", change(count=1)),
    "more is lost": ("KV.Range", change(more=False)),
    "a key is lost": ("KV.Range", lose_kv),
    "keys out of order": ("KV.Range", swap_kvs),
    "an update looks like a creation": ("KV.Range", first_kv(create_revision=CURRENT)),
    "another version": ("KV.Range", first_kv(version=more_by_one)),
    "another value": ("KV.Range", first_kv(value=b"forged")),
    "the lease is lost": ("KV.Range", first_kv(lease=0)),
    "the previous value is lost": ("KV.Put", no_prev),
    "one deleted too many": ("KV.DeleteRange", change(deleted=more_by_one)),
    "another branch": ("KV.Txn", change(succeeded=lambda yes: not yes)),
    "a nested header is lost": ("KV.Txn", nested_without_header),
    "another text": ("KV.Range", other_text),
    "another code": ("KV.Range", other_code),
    "another hash": ("Maintenance.HashKV", change(hash=lambda n: n ^ 1)),
    "another compacted revision": ("Maintenance.HashKV", change(compact_revision=more_by_one)),
    "another lifetime": ("Lease.LeaseGrant", change(TTL=more_by_one)),
    "another version of etcd": ("Maintenance.Status", change(version="3.4.0")),
    "a compaction that moves the revision": ("KV.Compact", change(header__revision=more_by_one)),
}


def script() -> list[some.Step]:
    """A little of everything."""
    get, put = rpc.RangeRequest, rpc.PutRequest
    nested = rpc.TxnRequest(success=[some.wrap(put(key=b"b", value=b"2"))])
    steps = [
        some.Step("Lease.LeaseGrant", rpc.LeaseGrantRequest(ID=1, TTL=5000)),
        some.Step("KV.Put", put(key=b"a", value=b"1", lease=1)),
        some.Step("KV.Put", put(key=b"a", value=b"2", lease=1, prev_kv=True)),
        some.Step("KV.Put", put(key=b"c", value=b"3")),
        some.Step("KV.Txn", rpc.TxnRequest(success=[some.wrap(nested)])),
        some.Step("KV.Range", get(key=b"a", range_end=b"z")),
        some.Step("KV.Range", get(key=b"a", range_end=b"z", limit=2)),
        some.Step("KV.Range", get(key=b"a", revision=CURRENT + 5)),
        some.Step("KV.RangeStream", get(key=b"a", range_end=b"z", limit=2)),
        some.Step("KV.DeleteRange", rpc.DeleteRangeRequest(key=b"b")),
        some.Step("KV.Compact", rpc.CompactionRequest(revision=CURRENT - 2)),
        some.Step("hash", CURRENT),
        some.Step("Maintenance.Status", rpc.StatusRequest()),
    ]
    return steps


def lie(pair: Pair, method: str, forge: Forge) -> None:
    pair.right.close()
    pair.right = ForgingClient(pair.right.endpoint, method, forge)


@pytest.fixture
def honest(etcds: Pair) -> Iterator[Pair]:
    """The pair, with an honest client afterwards."""
    etcds.reset()
    yield etcds
    etcds.right.close()
    etcds.right = Client(etcds.right.endpoint)
    # The lies were the client's: the servers are in step still.
    etcds.in_step = True
    for lease in [1, 2, 3]:
        for client in (etcds.left, etcds.right):
            client.call("Lease.LeaseRevoke", rpc.LeaseRevokeRequest(ID=lease))
    revisions = [
        client.call("KV.Range", rpc.RangeRequest(key=b"a")).message.header.revision
        for client in (etcds.left, etcds.right)
    ]
    etcds.in_step = revisions[0] == revisions[1]
    etcds.revision = revisions[0]


def test_honest_answers_pass(honest: Pair) -> None:
    run_steps(honest, script())


@pytest.mark.parametrize("name", UNARY)
def test_forged_answers_are_noticed(honest: Pair, name: str) -> None:
    method, forge = UNARY[name]
    if why := faults.unable(honest.version, method):
        pytest.skip(why)
    lie(honest, method, forge)
    with pytest.raises(Divergence):
        run_steps(honest, script())


def early_header(chunks: list[Any]) -> list[Any]:
    first = rpc.RangeStreamResponse()
    first.range_response.header.revision = chunks[-1].range_response.header.revision
    first.range_response.kvs.append(chunks[-1].range_response.kvs[0])
    del chunks[-1].range_response.kvs[0]
    return [first, *chunks]


def twice(chunks: list[Any]) -> list[Any]:
    first = rpc.RangeStreamResponse()
    first.range_response.kvs.append(chunks[-1].range_response.kvs[0])
    return [first, *chunks]


def no_count(chunks: list[Any]) -> list[Any]:
    chunks[-1].range_response.ClearField("count")
    return chunks


@needs_oracle((3, 7), "RangeStream is new in 3.7")
@pytest.mark.parametrize("forge", [early_header, twice, no_count])
def test_forged_streams_are_noticed(honest: Pair, forge: Forge) -> None:
    lie(honest, "KV.RangeStream", forge)
    with pytest.raises(Divergence):
        run_steps(honest, script())


@needs_oracle((3, 7), "RangeStream is new in 3.7")
def test_other_cuts_of_a_stream_pass(honest: Pair) -> None:
    def cut(chunks: list[Any]) -> list[Any]:
        first = rpc.RangeStreamResponse()
        first.range_response.kvs.append(chunks[-1].range_response.kvs[0])
        del chunks[-1].range_response.kvs[0]
        return [first, *chunks]

    lie(honest, "KV.RangeStream", cut)
    run_steps(honest, script())


def lose_event(message: Any) -> list[Any]:
    if len(message.events) > 1:
        del message.events[0]
    return [message]


def repeat_events(message: Any) -> list[Any]:
    return [message, message] if message.events else [message]


def split_revision(message: Any) -> list[Any]:
    for n in range(1, len(message.events)):
        if message.events[n].kv.mod_revision == message.events[n - 1].kv.mod_revision:
            first, second = rpc.WatchResponse(), rpc.WatchResponse()
            first.CopyFrom(message)
            second.CopyFrom(message)
            del first.events[n:]
            del second.events[:n]
            return [first, second]
    return [message]


def early_progress() -> Forge:
    """Progress with the current revision, whatever was delivered (the class of etcd#15220)."""

    def forge(message: Any) -> list[Any]:
        if not message.events:
            return [message]
        early = rpc.WatchResponse(header=message.header, watch_id=-1)
        return [early, message]

    return forge


def event(**fields: Any) -> Forge:
    def forge(message: Any) -> list[Any]:
        if message.events:
            change(**fields)(message.events[0])
        return [message]

    return forge


def without_prev(message: Any) -> list[Any]:
    for one in message.events:
        one.ClearField("prev_kv")
    return [message]


def deletion_of_put(message: Any) -> list[Any]:
    for one in message.events:
        if one.type == kv.Event.PUT and not one.kv.value:
            one.type = kv.Event.DELETE
    return [message]


def other_reason(message: Any) -> list[Any]:
    message.cancel_reason = ""
    return [message]


def other_border(message: Any) -> list[Any]:
    if message.compact_revision:
        message.compact_revision += 1
    return [message]


def header_behind(message: Any) -> list[Any]:
    if message.events:
        message.header.revision = 1
    return [message]


def backwards(message: Any) -> list[Any]:
    events = list(reversed(message.events))
    del message.events[:]
    message.events.extend(events)
    return [message]


WATCHES = {
    "an event is lost": lose_event,
    "an event comes twice": repeat_events,
    "a revision is split": split_revision,
    "progress comes too early": early_progress(),
    "an update looks like a creation": event(kv__create_revision=CURRENT),
    "another type": event(type=lambda kind: 1 - kind),
    "the previous value is lost": without_prev,
    "a put of nothing becomes a deletion": deletion_of_put,
    "no reason is given": other_reason,
    "another compacted revision": other_border,
    "the header is behind": header_behind,
    "events come backwards": backwards,
}


def watch_script(pair: Pair) -> None:
    before = [
        some.Step("KV.Put", rpc.PutRequest(key=b"a", value=b"0")),
        some.Step("KV.Put", rpc.PutRequest(key=b"a", value=b"1")),
        some.Step("KV.Compact", rpc.CompactionRequest(revision=CURRENT)),
        some.Step("KV.Put", rpc.PutRequest(key=b"a")),
        some.Step(
            "KV.Txn",
            rpc.TxnRequest(
                success=[some.wrap(rpc.PutRequest(key=key, value=b"2")) for key in (b"b", b"c")]
            ),
        ),
        some.Step("KV.DeleteRange", rpc.DeleteRangeRequest(key=b"a")),
    ]
    watch = rpc.WatchCreateRequest
    everything = {"key": b"\0", "range_end": b"\0"}
    watches = [
        some.WatchSpec(watch(start_revision=CURRENT - 2, prev_kv=True, **everything)),
        some.WatchSpec(watch(key=b"b", range_end=b"a")),
        some.WatchSpec(watch(start_revision=CURRENT - 4, **everything)),
    ]
    watch_example(pair, before, watches, before[:2])


@fair_watches
def test_honest_watches_pass(honest: Pair) -> None:
    watch_script(honest)


@fair_watches
@pytest.mark.parametrize("name", WATCHES)
def test_forged_watches_are_noticed(honest: Pair, name: str) -> None:
    lie(honest, "Watch.Watch", WATCHES[name])
    with pytest.raises(Divergence):
        watch_script(honest)


def test_a_write_that_got_lost_is_noticed(honest: Pair) -> None:
    """One server has a write more: the next answer tells."""
    honest.left.call("KV.Put", rpc.PutRequest(key=b"z"))
    with pytest.raises(Divergence):
        honest.call("KV.Put", rpc.PutRequest(key=b"a"))


# -- what may differ -------------------------------------------------------------------------


def _sorted_answer(keys: bytes, values: bytes, more: bool = False) -> Answer:
    kvs = [
        kv.KeyValue(key=bytes([key]), value=bytes([value]), mod_revision=key)
        for key, value in zip(keys, values, strict=True)
    ]
    return Answer(0, message=rpc.RangeResponse(kvs=kvs, more=more))


def _equal(request: rpc.RangeRequest, one: Answer, other: Answer) -> bool:
    return not differences(
        comparable("KV.Range", request, one), comparable("KV.Range", request, other)
    )


def test_ties_of_a_sort() -> None:
    by_value = rpc.RangeRequest(key=b"a", sort_order=1, sort_target=rpc.RangeRequest.VALUE)
    by_key = rpc.RangeRequest(key=b"a", sort_order=1)
    one = _sorted_answer(b"abc", b"115")
    assert _equal(by_value, one, _sorted_answer(b"bac", b"115"))
    assert not _equal(by_value, one, _sorted_answer(b"acb", b"151"))
    assert not _equal(by_value, one, _sorted_answer(b"bbc", b"115"))
    assert not _equal(by_key, one, _sorted_answer(b"bac", b"115"))


def test_ties_at_the_limit() -> None:
    by_value = rpc.RangeRequest(key=b"a", sort_order=1, sort_target=rpc.RangeRequest.VALUE, limit=3)
    one = _sorted_answer(b"abc", b"155", more=True)
    assert _equal(by_value, one, _sorted_answer(b"adc", b"155", more=True))
    assert not _equal(by_value, one, _sorted_answer(b"dbc", b"155", more=True))
    assert not _equal(by_value, one, _sorted_answer(b"abc", b"156", more=True))


def test_sequences_get_shorter() -> None:
    def run(numbers: Any) -> None:
        if {3, 17} <= set(numbers):
            raise Divergence(str(numbers))

    best, error = shorter(list(range(40)), run)
    assert best == [3, 17]
    assert str(error) == "[3, 17]"
