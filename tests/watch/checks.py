"""The watch guarantees (I4), each as a check of what one watch received against the event log.

The names are those that etcd's own robustness tests use: filter, ordered, unique, atomic,
resumable, reliable, bookmarkable, prev_kv, is_create. A session is one created watch until it is
cancelled or its stream ends; a watcher that reconnects makes several sessions, each with the start
revision that follows from the last.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from kvstore.pb import kv_pb2, rpc_pb2
from tests.history import Log, in_range

OPEN, CANCELLED, COMPACTED, CUT = "open", "cancelled", "compacted", "cut"


@dataclass
class Session:
    """One watch from its creation to its end.

    `responses` holds all that came for it, in order; a manual progress answer (watch_id -1)
    belongs to every session that is open on its stream.
    """

    request: rpc_pb2.WatchCreateRequest
    created_revision: int = 0
    responses: list[rpc_pb2.WatchResponse] = field(default_factory=list)
    ended: str = OPEN
    compact_revision: int = 0

    @property
    def start(self) -> int:
        """The first revision that is due."""
        return self.request.start_revision or self.created_revision + 1

    @property
    def resume(self) -> int:
        """The start revision with which a client would go on."""
        after = self.start
        for response in self.responses:
            if response.events:
                last = response.events[-1].kv.mod_revision
                after = max(after, last if response.fragment else last + 1)
            else:
                after = max(after, response.header.revision + 1)
        return after

    def by_revision(self) -> dict[int, list[kv_pb2.Event]]:
        """The events received, by revision; without one that was cut within its fragments."""
        found: dict[int, list[kv_pb2.Event]] = {}
        for response in self.responses:
            for event in response.events:
                found.setdefault(event.kv.mod_revision, []).append(event)
        if self.responses and self.responses[-1].fragment:
            found.pop(self.responses[-1].events[-1].kv.mod_revision)
        return found

    @property
    def delivered(self) -> int:
        """Events received."""
        return sum(len(response.events) for response in self.responses)

    def __str__(self) -> str:
        text = str(self.request).replace("\n", " ")
        return f"watch ({text}) created at {self.created_revision}, {self.ended}"


Excuse = Callable[[kv_pb2.Event], bool]


def check(
    session: Session, log: Log, complete_to: int = 0, no_prev_kv_excuse: Excuse | None = None
) -> list[str]:
    """What is wrong with a session; each text starts with the name of the guarantee.

    `complete_to`: the revision up to which everything must have come by now, 0 if unknown.
    `no_prev_kv_excuse` says for which events an absent prev_kv is forgiven (a fault of etcd).
    """
    request = session.request
    expected = list(log.watched(request.key, request.range_end, session.start, request.filters))
    faults = [
        *_order(session),
        *_filter(session),
        *_atomic(session, expected),
        *_complete(session, expected, complete_to),
        *_bookmarks(session, expected),
        *_contents(session, log, no_prev_kv_excuse),
    ]
    if session.ended == COMPACTED:
        delivered = session.start - 1
        for response in session.responses:
            if response.events:
                delivered = max(delivered, response.events[-1].kv.mod_revision)
        if session.compact_revision <= delivered:
            faults.append(
                f"compacted: cancelled for compaction at {session.compact_revision}, but "
                f"revision {delivered} had been delivered"
            )
    return [f"{fault}\n  of {session}" for fault in faults]


def _events(session: Session) -> list[kv_pb2.Event]:
    return [event for response in session.responses for event in response.events]


def _name(event: kv_pb2.Event) -> tuple[int, bytes]:
    return event.kv.mod_revision, event.kv.key


def _order(session: Session) -> list[str]:
    faults = []
    last = 0
    seen: set[tuple[int, bytes]] = set()
    for event in _events(session):
        if event.kv.mod_revision < last:
            faults.append(f"ordered: {event.kv.mod_revision} came after {last}")
        last = max(last, event.kv.mod_revision)
        if _name(event) in seen:
            faults.append(f"unique: {_name(event)} came twice")
        seen.add(_name(event))
    return faults


def _filter(session: Session) -> list[str]:
    faults = []
    request = session.request
    unwanted = {
        kv_pb2.Event.PUT if name == rpc_pb2.WatchCreateRequest.NOPUT else kv_pb2.Event.DELETE
        for name in request.filters
    }
    for event in _events(session):
        if not in_range(event.kv.key, request.key, request.range_end):
            faults.append(f"filter: {event.kv.key!r} is not in the range")
        if event.type in unwanted:
            faults.append(f"filter: {_name(event)} is of an unwanted type")
        if event.kv.mod_revision < session.start:
            faults.append(f"filter: {_name(event)} is before the start, {session.start}")
    return faults


def _atomic(session: Session, expected: list[kv_pb2.Event]) -> list[str]:
    """A revision comes in one response, or in fragments that say so if they were asked for."""
    faults = []
    due: dict[int, int] = {}
    for event in expected:
        due[event.kv.mod_revision] = due.get(event.kv.mod_revision, 0) + 1
    carried: dict[int, int] = {}
    in_fragments = False
    for response in session.responses:
        if response.fragment and not session.request.fragment:
            faults.append("atomic: a fragment that nobody asked for")
        if not response.events:
            if in_fragments and response.watch_id != -1:
                faults.append("atomic: progress between fragments")
            continue
        for event in response.events:
            carried[event.kv.mod_revision] = carried.get(event.kv.mod_revision, 0) + 1
        last = response.events[-1].kv.mod_revision
        if response.header.revision < last:
            faults.append(f"atomic: header {response.header.revision} is older than {last}")
        if response.fragment:
            in_fragments = True
            continue
        in_fragments = False
        for revision, count in carried.items():
            if count < due.get(revision, 0):
                faults.append(f"atomic: {count} of {due[revision]} events of {revision} came")
        carried.clear()
    if carried and session.ended in (OPEN, CANCELLED):
        faults.append("atomic: the last fragment never came")
    return faults


def _complete(session: Session, expected: list[kv_pb2.Event], complete_to: int) -> list[str]:
    got = [_name(event) for event in _events(session)]
    upto = max([complete_to, *(revision for revision, _ in got)])
    if session.ended == CUT and not complete_to and session.responses:
        # A stream that was cut within fragments ends in the middle of a revision.
        last = session.responses[-1]
        if last.fragment:
            upto = last.events[-1].kv.mod_revision - 1
    missing = [_name(event) for event in expected if event.kv.mod_revision <= upto]
    have = set(got)
    missing = [name for name in missing if name not in have]
    if not missing:
        wanted = [_name(event) for event in expected if _name(event) in have]
        known = set(wanted)
        once = list(dict.fromkeys(name for name in got if name in known))
        if once != wanted:
            return ["ordered: events are not in the order of revisions and operations"]
        return []
    first = min(have, default=None)
    at_start = first is None or missing[0] < first
    kind = "resumable" if at_start and session.request.start_revision else "reliable"
    return [f"{kind}: {len(missing)} events up to {upto} are missing, the first is {missing[0]}"]


def _bookmarks(session: Session, expected: list[kv_pb2.Event]) -> list[str]:
    faults = []
    count = newest = bookmark = 0
    for response in session.responses:
        if response.events:
            if response.events[0].kv.mod_revision <= bookmark:
                faults.append(
                    f"bookmarkable: {_name(response.events[0])} came after progress {bookmark}"
                )
            count += len(response.events)
            newest = max(newest, response.events[-1].kv.mod_revision)
            continue
        revision = response.header.revision
        if revision < bookmark:
            faults.append(f"bookmarkable: progress went back from {bookmark} to {revision}")
        if revision < newest:
            faults.append(f"bookmarkable: progress {revision} after an event of {newest}")
        bookmark = max(bookmark, revision)
        due = sum(event.kv.mod_revision <= revision for event in expected)
        if count < due:
            faults.append(f"bookmarkable: progress {revision} after {count} of {due} events")
    return faults


def _contents(session: Session, log: Log, excuse: Excuse | None) -> list[str]:
    faults = []
    for event in _events(session):
        if event.type == kv_pb2.Event.PUT:
            is_create = event.kv.create_revision == event.kv.mod_revision
            if is_create != (event.kv.version == 1):
                faults.append(f"is_create: {_name(event)} has version {event.kv.version}")
        real = next((e for e in log.at(event.kv.mod_revision) if e.kv.key == event.kv.key), None)
        if real is None:
            faults.append(f"reliable: {_name(event)} never happened")
            continue
        if (event.type, event.kv) != (real.type, real.kv):
            faults.append(f"reliable: {_name(event)} is not what happened:\n{event}\n{real}")
        if not session.request.prev_kv:
            if event.HasField("prev_kv"):
                faults.append(f"prev_kv: nobody asked for it: {_name(event)}")
        elif event.HasField("prev_kv") != real.HasField("prev_kv"):
            if event.HasField("prev_kv") or excuse is None or not excuse(event):
                faults.append(f"prev_kv: present or absent wrongly: {_name(event)}")
        elif event.prev_kv != real.prev_kv:
            faults.append(f"prev_kv: not the version before: {event}\n{real.prev_kv}")
    return faults
