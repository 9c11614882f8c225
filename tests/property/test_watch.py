"""Watches against the model's event log: slow clients, compaction, slices in between (I4, R7).

Every response of every stream is looked at in order: events are those of the log, whole revisions,
each once; a cancelled watch missed nothing that could still be read; a progress notification of R
comes behind everything up to R.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.pb import rpc_pb2 as pb
from tests.property import model as dumb
from tests.property import requests
from tests.property.profiles import moderate
from tests.property.stepper import Stepper, small_slices
from tests.property.test_store import METHODS
from tests.unit.node.world import FakeCall, FakeStream

FRAGMENT_BYTES = 120


@pytest.fixture(autouse=True)
def slices(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    small_slices(monkeypatch)
    yield


@dataclass
class Watch:
    """One watch, and what it should see."""

    request: pb.WatchCreateRequest
    start: int
    expected: list[dumb.Event] = field(default_factory=list)
    at: int = 0
    over: bool = False

    def wants(self, event: dumb.Event) -> bool:
        request = self.request
        filters = pb.WatchCreateRequest
        return (
            event.revision >= self.start
            and dumb.inside(event.kv.key, request.key, request.range_end)
            and (filters.NOPUT if event.is_put else filters.NODELETE) not in request.filters
        )

    def take(self, events: Any) -> None:
        """The next events are the next of the log."""
        assert not self.over
        for event in events:
            assert self.at < len(self.expected), f"unexpected {event}"
            log = self.expected[self.at]
            self.at += 1
            assert event.kv == log.kv
            assert event.type == (0 if log.is_put else 1)
            assert event.HasField("prev_kv") == (self.request.prev_kv and log.previous is not None)
            if event.HasField("prev_kv"):
                assert event.prev_kv == log.previous
        if 0 < self.at < len(self.expected):
            assert self.expected[self.at].revision > self.expected[self.at - 1].revision, "split"

    def has_seen(self, revision: int) -> bool:
        return self.at == len(self.expected) or self.expected[self.at].revision > revision


class Streams:
    """Streams of watches on a server, beside the model."""

    def __init__(self) -> None:
        self.server = Stepper()
        self.server.service.max_request_bytes = FRAGMENT_BYTES
        self.model = dumb.Model()
        self.streams: list[FakeStream] = []
        self.created: list[list[Watch]] = []
        self.progresses = 0

    def play(self, seed: int, length: int) -> None:
        draw = requests.Requests(seed)
        for _ in range(length):
            draw.revision, draw.compacted = self.model.revision, self.model.compacted
            self.act(draw)

    def act(self, draw: requests.Requests) -> None:
        kind = draw.random.random()
        if kind < 0.3:
            request = draw.random.choices(
                [draw.put, draw.delete, draw.txn, draw.compact, draw.grant, draw.revoke],
                [12, 4, 5, 2, 2, 1],
            )[0]()
            call = FakeCall(METHODS[type(request)], request)
            self.server.service.on_calls([call])
            read_only = isinstance(request, pb.TxnRequest) and all(
                op.HasField("request_range") for op in (*request.success, *request.failure)
            )
            if not read_only and "duplicate key" not in call.message:
                self.model.apply(request)
        elif kind < 0.5:
            self.server.slicer.step(draw.random.randrange(10))
        elif kind < 0.68:
            self.server.append()
        elif kind < 0.7:
            self.server.tick()
        elif kind < 0.71:
            self.server.ring()
        else:
            self.client(draw)

    def client(self, draw: requests.Requests) -> None:
        """Something that a client does."""
        choose = draw.random
        if not self.streams or (len(self.streams) < 4 and draw.chance(10)):
            room = 1 << 30 if draw.chance(50) else 100
            stream = FakeStream("/etcdserverpb.Watch/Watch", pb.WatchResponse, room)
            stream.handler = self.server.service.on_stream(stream)
            self.streams.append(stream)
            self.created.append([])
            return
        number = choose.randrange(len(self.streams))
        stream, watches = self.streams[number], self.created[number]
        if stream.closed is not None:
            return
        kind = choose.random()
        if kind < 0.4:
            stream.give_room(choose.choice([50, 200, 1000]))
        elif kind < 0.75:
            request = pb.WatchCreateRequest(
                key=draw.key(),
                range_end=draw.end(70),
                start_revision=draw.past() + choose.choice([0, 0, 3]) if draw.chance(60) else 0,
                prev_kv=draw.chance(50),
                progress_notify=draw.chance(50),
                fragment=draw.chance(50),
                filters=[f for f in (0, 1) if draw.chance(10)],  # type: ignore[misc]
            )
            start = request.start_revision or self.server.state.store.revision + 1
            empty = request.range_end not in (b"", b"\x00") and request.key >= request.range_end
            if not empty:
                watches.append(Watch(request, start))
            stream.say(pb.WatchRequest(create_request=request))
        elif kind < 0.8 and watches:
            cancel = pb.WatchCancelRequest(watch_id=choose.randrange(len(watches)))
            stream.say(pb.WatchRequest(cancel_request=cancel))
        elif kind < 0.98:
            stream.say(pb.WatchRequest(progress_request=pb.WatchProgressRequest()))
        else:
            stream.close()

    def finish(self) -> None:
        """Let everybody catch up, and look at what they got."""
        self.server.settle()
        for stream in self.streams:
            if stream.closed is None:
                stream.give_room(1 << 30)
        self.server.settle()
        assert not self.server.slicer.jobs
        for stream, watches in zip(self.streams, self.created, strict=True):
            for watch in watches:
                watch.expected = [e for e in self.model.events if watch.wants(e)]
            self.check(stream, watches)
            handler = stream.handler
            assert stream.closed or handler._later or not handler._progress_wanted, "no answer"
        hub = self.server.hub
        alive = [w for s, ws in zip(self.streams, self.created, strict=True)
                 for w in ws if not w.over and s.closed is None]  # fmt: skip
        assert hub.watchers == len(alive)
        assert hub.slow == 0

    def check(self, stream: FakeStream, watches: list[Watch]) -> None:
        live: list[int] = []
        fragments: dict[int, list[Any]] = {}
        for response in stream.messages:
            number = response.watch_id
            if response.created and response.canceled:
                assert number == -1
            elif response.created:
                assert number == len(live)
                live.append(number)
                # A start at the current revision + 1, however the revision moved meanwhile.
                if not watches[number].request.start_revision:
                    assert watches[number].start == response.header.revision + 1
            elif response.canceled:
                watch = watches[number]
                if response.compact_revision:
                    assert not watch.over
                    seen = watch.expected[watch.at - 1].revision + 1 if watch.at else 0
                    assert max(watch.start, seen) < response.compact_revision, "not overtaken"
                watch.over = True
            elif response.events:
                assert not fragments.keys() - {number}, "fragments of one response stay together"
                fragments.setdefault(number, []).extend(response.events)
                if not response.fragment:
                    watches[number].take(fragments.pop(number))
            else:
                self.progresses += 1
                revision = response.header.revision
                told = watches[: len(live)] if number == -1 else [watches[number]]
                for watch in told:
                    if not watch.over:
                        assert watch.has_seen(revision), "progress before an event"
                        assert watch.request.start_revision <= revision
        assert not fragments
        if stream.closed is None:
            for watch in watches:
                if not watch.over:
                    assert watch.at == len(watch.expected), "not complete"


@moderate(80)
@given(st.integers(0, 1 << 32), st.integers(200, 700))
def test_watches_see_the_log(seed: int, length: int) -> None:
    streams = Streams()
    streams.play(seed, length)
    streams.finish()
