"""Jobs take turns, and no piece of work on the loop is long, however much there is to do (I9, R13).

Length is counted in function calls, so the result is the same on every machine.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import pytest

from kvstore.api.service import ServiceOptions
from kvstore.mvcc.version import put_version
from kvstore.node import slicer as slicer_module
from kvstore.node.slicer import Slicer
from kvstore.pb import rpc_pb2 as pb
from tests.unit.node.world import FakeStream, World, run, settle, world

Job = Generator[None, None, Any]


def steps(count: int, log: list[str], name: str, error: Exception | None = None) -> Job:
    for _ in range(count):
        log.append(name)
        yield
    if error is not None:
        raise error
    return name


def test_a_short_job_ends_before_start_returns() -> None:
    async def main() -> None:
        slicer = Slicer(asyncio.get_running_loop())
        ends: list[Any] = []
        slicer.start(steps(0, [], "x"), lambda *end: ends.append(end))
        failure = ValueError()
        slicer.start(steps(0, [], "x", failure), lambda *end: ends.append(end))
        assert ends == [("x", None), (None, failure)]
        assert len(slicer) == 0

    run(main)


def test_long_jobs_take_turns_and_let_the_loop_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slicer_module, "ROUND_S", 0.0)  # a step a round

    async def main() -> None:
        loop = asyncio.get_running_loop()
        slicer = Slicer(loop)
        log: list[str] = []
        jobs = [slicer.run(steps(4, log, name)) for name in "abc"]
        tasks = [asyncio.ensure_future(job) for job in jobs]
        others: list[int] = []

        def other() -> None:
            others.append(len(log))
            if len(others) < 8:
                loop.call_soon(other)

        loop.call_soon(other)
        assert await asyncio.gather(*tasks) == ["a", "b", "c"]
        assert log[:9] == ["a", "b", "c"] * 3
        assert sorted(log) == sorted("abc" * 4)
        gaps = [b - a for a, b in pairwise(others)]
        assert max(gaps) <= 2, "each round does little before others run"

    run(main)


def test_one_that_fails_or_whose_end_fails_stops_no_other() -> None:
    async def main() -> None:
        slicer = Slicer(asyncio.get_running_loop())
        log: list[str] = []

        def broken(*_: Any) -> None:
            raise RuntimeError("bug in the end of a job")

        slicer.start(steps(2, log, "broken"), broken)
        failing = asyncio.ensure_future(slicer.run(steps(3, log, "failing", KeyError("x"))))
        fine = asyncio.ensure_future(slicer.run(steps(5, log, "fine")))
        with pytest.raises(KeyError):
            await failing
        assert await fine == "fine"

    run(main)


def test_one_that_nobody_waits_for_any_more_runs_to_its_end() -> None:
    async def main() -> None:
        slicer = Slicer(asyncio.get_running_loop())
        log: list[str] = []
        task = asyncio.ensure_future(slicer.run(steps(5, log, "x")))
        await asyncio.sleep(0)
        task.cancel()
        await settle(20)
        assert log == ["x"] * 5
        assert len(slicer) == 0

    run(main)


# -- I9: counted in calls --------------------------------------------------------------------

KEYS = 20_000
CALLS_MAX = 60_000
"""A slice of 1000 keys takes up to some 30 calls a key; 20,000 at once take ten times the limit."""


@contextmanager
def calls_of_each_callback(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Counts the function calls of each piece of work that the loop runs."""
    counts: list[int] = []
    calls = 0

    def count(frame: Any, event: str, arg: Any) -> None:
        nonlocal calls
        if event in ("call", "c_call"):
            calls += 1

    inner = asyncio.Handle._run  # type: ignore[attr-defined]

    def counted(handle: Any) -> None:
        nonlocal calls
        calls = 0
        sys.setprofile(count)
        try:
            inner(handle)
        finally:
            sys.setprofile(None)
            counts.append(calls)

    with monkeypatch.context() as patch:
        patch.setattr(asyncio.Handle, "_run", counted)
        yield counts


def much_in_pieces(counts: list[int]) -> None:
    """There was more to do than one piece may take, and none took that."""
    assert sum(counts) > CALLS_MAX
    assert max(counts) < CALLS_MAX, sorted(counts)[-5:]


def fill(w: World) -> None:
    """Many keys of one lease, as if they had been there for long."""
    state = w.node.state
    state.lessor.grant(5, 1000, w.node.now())
    store = state.store
    for n in range(KEYS):
        key = b"a/%06d" % n
        version = put_version(key, b"v" * 50, 5, store.revision + 1, 0, None)
        state.link(store.shard_of(key), version)
        store.publish(version.mod)


class Raw:
    """In the place of a message type: the bytes."""

    @staticmethod
    def FromString(raw: bytes) -> bytes:
        return raw


JOBS: dict[str, Callable[[World], Any]] = {
    "list": lambda w: w.get(b"a/", b"a0"),
    "sorted list": lambda w: w.get(b"a/", b"a0", sort_order=2, sort_target=4),
    "keys": lambda w: w.get(b"a/", b"a0", keys_only=True),
    "filtered": lambda w: w.get(b"a/", b"a0", min_mod_revision=3),
    "limit over the dead": lambda w: w.get(b"a/", b"a0", revision=1, limit=1),
    "old count": lambda w: w.get(b"a/", b"a0", revision=2, count_only=True),
    "hash": lambda w: w.hash_kv(),
    "delete": lambda w: w.delete(b"a/", b"a0", prev_kv=True),
    "delete in a transaction": lambda w: w.call(
        "/etcdserverpb.KV/Txn",
        pb.TxnRequest(
            compare=[pb.Compare(key=b"a/", range_end=b"a0", target=pb.Compare.VERSION, version=1)],
            success=[
                pb.RequestOp(
                    request_delete_range=pb.DeleteRangeRequest(key=b"a/", range_end=b"a0")
                ),
                pb.RequestOp(request_range=pb.RangeRequest(key=b"a/", range_end=b"a0")),
            ],
        ),
    ),
    "revoke": lambda w: w.revoke(5),
    "keys of a lease": lambda w: w.time_to_live(5, keys=True),
    "compact": lambda w: w.compact(w.revision, physical=True),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", JOBS)
def test_no_piece_of_work_is_long(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with world() as w:
            fill(w)
            streams = [w.watch_stream() for _ in range(2)]
            for stream in streams:
                create = pb.WatchCreateRequest(key=b"a", range_end=b"b", prev_kv=True)
                stream.say(pb.WatchRequest(create_request=create))
            call: Any = None

            def begin() -> None:
                nonlocal call
                call = JOBS[name](w)

            with calls_of_each_callback(monkeypatch) as counts:
                asyncio.get_running_loop().call_soon(begin)
                while call is None or not call.done:
                    await asyncio.sleep(0)
                await settle(3)
                while w.node.hub.slow:
                    await asyncio.sleep(0)
            assert call.response is not None
            assert max(counts) < CALLS_MAX, sorted(counts)[-5:]
            if name in ("delete", "revoke", "delete in a transaction"):
                for stream in streams:
                    events = [e for message in stream.take() for e in message.events]
                    assert len(events) == KEYS and events[-1].HasField("prev_kv")

    run(main)


def test_a_snapshot_is_taken_in_short_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with world() as w:
            fill(w)
            with calls_of_each_callback(monkeypatch) as counts:
                w.node.start_snapshot()
                task = w.node._snapshot_task
                assert task is not None
                await task
            assert max(counts) < CALLS_MAX, sorted(counts)[-5:]
            assert w.node.snapshotter.taken == 1

    run(main)


@pytest.mark.slow
def test_many_answers_and_many_watchers_are_served_in_pieces(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> None:
        async with world() as w:
            (one_stream,) = watching(w, [one_watch()] * 200)
            streams = watching(w, [one_watch()], streams=200)
            w.journal.hold()
            calls = [w.put(b"k", b"%d" % n) for n in range(1500)]
            await settle()
            with calls_of_each_callback(monkeypatch) as counts:
                w.journal.release()
                await calls[-1]
                while w.node.hub.slow:
                    await asyncio.sleep(0)
            much_in_pieces(counts)
            encoded = {b"".join(stream.messages) for stream in streams}
            assert len(encoded) == 1
            assert len(pb.WatchResponse.FromString(*encoded).events) == 1500
            assert len(set(one_stream.messages)) == len(one_stream.messages) == 200

    run(main)


@pytest.mark.slow
def test_a_take_over_renews_many_leases_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with world() as w:
            lessor = w.node.state.lessor
            # As a follower has them: granted long ago, and kept alive by the leader alone.
            for n in range(1, KEYS + 1):
                lessor.grant(n, 1000, w.node.now() - 2000)
            with calls_of_each_callback(monkeypatch) as counts:
                asyncio.get_running_loop().call_soon(
                    lambda: lessor.renew_all(asyncio.get_running_loop().time())
                )
                while lessor._due[0][0] < w.node.now():
                    await asyncio.sleep(0.01)
            much_in_pieces(counts)
            assert len(lessor) == len(lessor._due) == KEYS
            assert w.node.leases_expired == 0

    run(main)


# -- I9: many watchers ---------------------------------------------------------------------

WATCH = "/etcdserverpb.Watch/Watch"


def one_watch(key: bytes = b"k", range_end: bytes = b"", **fields: Any) -> pb.WatchRequest:
    return pb.WatchRequest(
        create_request=pb.WatchCreateRequest(key=key, range_end=range_end, **fields)
    )


def watching(w: World, requests: list[pb.WatchRequest], streams: int = 1) -> list[FakeStream]:
    """Streams with these watches, each."""
    opened = [w._stream(WATCH, Raw, 1 << 40) for _ in range(streams)]
    for stream in opened:
        stream.say(*requests)
        stream.take()
    return opened


@pytest.mark.slow
def test_the_end_of_a_stream_takes_its_watches_off_in_pieces(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Distinct ranges, which cost the most, and none of them hears anything meanwhile."""

    async def main() -> None:
        async with world() as w:
            hub = w.node.hub
            ranges = [one_watch(b"k", b"l%05d" % n) for n in range(KEYS // 10)]
            (stream,) = watching(w, ranges)
            (other,) = watching(w, [one_watch()])
            events = hub.events
            with calls_of_each_callback(monkeypatch) as counts:
                asyncio.get_running_loop().call_soon(stream.close)
                await w.put(b"k")
                assert hub.watchers > len(ranges) // 2, "they are still there"
                assert (hub.slow, hub.events - events, len(other.take())) == (0, 1, 1)
                assert not stream.handler._due and w.service.watch_streams == 1
                while hub.watchers > 1:
                    await asyncio.sleep(0)
            much_in_pieces(counts)
            assert len(hub._ranges) == len(hub._by_range) == 0
            assert not stream.handler._watchers and len(w.node.slicer) == 0

    run(main)


@pytest.mark.slow
def test_an_event_is_matched_with_many_ranges_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every event reaches every range once and in order, and those that come meanwhile too."""

    async def main() -> None:
        async with world() as w:
            ranges = [one_watch(b"k", b"l%05d" % n) for n in range(KEYS)]
            (stream,) = watching(w, ranges)
            w.journal.hold()
            w.put(b"first")
            await settle()
            # One batch: the first event that many match is not the first that is noted.
            puts = [w.put(key, b"%d" % n) for n, key in enumerate((b"j", b"k", b"k", b"k"))]
            with calls_of_each_callback(monkeypatch) as counts:
                w.journal.release()
                for _ in range(20):
                    if not w.node.hub.is_matching:
                        await asyncio.sleep(0)
                assert w.node.hub.is_matching
                late_ones = [
                    one_watch(b"k", b"l"),
                    one_watch(b"k", b"l", start_revision=w.revision + 2),
                    one_watch(b"k", b"m"),
                    one_watch(),
                ]
                (late,) = watching(w, late_ones)
                await puts[-1]
                while w.node.hub.slow or w.node.hub.is_marking:
                    await asyncio.sleep(0)
            assert max(counts) < CALLS_MAX, sorted(counts)[-5:]
            for each, number in ((stream, KEYS), (late, len(late_ones))):
                seen: dict[int, list[bytes]] = {}
                for raw in each.take():
                    one = pb.WatchResponse.FromString(raw)
                    seen.setdefault(one.watch_id, []).extend(e.kv.value for e in one.events)
                assert len(seen) == number
                assert all(values == [b"1", b"2", b"3"] for values in seen.values())

    run(main)


@pytest.mark.slow
def test_many_streams_that_lose_the_leader_end_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with world() as w:
            streams = watching(w, [one_watch()], streams=KEYS)
            for stream in streams[1:]:
                stream.handler.needs_leader = True
            with calls_of_each_callback(monkeypatch) as counts:
                asyncio.get_running_loop().call_soon(w.service.leader_lost)
                await asyncio.sleep(0)
                while w.node.hub.watchers > 1:
                    await asyncio.sleep(0)
            much_in_pieces(counts)
            assert streams[0].closed is None and all(stream.closed for stream in streams[1:])

    run(main)


@pytest.mark.slow
def test_progress_is_told_in_pieces_and_each_stream_has_its_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> None:
        async with world(service=ServiceOptions(progress_interval_s=10.0)) as w:
            loop = asyncio.get_running_loop()
            began = loop.time()
            request = one_watch(progress_notify=True)
            (big,) = watching(w, [request] * KEYS)
            many = watching(w, [request, one_watch()], streams=50)
            (quiet,) = watching(w, [one_watch()])
            at: dict[FakeStream, float] = {}
            with calls_of_each_callback(monkeypatch) as counts:
                while loop.time() < began + 12:
                    await asyncio.sleep(0.01)
                    at.update({s: loop.time() for s in (big, *many) if s.messages and s not in at})
            much_in_pieces(counts)
            assert len(big.take()) == KEYS
            assert all(len(stream.take()) == 1 for stream in many)
            assert not quiet.messages and quiet.handler._timer is None
            assert min(at.values()) >= began + 10 and max(at.values()) <= began + 11.1
            assert len(set(at.values())) > 20, "not all at once"
            many[0].close()
            quiet.say(request)
            quiet.take()
            await asyncio.sleep(9.9)
            assert not quiet.messages, "its interval began with the watch that asked"
            await asyncio.sleep(2.1)
            assert len(quiet.messages) == len(many[1].messages) == 1 and not many[0].messages

    run(main)


@pytest.mark.slow
def test_a_wide_fan_out_is_marked_in_pieces_and_progress_waits_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """I4: a stream whose turn has not come knows that it has something to come."""

    async def main() -> None:
        async with world() as w:
            wide = watching(w, [one_watch()] * (KEYS // 10), streams=20)
            (small,) = watching(w, [one_watch()])
            (apart,) = watching(w, [one_watch(b"apart")])
            ask = pb.WatchRequest(progress_request=pb.WatchProgressRequest())

            def ask_all() -> None:
                for stream in (wide[-1], small, apart):
                    stream.say(*[ask] * 5)

            with calls_of_each_callback(monkeypatch) as counts:
                asyncio.get_running_loop().call_soon(ask_all)
                await asyncio.sleep(0)
                for stream in (wide[-1], small, apart):
                    assert len(stream.take()) == 5, "nothing to come, so answered at once"
                put = w.put(b"k")
                while not put.done:
                    await asyncio.sleep(0)
                assert w.node.hub.is_marking, "its watchers are still being woken"
                asyncio.get_running_loop().call_soon(ask_all)
                while w.node.hub.is_marking:
                    await asyncio.sleep(0)
                await settle(3)
            much_in_pieces(counts)
            for stream, watchers in ((wide[-1], KEYS // 10), (small, 1), (apart, 0)):
                found = [pb.WatchResponse.FromString(one) for one in stream.take()]
                assert [len(one.events) for one in found[:watchers]] == [1] * watchers
                answers = found[watchers:]
                assert answers and all(one.watch_id == -1 for one in answers)
                assert {one.header.revision for one in answers} == {w.revision}

    run(main)


@pytest.mark.slow
def test_progress_of_many_watches_is_asked_for_in_vain_cheaply(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However often, and however many watches wait for the future or did."""

    async def main() -> None:
        async with world() as w:
            (stream,) = watching(
                w, [one_watch(start_revision=n) for n in (3, 5) for _ in range(2 * KEYS)]
            )
            ask = pb.WatchRequest(progress_request=pb.WatchProgressRequest())
            with calls_of_each_callback(monkeypatch) as counts:
                asyncio.get_running_loop().call_soon(lambda: stream.say(*[ask] * 20))
                await settle()
                assert not stream.take()
                for _ in range(4):
                    await w.put(b"other")
                asyncio.get_running_loop().call_soon(lambda: stream.say(ask))
                while not stream.messages:
                    await asyncio.sleep(0)
            assert max(counts) < CALLS_MAX, sorted(counts)[-5:]
            (answer,) = [pb.WatchResponse.FromString(one) for one in stream.take()]
            assert (answer.watch_id, answer.header.revision) == (-1, w.revision)

    run(main)
