"""The watch index and the cursors of all watchers (R7).

A watcher's cursor is a revision. Delivery always reads events from the cursor to the watermark,
whole revisions; the index only wakes watchers and names their first matching revision. Watchers
of the same range form a group and share the reading and the encoding of events.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from operator import attrgetter

from kvstore.mvcc.buckets import BucketedDict
from kvstore.mvcc.shard import Shard
from kvstore.mvcc.store import SLICE, Steps, Store
from kvstore.mvcc.version import Version
from kvstore.mvcc.wire import varint
from kvstore.watch.intervals import IntervalMap, Range

_RECENT = 256
"""Matching events that a group keeps at hand; older ones are read from the history."""

PART_BYTES = 64 << 10
"""Events that are kept and sent together."""

ENCODED_MAX = 1000
ENCODED_BYTES_MAX = 16 << 20
"""Bounds of the encoded events that are kept for the next watcher that wants the same (I8)."""

SHORT_EVENTS = 16
"""Events that are encoded without a step of their own, if they are no more than PART_BYTES."""

WAKES = 100
"""Watchers that are woken in one step of a fan-out, each with what it costs to send a few events;
those that are passed over count too."""

MATCHES = 1000
"""Ranges that are matched with events in one step."""

_mod = attrgetter("mod")


@dataclass(frozen=True, slots=True)
class Shape:
    """What a watcher wants to see of an event."""

    prev_kv: bool = False
    no_put: bool = False
    no_delete: bool = False


@cache
def shape_of(prev_kv: bool, no_put: bool, no_delete: bool) -> Shape:
    """The shape; the same object for the same wishes."""
    return Shape(prev_kv, no_put, no_delete)


def _nobody(watcher: Watcher) -> None:
    """Whom the watchers of a stream that ended wake."""


class Audience:
    """Who hears of all the watchers of one stream.

    The watchers of one that `ended` are taken off the index in slices (I9); until then they are
    passed over.
    """

    __slots__ = ("ended", "wake")

    def __init__(self, wake: Callable[[Watcher], None]) -> None:
        self.wake = wake
        self.ended = False

    def end(self) -> None:
        """Hear no more. Lets go of the stream, which else would wait for a collector to find it."""
        self.ended = True
        self.wake = _nobody


class Watcher:
    """One watch: a range, a cursor, and whom to wake.

    `cursor` is the next revision to deliver. A watcher that is `due` has something to come and was
    woken, or is about to be. One that is not has seen everything up to the watermark, unless
    something was published to its group since (`Hub.is_behind`). `start` keeps events below it
    away; 0: from now on.
    """

    __slots__ = ("audience", "cursor", "due", "fragment", "group", "id", "progress", "quiet",
                 "shape", "start")  # fmt: skip

    def __init__(
        self,
        watch_id: int,
        shape: Shape,
        start: int,
        audience: Audience,
        *,
        fragment: bool = False,
        progress: bool = False,
    ) -> None:
        self.id = watch_id
        self.shape = shape
        self.start = start
        self.audience = audience
        self.fragment = fragment
        self.progress = progress
        self.quiet = True
        self.due = False
        self.cursor = 0
        self.group: Group | None = None


class Group:
    """Watchers of one range.

    `recent` holds every event of the range above `complete_after`, published or not. `first_new` is
    the first revision that was noted since the last publication, and `through` the watermark of the
    last publication with events of the range; 0: there is none.
    """

    __slots__ = (
        "complete_after",
        "first_new",
        "high",
        "latest",
        "low",
        "recent",
        "shards",
        "through",
        "watchers",
    )

    def __init__(self, low: bytes, high: bytes | None, shards: list[Shard], revision: int) -> None:
        self.low = low
        self.high = high
        self.shards = shards
        self.watchers: dict[Watcher, None] = {}
        self.recent: list[Version] = []
        self.complete_after = revision
        self.first_new = 0
        self.through = 0
        self.latest: Latest | None = None

    def note(self, version: Version) -> bool:
        """An event of the range. True if it is the first since the last publication."""
        self.recent.append(version)
        if self.first_new:
            return False
        self.first_new = version.mod
        return True

    def published(self, revision: int) -> None:
        """The noted events are visible now; keep the newest of them, whole revisions."""
        self.first_new = 0
        self.through = revision
        surplus = len(self.recent) - _RECENT
        if surplus > _RECENT:
            self.complete_after = self.recent[surplus - 1].mod
            del self.recent[:surplus]


@dataclass(frozen=True, slots=True)
class EventChunk:
    """Encoded events (field 11 of WatchResponse) of whole revisions up to `last_revision`.

    `parts` are `count` events joined, in pieces of at most PART_BYTES unless one event is longer:
    what many watchers send is joined once, and a huge revision is not an object for each event.
    """

    parts: list[bytes]
    count: int
    size: int
    last_revision: int


class Latest:
    """The chunk that was encoded last in a group: its watchers mostly wait for the same one.

    `messages`: what was made of it, by watch id, for most streams give the same ids.
    """

    __slots__ = ("chunk", "messages", "shape", "start")

    def __init__(self, start: int, shape: Shape, chunk: EventChunk) -> None:
        self.start = start
        self.shape = shape
        self.chunk = chunk
        self.messages: dict[int, bytes] = {}


class _Encoding:
    """A chunk in the making, for all watchers that wait for the same: each takes a step."""

    __slots__ = ("_steps", "chunk")

    def __init__(self, steps: Steps[EventChunk]) -> None:
        self._steps = steps
        self.chunk: EventChunk | None = None

    def finish_steps(self) -> Steps[EventChunk]:
        """Go on until the chunk is there, whoever does the last step."""
        while True:
            chunk = self.chunk
            if chunk is not None:
                return chunk
            try:
                next(self._steps)
            except StopIteration as stop:
                assert stop.value is not None, "somebody else's step failed"
                self.chunk = stop.value
            else:
                yield


class _Encoded:
    """Chunks for the next watcher that wants the same: the same group, revisions and shape.

    What happened in a range between two revisions never changes, so nothing has to be taken out;
    when the bounds are reached, all goes. Most watchers of a group read one after the other.
    """

    __slots__ = ("_encodings", "_nbytes")

    def __init__(self) -> None:
        self._encodings: dict[tuple[Group, int, int, Shape], _Encoding] = {}
        self._nbytes = 0

    def get(self, memo: tuple[Group, int, int, Shape]) -> _Encoding | None:
        """The encoding, finished or not, if it is still there."""
        return self._encodings.get(memo)

    def keep(self, memo: tuple[Group, int, int, Shape], encoding: _Encoding) -> None:
        """Keep an encoding."""
        if len(self._encodings) >= ENCODED_MAX:
            self._forget()
        self._encodings[memo] = encoding

    def weigh(self, chunk: EventChunk) -> None:
        """A chunk is finished."""
        self._nbytes += chunk.size
        if self._nbytes > ENCODED_BYTES_MAX:
            self._forget()

    def _forget(self) -> None:
        self._encodings.clear()
        self._nbytes = 0


def encode_event(version: Version, shape: Shape) -> bytes:
    """One event as field 11 of WatchResponse: tag, length, message."""
    body = version.framed if version.number else b"\x08\x01" + version.framed
    if shape.prev_kv and not (version.number and version.create == version.mod):
        previous = version.previous
        while previous is not None and previous.mod == version.mod:
            previous = previous.previous
        if previous is not None and previous.number:
            body = b"%b\x1a%b" % (body, previous.framed[1:])
    return b"\x5a%b%b" % (varint(len(body)), body)


def _shows(shape: Shape, version: Version) -> bool:
    return not (shape.no_put if version.number else shape.no_delete)


class Hub:
    """All watchers of one store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._keys: BucketedDict[bytes, Group] = BucketedDict(bits=8)
        self._ranges: IntervalMap[Group] = IntervalMap()
        self._by_range: BucketedDict[Range, Group] = BucketedDict(bits=8)
        self._encoded = _Encoded()
        self._touched: list[Group] = []
        self._noted = 0
        self._unmatched: deque[Version] = deque()
        """Noted, and not matched yet with all ranges: the first of them behind `_matched`."""
        self._matched: Range | None = None
        self._published = 0
        """The watermark of the last publication."""
        self.is_marking = False
        """Whether `publish` named groups whose watchers `wake_steps` has not all marked yet."""
        self._waking: Group | None = None
        """The group whose `latest` is kept: until all that are woken together are served (I8)."""
        self._calls: list[Callable[[], None]] = []
        self.watchers = 0
        self.watchers_of: dict[Shard, int] = dict.fromkeys(store.shards, 0)
        """By shard; a watcher of a range that crosses shards counts for each of them."""
        self.slow = 0
        self.events = 0

    # -- who watches -----------------------------------------------------------------------

    def add(self, watcher: Watcher, low: bytes, high: bytes | None, *, single: bool) -> None:
        """Start a watch on [low, high) (`single`: on the key `low` alone).

        A watcher with a start revision at or below the watermark is due at once.
        """
        store = self._store
        group = self._keys.get(low) if single else self._by_range.get((low, high))
        if group is None:
            numbers = {segment.shard for segment in store.table.segments(low, high)}
            shards = [store.shards[number] for number in sorted(numbers)]
            group = Group(low, high, shards, max(store.revision, self._noted))
            if self._noted:
                group.first_new = store.revision + 1
                self._touched.append(group)
            if single:
                self._keys[low] = group
            else:
                self._by_range[(low, high)] = group
                self._ranges.add(low, high, group)
        group.watchers[watcher] = None
        watcher.group = group
        watcher.cursor = max(watcher.start, store.revision + 1)
        self.watchers += 1
        for shard in group.shards:
            self.watchers_of[shard] += 1
        if 0 < watcher.start <= store.revision:
            self._make_due(watcher, watcher.start)
            watcher.audience.wake(watcher)

    def remove(self, watcher: Watcher) -> None:
        """End a watch."""
        group = watcher.group
        if group is None:
            return
        watcher.group = None
        if watcher.due:
            watcher.due = False
            self.slow -= 1
        self.watchers -= 1
        for shard in group.shards:
            self.watchers_of[shard] -= 1
        del group.watchers[watcher]
        if not group.watchers:
            if self._keys.get(group.low) is group:
                self._keys.pop(group.low)
            else:
                self._by_range.pop((group.low, group.high))
                self._ranges.remove(group.low, group.high)

    # -- what happens ----------------------------------------------------------------------

    def note(self, versions: Sequence[Version]) -> None:
        """Match events that are linked but not visible yet, in order.

        Where very many ranges contain their keys, some is left for `match_steps` (I9).
        """
        keys, ranges, touched = self._keys, self._ranges, self._touched
        if versions:
            self._noted = versions[-1].mod
        if self._unmatched:
            self._unmatched.extend(versions)
            return
        matched = 0
        for at, version in enumerate(versions):
            key = version.key
            group = keys.get(key)
            if group is not None and group.note(version):
                touched.append(group)
            found = ranges.containing(key, MATCHES)
            for group in found:
                if group.note(version):
                    touched.append(group)
            matched += len(found)
            if matched >= MATCHES:
                if len(found) == MATCHES:
                    self._matched = (found[-1].low, found[-1].high)
                    self._unmatched.append(version)
                self._unmatched.extend(versions[at + 1 :])
                return

    @property
    def is_matching(self) -> bool:
        """Whether `match_steps` has to be run before the watermark moves."""
        return bool(self._unmatched)

    def match_steps(self) -> Steps[None]:
        """Match what `note` left.

        Ranges may come and go in between. A new one says of its own that it is behind, and that
        it has none of these events at hand.
        """
        unmatched, touched = self._unmatched, self._touched
        while unmatched:
            yield
            matched = 0
            while unmatched and matched < MATCHES:
                version = unmatched[0]
                if self._matched is None:
                    group = self._keys.get(version.key)
                    if group is not None and group.note(version):
                        touched.append(group)
                found = self._ranges.containing(version.key, MATCHES, self._matched)
                for group in found:
                    if group.note(version):
                        touched.append(group)
                matched += 1 + len(found)
                if len(found) == MATCHES:
                    self._matched = (found[-1].low, found[-1].high)
                else:
                    self._matched = None
                    unmatched.popleft()

    def publish(self) -> list[Group]:
        """The watermark has moved over everything noted: who is concerned is behind now.

        Called in the step that moves it, and before the first watcher is woken: a stream may
        report progress at any time, and must know which of its watchers have something to come
        (I4). There may be any number of them, so none is marked here (I9): `is_behind` goes by
        what their groups have noted until `wake_steps` has reached each. That is to come before
        anything else is noted. Returns the groups that it is for.
        """
        assert not self.is_marking, "one publication after the other"
        assert not self._unmatched, "what was noted is matched first"
        touched, self._touched = self._touched, []
        self._noted = 0
        self._published = self._store.revision
        self.is_marking = bool(touched)
        return touched

    def wake_steps(self, touched: list[Group]) -> Steps[None]:
        """Mark and wake the watchers that are behind; a wide fan-out in slices (I9)."""
        through = self._published
        looked = 0
        for group in touched:
            first = group.first_new
            group.published(through)
            self._waking = group
            for watcher in list(group.watchers):
                if looked == WAKES:
                    looked = 0
                    yield
                looked += 1
                if watcher.due or watcher.cursor > through or watcher.audience.ended:
                    continue
                if watcher.group is group:
                    self._make_due(watcher, max(first, watcher.cursor))
                    watcher.audience.wake(watcher)
            group.latest = None
        self._waking = None
        self.is_marking = False
        calls, self._calls = self._calls, []
        for at, call in enumerate(calls, 1):
            call()
            if at % WAKES == 0:
                yield

    def is_behind(self, watcher: Watcher) -> bool:
        """Whether something that is visible has not been handed over to the stream yet (I4)."""
        group = watcher.group
        if watcher.due or group is None:
            return watcher.due
        through = self._published if self.is_marking and group.first_new else group.through
        return watcher.cursor <= through

    def when_marked(self, call: Callable[[], None]) -> None:
        """Call once, when every watcher that is behind is due (see `is_marking`), after this
        publication or else the next one."""
        self._calls.append(call)

    def _make_due(self, watcher: Watcher, revision: int) -> None:
        watcher.due = True
        watcher.cursor = revision
        self.slow += 1

    def is_compacted(self, watcher: Watcher) -> bool:
        """Whether a due watcher has been overtaken by compaction (I4)."""
        return watcher.due and watcher.cursor < self._store.compact_revision

    def caught_up(self, watcher: Watcher, through: int) -> None:
        """Everything up to `through` was handed over to the stream."""
        watcher.cursor = through + 1
        if through >= self._store.revision:
            watcher.due = False
            self.slow -= 1

    # -- reading ---------------------------------------------------------------------------

    def latest(self, watcher: Watcher) -> Latest | None:
        """All that a due watcher has to get, if that is a short chunk; None: `read_steps` has it.

        Takes no steps, so that an event that a thousand watchers wait for costs each very little.
        """
        group = watcher.group
        assert group is not None
        start, through = watcher.cursor, self._store.revision
        shape = watcher.shape
        latest = group.latest
        if (
            latest is not None
            and latest.start == start
            and latest.chunk.last_revision == through
            and latest.shape is shape
        ):
            return latest
        if start <= group.complete_after or self.is_compacted(watcher):
            return None
        at = bisect_left(group.recent, start, key=_mod)
        end = bisect_left(group.recent, through + 1, key=_mod)
        if end - at > SHORT_EVENTS:
            return None
        events: list[bytes] = []
        size = 0
        for version in group.recent[at:end]:
            if _shows(shape, version):
                event = encode_event(version, shape)
                size += len(event)
                if size > PART_BYTES:
                    return None
                events.append(event)
        parts = [b"".join(events)] if events else []
        latest = Latest(start, shape, EventChunk(parts, len(events), size, through))
        if self._waking is group:
            group.latest = latest
        return latest

    def read_steps(self, watcher: Watcher, size_max: int) -> Steps[EventChunk]:
        """The next events of a due watcher: whole revisions, about `size_max` bytes.

        `last_revision` tells how far they reach; events of later revisions remain. The
        answer may be empty when nothing in the range happened.
        """
        group = watcher.group
        assert group is not None and watcher.due
        start, through = watcher.cursor, self._store.revision
        if start > group.complete_after:
            memo = (group, start, through, watcher.shape)
            encoding = self._encoded.get(memo)
            if encoding is None:
                at = bisect_left(group.recent, start, key=_mod)
                end = bisect_left(group.recent, through + 1, key=_mod)
                encoding = _Encoding(
                    _encode_steps(group.recent[at:end], watcher.shape, through, size_max)
                )
                self._encoded.keep(memo, encoding)
            chunk = encoding.chunk
            if chunk is None:
                chunk = yield from encoding.finish_steps()
                self._encoded.weigh(chunk)
            return chunk
        return (yield from self._read_history(group, watcher.shape, start, through, size_max))

    def _read_history(
        self, group: Group, shape: Shape, start: int, through: int, size_max: int
    ) -> Steps[EventChunk]:
        """Scan the shards' histories; a revision that is cut by a slice is read to its end."""
        low, high = group.low, group.high
        found: list[Version] = []
        revision, sub = start, 0
        size = 0
        while True:
            batch, complete = self._store.events(group.shards, revision, sub, through, SLICE)
            for version in batch:
                if low <= version.key and (high is None or version.key < high):
                    found.append(version)
                    size += len(version.framed)
            if complete:
                break
            revision, sub = batch[-1].mod, batch[-1].sub + 1
            if size >= size_max and found[0].mod < revision:
                while found and found[-1].mod == revision:
                    found.pop()
                through = revision - 1
                break
            yield
            if start < self._store.compact_revision:
                return EventChunk([], 0, 0, start - 1)
        return (yield from _encode_steps(found, shape, through, size_max))


def _encode_steps(
    versions: list[Version], shape: Shape, through: int, size_max: int
) -> Steps[EventChunk]:
    parts: list[bytes] = []
    events: list[bytes] = []
    count = size = pending = 0
    revision = 0
    for at, version in enumerate(versions):
        if version.mod != revision and size >= size_max:
            through = revision
            break
        revision = version.mod
        if _shows(shape, version):
            event = encode_event(version, shape)
            if events and pending + len(event) > PART_BYTES:
                parts.append(b"".join(events))
                events.clear()
                pending = 0
            events.append(event)
            pending += len(event)
            size += len(event)
            count += 1
        if at % SLICE == SLICE - 1:
            yield
    if events:
        parts.append(b"".join(events))
    return EventChunk(parts, count, size, through)
