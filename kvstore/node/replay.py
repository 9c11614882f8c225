"""Replay: entries of the journal become state, at recovery and on a follower (I5)."""

from __future__ import annotations

from collections.abc import Sequence

from google.protobuf.message import DecodeError

from journal.contract import Corrupt, Entry
from kvstore.mvcc.store import SLICE, Steps
from kvstore.mvcc.version import Version
from kvstore.node.records import Change, read_batch
from kvstore.node.state import State
from kvstore.watch.hub import Hub


def _nothing(versions: Sequence[Version]) -> None:
    """Where nobody watches."""


def entry_steps(state: State, entry: Entry, now: float, hub: Hub | None = None) -> Steps[None]:
    """Apply one entry and publish it whole (R2), to the watchers too if there are any (I4).

    Raises Corrupt for an entry that cannot stand at this place (I3).
    """
    store = state.store
    note = hub.note if hub is not None else _nothing
    revision = store.revision
    linked: list[Version] = []
    for change in _changes(entry):
        at = change.revision
        if at:
            if at != revision + 1:
                raise not_ours(entry, f"revision {at} follows {revision}")
            if change.record is not None and revision > store.revision:
                # An operation that is repeated here is evaluated on what came before it (R13).
                note(linked)
                linked = []
                yield from _publish_steps(state, revision, hub)
            revision = at
        if change.record is not None:
            yield from state.replay_steps(change.record, now, note)
        for sub, framed in enumerate(change.versions):
            try:
                linked.append(state.link_wire(framed, sub))
            except DecodeError:
                raise not_ours(entry, "it holds what is no version") from None
            if len(linked) >= SLICE:
                note(linked)
                linked = []
                yield
    note(linked)
    if revision > store.revision:
        yield from _publish_steps(state, revision, hub)


def _publish_steps(state: State, revision: int, hub: Hub | None) -> Steps[None]:
    if hub is not None and hub.is_matching:
        yield from hub.match_steps()
    state.store.publish(revision)
    if hub is not None:
        yield from hub.wake_steps(hub.publish())


def _changes(entry: Entry) -> list[Change]:
    try:
        return read_batch(entry.payload)
    except DecodeError:
        raise not_ours(entry, "it holds no records") from None


def not_ours(entry: Entry, what: str) -> Corrupt:
    """An entry that is intact, and yet none that could stand there (I3, I10)."""
    return Corrupt(
        "journal",
        entry.sequence,
        f"the entry at this sequence is not the one that belongs there: {what}",
        "Restore the journal from a copy",
    )
