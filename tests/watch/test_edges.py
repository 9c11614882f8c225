"""I4 at its edges, one by one: fragments, future starts, the compaction boundary, long past."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from kvstore.pb import kv_pb2, rpc_pb2
from tests import peers, wire

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

ANSWER_SECONDS_MAX = 30.0
Case = Callable[[wire.Client, bool], Awaitable[None]]


@pytest.fixture(scope="module")
def endpoints(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    base = tmp_path_factory.mktemp("edges")
    with peers.start_etcd(base) as etcd, peers.start_jotd(base / "data") as jotd:
        yield {"etcd": etcd.endpoint, "jotd": jotd.endpoint}


async def _watch(client: wire.Client, **fields: Any) -> Any:
    """Creates one watch on a stream of its own; the created answer is read already."""
    call = client.stream("Watch")
    request = rpc_pb2.WatchCreateRequest(**fields)
    await call.write(rpc_pb2.WatchRequest(create_request=request))
    created = await _read(call)
    assert created.created and not created.canceled, created
    return call


async def _read(call: Any) -> rpc_pb2.WatchResponse:
    async with asyncio.timeout(ANSWER_SECONDS_MAX):
        answer: rpc_pb2.WatchResponse = await call.read()
    return answer


async def _until(call: Any, revision: int) -> list[rpc_pb2.WatchResponse]:
    """Reads until an unfragmented response with an event of `revision`."""
    answers = []
    while True:
        answer = await _read(call)
        answers.append(answer)
        if not answer.events or answer.fragment:
            continue
        if answer.events[-1].kv.mod_revision >= revision:
            return answers


async def _silent(client: wire.Client, call: Any) -> None:
    """Nothing is under way: the next message is the answer to a progress request."""
    await call.write(rpc_pb2.WatchRequest(progress_request=rpc_pb2.WatchProgressRequest()))
    answer = await _read(call)
    assert answer.watch_id == -1 and not answer.events, answer


async def fragments_carry_each_event_once(client: wire.Client, real: bool) -> None:
    """A revision of several MiB in fragments: flagged but for the last, no event lost or twice."""
    last = 0
    for n in range(3):
        txn = rpc_pb2.TxnRequest()
        for k in range(30):
            txn.success.add().request_put.CopyFrom(
                rpc_pb2.PutRequest(key=b"frag/%02d" % k, value=b"%d" % n * 50_000)
            )
        last = (await client.call("Txn", txn)).header.revision
    call = await _watch(
        client, key=b"frag/", range_end=b"frag0", start_revision=last - 2, prev_kv=True,
        fragment=True,
    )  # fmt: skip
    answers = await _until(call, last)
    events = [event for answer in answers for event in answer.events]
    wanted = [(last - 2 + n, b"frag/%02d" % k) for n in range(3) for k in range(30)]
    assert [(event.kv.mod_revision, event.kv.key) for event in events] == wanted
    assert any(answer.fragment for answer in answers)
    assert max(answer.ByteSize() for answer in answers) < 3 << 20
    whole = await _watch(
        client, key=b"frag/", range_end=b"frag0", start_revision=last - 2, prev_kv=True
    )
    answers = await _until(whole, last)
    assert not any(answer.fragment for answer in answers)
    assert [event for answer in answers for event in answer.events] == events
    for answer in answers:
        revisions = [event.kv.mod_revision for event in answer.events]
        assert all(revisions.count(revision) == 30 for revision in set(revisions))


async def a_future_start_waits(client: wire.Client, real: bool) -> None:
    """A watch with a start revision in the future brings nothing that is older."""
    now = (await client.put(b"future/a")).header.revision
    call = await _watch(client, key=b"future/", range_end=b"future0", start_revision=now + 3)
    for n in range(1, 6):
        await client.put(b"future/%d" % n)
    answers = await _until(call, now + 5)
    events = [event.kv for answer in answers for event in answer.events]
    assert [(kv.mod_revision, kv.key) for kv in events] == [
        (now + n, b"future/%d" % n) for n in (3, 4, 5)
    ]


async def a_future_start_gets_no_progress(client: wire.Client, real: bool) -> None:
    """R7: no manual progress answer while a watch of the stream starts above the revision."""
    now = (await client.put(b"future/b")).header.revision
    call = await _watch(client, key=b"future/b", start_revision=now + 2)
    request = rpc_pb2.WatchRequest(progress_request=rpc_pb2.WatchProgressRequest())
    await call.write(request)
    await client.put(b"elsewhere")
    await call.write(request)
    await client.put(b"future/b")
    answer = await _read(call)
    # The second request may be answered once the revision is reached, never before.
    assert answer.header.revision >= now + 2, answer


async def progress_comes_behind_all_events(client: wire.Client, real: bool) -> None:
    """An answer that had to wait comes after the events of every watch of the stream.

    The request waits for the start revision of the first watch; the transaction that reaches it
    has an event for the second watch too.
    """
    now = (await client.put(b"behind/a")).header.revision
    call = await _watch(client, key=b"behind/a", start_revision=now + 2)
    for key in (b"behind/b", b"/registry/pods/behind"):
        create = rpc_pb2.WatchCreateRequest(key=key)
        await call.write(rpc_pb2.WatchRequest(create_request=create))
        assert (await _read(call)).created
    request = rpc_pb2.WatchRequest(progress_request=rpc_pb2.WatchProgressRequest())
    await call.write(request)
    await client.put(b"elsewhere")
    txn = rpc_pb2.TxnRequest()
    for key in (b"behind/a", b"behind/b", b"/registry/pods/behind"):
        txn.success.add().request_put.key = key
    await client.call("Txn", txn)
    await call.write(request)
    # The first answer may come late in the day or, in etcd, never; no event comes behind it.
    answers = [await _read(call) for _ in range(4)]
    assert [len(answer.events) for answer in answers] == [1, 1, 1, 0], answers
    assert answers[3].header.revision == now + 2


async def operations_come_in_their_order(client: wire.Client, real: bool) -> None:
    """One transaction over many shards is one response, in the order of its operations."""
    keys = [b"zz/1", b"/registry/pods/1", b"a/1", b"/registry/minions/1", b"/registry/events/1"]
    call = await _watch(client, key=b"\x00", range_end=b"\x00")
    txn = rpc_pb2.TxnRequest()
    for key in keys:
        txn.success.add().request_put.key = key
    await client.call("Txn", txn)
    answer = await _read(call)
    assert [event.kv.key for event in answer.events] == keys
    await client.delete(b"\x00", b"\x00")
    answer = await _read(call)
    deleted = [event.kv.key for event in answer.events]
    assert deleted == sorted(deleted) and set(keys) <= set(deleted)
    await _silent(client, call)


async def a_long_history_comes_whole(client: wire.Client, real: bool) -> None:
    """Thousands of revisions from the past: each whole, in order, none left out."""
    first = (await client.put(b"long/start")).header.revision
    txn = rpc_pb2.TxnRequest()
    for k in range(3):
        txn.success.add().request_put.key = b"long/%d" % k
    for _ in range(70):
        await asyncio.gather(*(client.call("Txn", txn) for _ in range(30)))
    last = await client.revision()
    call = await _watch(client, key=b"long/", range_end=b"long0", start_revision=first + 1)
    answers = await _until(call, last)
    got = [event.kv.mod_revision for answer in answers for event in answer.events]
    assert got == [revision for revision in range(first + 1, last + 1) for _ in range(3)]
    for answer in answers:
        assert len(answer.events) % 3 == 0


async def at_the_compaction_boundary(client: wire.Client, real: bool) -> None:
    """R8: a watch from the compacted revision gets its events and previous values.

    etcd drops the previous value there, a declared deviation.
    """
    for n in range(4):
        answer = await client.put(b"edge/k", b"%d" % n)
    await client.delete(b"edge/k")
    last = await client.revision()
    await client.call("Compact", rpc_pb2.CompactionRequest(revision=last - 1, physical=True))
    call = await _watch(client, key=b"edge/k", start_revision=last - 1, prev_kv=True)
    events = [event for answer in await _until(call, last) for event in answer.events]
    assert [(event.type, event.kv.mod_revision) for event in events] == [
        (kv_pb2.Event.PUT, last - 1),
        (kv_pb2.Event.DELETE, last),
    ]
    assert events[1].prev_kv.value == b"3"
    if not real:
        assert events[0].prev_kv.value == b"2"
    assert answer.header.revision == last - 1


async def compacted_on_a_delete(client: wire.Client, real: bool) -> None:
    """The delete event at the compacted revision itself is not lost (etcd#18089, #19179)."""
    await client.put(b"edge/d", b"x")
    last = (await client.delete(b"edge/d")).header.revision
    await client.put(b"edge/other")
    await client.call("Compact", rpc_pb2.CompactionRequest(revision=last, physical=True))
    call = await _watch(client, key=b"edge/d", start_revision=last, prev_kv=True)
    await client.put(b"edge/d", b"y")
    events = [event for answer in await _until(call, last + 2) for event in answer.events]
    assert [(event.type, event.kv.mod_revision) for event in events] == [
        (kv_pb2.Event.DELETE, last),
        (kv_pb2.Event.PUT, last + 2),
    ]


async def below_the_compaction(client: wire.Client, real: bool) -> None:
    """A start below the compacted revision is created, then cancelled with that revision."""
    for n in range(3):
        await client.put(b"edge/c", b"%d" % n)
    last = await client.revision()
    await client.call("Compact", rpc_pb2.CompactionRequest(revision=last))
    call = await _watch(client, key=b"edge/c", start_revision=last - 1)
    answer = await _read(call)
    assert answer.canceled and answer.compact_revision == last and not answer.events
    # The stream itself goes on.
    request = rpc_pb2.WatchCreateRequest(key=b"edge/c", start_revision=last)
    await call.write(rpc_pb2.WatchRequest(create_request=request))
    assert (await _read(call)).created
    assert [e.kv.mod_revision for e in (await _read(call)).events] == [last]


CASES: list[Case] = [
    fragments_carry_each_event_once,
    a_future_start_waits,
    a_future_start_gets_no_progress,
    progress_comes_behind_all_events,
    operations_come_in_their_order,
    a_long_history_comes_whole,
    at_the_compaction_boundary,
    compacted_on_a_delete,
    below_the_compaction,
]


@pytest.mark.parametrize("server", ["etcd", "jotd"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_edge(endpoints: dict[str, str], server: str, case: Case) -> None:
    async def run() -> None:
        async with wire.Client(endpoints[server]) as client:
            await case(client, server == "etcd")

    asyncio.run(run())
