"""Watches on two servers side by side: what each saw, in a form that can be compared.

Servers may cut the same events into different responses, so what is compared is the sequence of
each watch: created, its events one by one, cancelled. What must hold for every response by itself
is checked as it comes in.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from google.protobuf import text_format

from kvstore.pb import rpc_pb2 as rpc
from tests.differential import strategies as some
from tests.oracle.client import TIMEOUT_S, Answer, Duplex
from tests.oracle.pair import Divergence, Pair
from tests.oracle.plain import differences, plain

#: The watch that a stream's progress is read from exists on every stream.
MARKER_ID = 1000
MARKER_KEY = b"marker"
NOBODY = -1


def create(request: rpc.WatchCreateRequest) -> rpc.WatchRequest:
    return rpc.WatchRequest(create_request=request)


def cancel(watch_id: int) -> rpc.WatchRequest:
    return rpc.WatchRequest(cancel_request=rpc.WatchCancelRequest(watch_id=watch_id))


PROGRESS = rpc.WatchRequest(progress_request=rpc.WatchProgressRequest())


class Broken(AssertionError):
    """A response that no watch may send, whatever another server does."""


@dataclass
class Seen:
    """What came in on one stream."""

    stream: Duplex
    side: str
    leases: dict[int, int] = field(default_factory=dict)
    #: watch id -> its story; -1 tells of watches that were refused.
    told: dict[int, list[Any]] = field(default_factory=dict)
    fragments: set[int] = field(default_factory=set)
    progress: int = 0
    #: The id that each create request got, in order.
    created: list[int] = field(default_factory=list)
    _last: dict[int, int] = field(default_factory=dict)
    _open_fragment: dict[int, bool] = field(default_factory=dict)

    def take(self, message: rpc.WatchResponse) -> None:
        story = self.told.setdefault(message.watch_id, [])
        revision = message.header.revision
        if not message.header.cluster_id or not message.header.member_id:
            raise Broken(f"{self.side}: no identity in {message}")
        if message.watch_id == NOBODY and not message.created:
            if message.events:
                raise Broken(f"{self.side}: events on watch -1: {message}")
            if revision < self.progress:
                raise Broken(f"{self.side}: progress went back from {self.progress}: {message}")
            self.progress = revision
            return
        if message.created or message.canceled:
            what = plain(message, self.leases)
            story.append(what)
            if message.created:
                self._last[message.watch_id] = 0
                self.created.append(message.watch_id)
            return
        if not message.events:
            # Progress of one watch, on a timer.
            return
        self._events(message, story)

    def _events(self, message: rpc.WatchResponse, story: list[Any]) -> None:
        watch = message.watch_id
        revisions = [event.kv.mod_revision for event in message.events]
        last = self._last.get(watch, 0)
        joined = self._open_fragment.get(watch, False)
        if revisions != sorted(revisions) or revisions[0] < last:
            raise Broken(f"{self.side}: out of order after {last}: {message}")
        if revisions[0] == last and not joined:
            raise Broken(f"{self.side}: revision {last} of watch {watch} was split: {message}")
        if message.fragment and watch not in self.fragments:
            raise Broken(f"{self.side}: a fragment that nobody asked for: {message}")
        if message.header.revision < revisions[-1]:
            raise Broken(f"{self.side}: header behind its events: {message}")
        if revisions[0] <= self.progress:
            raise Broken(f"{self.side}: an event behind progress {self.progress}: {message}")
        self._last[watch] = revisions[-1]
        self._open_fragment[watch] = message.fragment
        story += [plain(event, self.leases) for event in message.events]

    def read(self, timeout: float) -> bool:
        """Takes one response, if one comes in time."""
        message = self.stream.next(timeout)
        if message is None:
            return False
        if isinstance(message, Answer):
            raise Broken(f"{self.side}: the stream ended: {message}")
        self.take(message)
        return True

    def cancelled(self, watch_id: int) -> bool:
        story = self.told.get(watch_id, [])
        return bool(story) and isinstance(story[-1], dict) and bool(story[-1].get("canceled"))

    def wait_progress(self, revision: int) -> None:
        """Asks for progress until everything up to `revision` was delivered."""
        deadline = time.monotonic() + TIMEOUT_S
        while self.progress < revision:
            if time.monotonic() > deadline:
                raise Broken(f"{self.side}: no progress to {revision}, only {self.progress}")
            self.stream.send(PROGRESS)
            self.read(0.1)
        while self.read(0):
            pass

    def wait_created(self, count: int) -> None:
        """Reads until so many create requests were answered."""
        deadline = time.monotonic() + TIMEOUT_S
        while len(self.created) < count:
            if time.monotonic() > deadline:
                raise Broken(f"{self.side}: only {self.created} of {count} watches")
            self.read(0.1)

    def wait_story(self, watch_id: int, length: int) -> None:
        """Reads until the story of a watch has so many parts."""
        deadline = time.monotonic() + TIMEOUT_S
        while len(self.told.get(watch_id, [])) < length:
            if time.monotonic() > deadline:
                raise Broken(f"{self.side}: watch {watch_id} only told {self.told.get(watch_id)}")
            self.read(0.1)


class Watched:
    """One watch stream on each server of a pair."""

    def __init__(self, pair: Pair, **how: Any) -> None:
        self.pair = pair
        left, right = pair.watch(**how)
        self.left = Seen(left, "oracle")
        self.right = Seen(right, "subject", pair.lease_names())
        self.sent: list[str] = []

    def close(self) -> None:
        self.left.stream.close()
        self.right.stream.close()

    def __enter__(self) -> Watched:
        return self

    def __exit__(self, *why: object) -> None:
        self.close()

    def send(self, request: rpc.WatchRequest) -> rpc.WatchRequest:
        """The same request to both; returns it with its placeholders resolved."""
        resolved = self.pair.resolve(request, 0)
        self.sent.append("  " + text_format.MessageToString(resolved, as_one_line=True))
        for seen in (self.left, self.right):
            seen.stream.send(resolved)
        assert isinstance(resolved, rpc.WatchRequest)
        return resolved

    def both(self, what: str, *args: Any) -> None:
        """Calls a method of both sides; what is broken says how it came about."""
        for seen in (self.left, self.right):
            try:
                getattr(seen, what)(*args)
            except Broken as error:
                self.pair.in_step = False
                raise Divergence(f"{error}\n{self.story()}") from None

    def compare(self) -> None:
        self._forgive()
        found = differences(self.left.told, self.right.told)
        if found:
            self.pair.diverged([*found[:20], self.story()])

    def _forgive(self) -> None:
        """At the compacted revision etcd has no previous value any more; `test_deviations`."""
        for watch_id, story in self.left.told.items():
            for one, other in zip(story, self.right.told.get(watch_id, ()), strict=False):
                kv = one.get("kv", {})
                if 0 < kv.get("mod_revision", 0) <= self.pair.compacted and "prev_kv" not in one:
                    other.pop("prev_kv", None)

    def story(self) -> str:
        return "on the stream:\n" + "\n".join(self.sent) + "\n" + self.pair.story()


def is_overtaken(request: rpc.WatchCreateRequest, pair: Pair) -> bool:
    """Whether the server accepts this watch, and then cancels it as compacted."""
    return 0 < request.start_revision < pair.compacted and not is_refused(request)


def is_refused(request: rpc.WatchCreateRequest) -> bool:
    key = request.key or b"\0"
    end = request.range_end
    return request.start_revision < 0 or (bool(end) and end != b"\0" and key >= end)


def watch_example(
    pair: Pair,
    before: Sequence[some.Step],
    watches: Sequence[some.WatchSpec],
    during: Sequence[some.Step],
) -> None:
    """Writes; opens watches into past, present and future; writes again; compares their stories.

    Watches that cannot catch up (from compacted or future revisions) are on a stream of their own,
    since they rightly keep a stream from making progress.
    """
    from tests.differential.runner import Run

    run = Run(pair)
    for step in before:
        run.step(step)
    with Watched(pair) as ready, Watched(pair) as late:
        for watched in (ready, late):
            watched.send(create(rpc.WatchCreateRequest(key=MARKER_KEY, watch_id=MARKER_ID)))
        overtaken = []
        for spec in watches:
            request = rpc.WatchCreateRequest()
            request.CopyFrom(pair.resolve(spec.request, 0))
            future = request.start_revision > pair.revision
            if future or is_overtaken(request, pair):
                overtaken.append(not future)
                watched = late
            else:
                watched = ready
            if request.fragment:
                for seen in (watched.left, watched.right):
                    seen.fragments.add(request.watch_id)
            watched.send(create(request))
        # Answers to requests and progress come by different ways in etcd: either may be first.
        ready.both("wait_created", len(watches) - len(overtaken) + 1)
        ready.both("wait_progress", pair.revision)
        ready.compare()
        late.both("wait_created", len(overtaken) + 1)
        # The first is the marker's. Those that were overtaken are cancelled a little later.
        for watch_id, is_over in zip(late.left.created[1:], overtaken, strict=True):
            if is_over and watch_id != NOBODY:
                late.both("wait_story", watch_id, 2)
        late.compare()
        for spec in watches:
            watch_id = spec.request.watch_id
            story = ready.left.told.get(watch_id)
            if spec.cancel and story and not ready.left.cancelled(watch_id):
                ready.send(cancel(watch_id))
                ready.both("wait_story", watch_id, len(story) + 1)
        ready.send(cancel(424242))
        for step in during:
            run.step(step)
        pair.call("KV.Put", rpc.PutRequest(key=MARKER_KEY))
        ready.both("wait_progress", pair.revision)
        ready.compare()
        # The marker is watched there too, and every watch is served the same revision in one go or
        # not at all; those that wait for the future keep silent.
        for seen in (late.left, late.right):
            try:
                seen.wait_story(MARKER_ID, 2)
            except Broken as error:
                pair.diverged([str(error), late.story()])
        settle(late)
        late.compare()


def settle(watched: Watched) -> None:
    """Reads until both sides have told equally much, or nothing comes any more."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        left, right = watched.left.told, watched.right.told
        if {n: len(story) for n, story in left.items()} == {
            n: len(story) for n, story in right.items()
        }:
            return
        for seen in (watched.left, watched.right):
            seen.read(0.05)
