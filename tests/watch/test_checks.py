"""Negative controls: each watch guarantee, broken on purpose, is reported by its name."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kvstore.pb import kv_pb2, rpc_pb2
from tests import history
from tests.history import Log, Op
from tests.watch import checks
from tests.watch.checks import Session

pytestmark = pytest.mark.once

KEYS = [b"/registry/pods/%d" % n for n in range(4)] + [b"/registry/minions/a", b"zz"]


def _log() -> Log:
    """A log with puts, deletes, a range delete, and transactions over several keys."""
    log = Log()

    def write(method: str, request: object) -> None:
        events, _ = history.execute(Op(0, method, request, 0), log.state, log.last + 1)
        assert events
        log.append(events)

    for n in range(40):
        key = KEYS[n % len(KEYS)]
        write("Put", rpc_pb2.PutRequest(key=key, value=b"v%d" % n))
        if n % 5 == 4:
            txn = rpc_pb2.TxnRequest()
            for other in (b"/registry/pods/1", b"zz", b"/registry/pods/0"):
                txn.success.add().request_put.CopyFrom(
                    rpc_pb2.PutRequest(key=other, value=b"t%d" % n)
                )
            write("Txn", txn)
        if n % 10 == 9:
            write("DeleteRange", rpc_pb2.DeleteRangeRequest(key=b"/registry/", range_end=b"z"))
    return log


def _session(log: Log, **fields: object) -> Session:
    """A faultless session: one response a revision, progress after every tenth."""
    request = rpc_pb2.WatchCreateRequest(
        key=b"/registry/", range_end=b"zzz", start_revision=5, prev_kv=True
    )
    for name, value in fields.items():
        setattr(request, name, value)
    session = Session(request, created_revision=20)
    by_revision: dict[int, list[kv_pb2.Event]] = {}
    for event in log.watched(request.key, request.range_end, session.start, request.filters):
        copy = kv_pb2.Event()
        copy.CopyFrom(event)
        if not request.prev_kv:
            copy.ClearField("prev_kv")
        by_revision.setdefault(event.kv.mod_revision, []).append(copy)
    for revision, events in by_revision.items():
        answer = rpc_pb2.WatchResponse(events=events)
        answer.header.revision = revision
        session.responses.append(answer)
        if revision % 10 == 0:
            bookmark = rpc_pb2.WatchResponse(watch_id=-1)
            bookmark.header.revision = revision
            session.responses.append(bookmark)
    return session


def _with_events(session: Session, least: int = 1) -> list[rpc_pb2.WatchResponse]:
    return [answer for answer in session.responses if len(answer.events) >= least]


def _foreign_key(session: Session) -> None:
    _with_events(session)[3].events[0].kv.key = b"!outside"


def _swapped(session: Session) -> None:
    session.responses[3], session.responses[4] = session.responses[4], session.responses[3]


def _swapped_within(session: Session) -> None:
    answer = _with_events(session, 3)[0]
    events = list(answer.events)
    del answer.events[:]
    answer.events.extend([events[1], events[0], *events[2:]])


def _twice(session: Session) -> None:
    session.responses.insert(4, session.responses[3])


def _split(session: Session) -> None:
    answer = _with_events(session, 2)[0]
    rest = rpc_pb2.WatchResponse(header=answer.header, events=answer.events[1:])
    del answer.events[1:]
    session.responses.insert(session.responses.index(answer) + 1, rest)


def _flagged_fragment(session: Session) -> None:
    _with_events(session)[2].fragment = True


def _first_lost(session: Session) -> None:
    session.responses.remove(_with_events(session)[0])


def _middle_lost(session: Session) -> None:
    session.responses.remove(_with_events(session)[5])


def _part_lost(session: Session) -> None:
    del _with_events(session, 2)[0].events[0]


def _last_lost(session: Session) -> None:
    session.responses.remove(_with_events(session)[-1])


def _early_bookmark(session: Session) -> None:
    first = next(answer for answer in session.responses if not answer.events)
    first.header.revision += 1


def _bookmark_back(session: Session) -> None:
    [a for a in session.responses if not a.events][-1].header.revision = 12


def _no_prev_kv(session: Session) -> None:
    event = next(e for a in session.responses for e in a.events if e.HasField("prev_kv"))
    event.ClearField("prev_kv")


def _wrong_prev_kv(session: Session) -> None:
    event = next(e for a in session.responses for e in a.events if e.HasField("prev_kv"))
    event.prev_kv.value = b"older"


def _update_as_create(session: Session) -> None:
    """The trap that kubebrain fell into."""
    event = next(e for a in session.responses for e in a.events if e.kv.version > 1)
    event.kv.create_revision = event.kv.mod_revision


def _wrong_value(session: Session) -> None:
    _with_events(session)[2].events[0].kv.value = b"never written"


def _old_header(session: Session) -> None:
    _with_events(session)[2].header.revision -= 1


def _spurious_compaction(session: Session) -> None:
    session.ended = checks.COMPACTED
    session.compact_revision = 6


@pytest.mark.parametrize(
    ("damage", "name"),
    [
        (_foreign_key, "filter"),
        (_swapped, "ordered"),
        (_swapped_within, "ordered"),
        (_twice, "unique"),
        (_split, "atomic"),
        (_flagged_fragment, "atomic"),
        (_old_header, "atomic"),
        (_first_lost, "resumable"),
        (_middle_lost, "reliable"),
        (_part_lost, "reliable"),
        (_last_lost, "reliable"),
        (_wrong_value, "reliable"),
        (_early_bookmark, "bookmarkable"),
        (_bookmark_back, "bookmarkable"),
        (_no_prev_kv, "prev_kv"),
        (_wrong_prev_kv, "prev_kv"),
        (_update_as_create, "is_create"),
        (_spurious_compaction, "compacted"),
    ],
)
def test_a_broken_guarantee_is_named(damage: Callable[[Session], None], name: str) -> None:
    log = _log()
    session = _session(log)
    assert checks.check(session, log, log.last) == []
    damage(session)
    faults = checks.check(session, log, log.last)
    assert any(fault.startswith(f"{name}:") for fault in faults), faults


def test_an_unwanted_type_is_a_filter_fault() -> None:
    log = _log()
    session = _session(log)
    session.request.filters.append(rpc_pb2.WatchCreateRequest.NODELETE)
    assert any(fault.startswith("filter:") for fault in checks.check(session, log))


def test_unwanted_prev_kv_is_a_fault() -> None:
    log = _log()
    session = _session(log)
    session.request.prev_kv = False
    assert any(fault.startswith("prev_kv:") for fault in checks.check(session, log))


def test_fragments_that_were_asked_for_are_fine() -> None:
    log = _log()
    session = _session(log, fragment=True)
    _split(session)
    answer = _with_events(session)[0]
    for answer, after in zip(session.responses, session.responses[1:], strict=False):
        both = [a.events[0].kv.mod_revision for a in (answer, after) if a.events]
        answer.fragment = len(both) == 2 and both[0] == both[1]
    assert any(answer.fragment for answer in session.responses)
    assert checks.check(session, log, log.last) == []


def test_where_a_session_resumes() -> None:
    log = _log()
    session = _session(log)
    assert session.resume == log.last + 1
    session.responses.clear()
    assert session.resume == 5
    session.request.start_revision = 0
    assert session.resume == 21
