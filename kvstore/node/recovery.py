"""Recovery: state = snapshot + journal suffix (I5)."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator

from google.protobuf.message import DecodeError

from journal.contract import Corrupt, Journal, Opened, SnapshotInfo, Trimmed
from kvstore.mvcc.version import Version
from kvstore.mvcc.wire import varint
from kvstore.node.replay import entry_steps
from kvstore.node.state import State
from kvstore.pb import record_pb2
from partitioner.table import PartitionTable

log = logging.getLogger(__name__)

SNAPSHOT_FORMAT = 1

OVERTAKEN_TRIES = 3
"""How often recovery begins anew because another node trimmed what it was reading."""


def snapshot_name(sequence: int) -> str:
    """The name of the snapshot that covers the journal up to `sequence`."""
    return f"snapshot-{sequence:020d}"


def snapshot_sequence(name: str) -> int | None:
    """The sequence in a snapshot's name; None if it is no name of ours."""
    prefix, _, digits = name.partition("-")
    return int(digits) if prefix == "snapshot" and digits.isdigit() else None


def _nobody_asks(done: int, total: int) -> None:
    """Where nobody wants to know how far it is."""


class Recovery:
    """Rebuilds the state of a journal."""

    def __init__(
        self,
        journal: Journal,
        table: PartitionTable,
        now: Callable[[], float],
        on_load: Callable[[int, int], None] = _nobody_asks,
    ) -> None:
        """`on_load` is called with (bytes done, bytes in total) while a snapshot loads, often.

        What is read of the journal behind it, the journal says itself (`Journal.on_progress`).
        """
        self._journal = journal
        self._table = table
        self._now = now
        self._on_load = on_load
        self.snapshot_sequence = 0
        self.snapshot_bytes = 0
        self.tail = 0
        """The sequence that the state stands at."""
        self.damaged: list[str] = []

    async def run(self, opened: Opened) -> State:
        """The state as of the journal's tail. Raises Corrupt when it cannot be rebuilt."""
        started = time.monotonic()
        for tries_left in range(OVERTAKEN_TRIES, -1, -1):
            try:
                state, replayed = await self._rebuild(opened)
                break
            except (Trimmed, KeyError):
                # The leader took a snapshot meanwhile, and let go of what this one relied on.
                if not tries_left:
                    raise
                log.warning("the journal was trimmed while it was read; starting again")
        log.info(
            "recovered",
            extra={
                "fields": {
                    "revision": state.store.revision,
                    "snapshot-sequence": self.snapshot_sequence,
                    "replayed-entries": replayed,
                    "took-seconds": round(time.monotonic() - started, 3),
                }
            },
        )
        return state

    async def _rebuild(self, opened: Opened) -> tuple[State, int]:
        self.snapshot_sequence = self.tail = 0
        state = await self._newest_snapshot(opened)
        replayed = 0
        async for entries in self._journal.read(self.snapshot_sequence):
            for entry in entries:
                for _ in entry_steps(state, entry, self._now()):
                    pass
                self.tail = entry.sequence
                replayed += 1
            await asyncio.sleep(0)
        return state, replayed

    async def _newest_snapshot(self, opened: Opened) -> State:
        """Load the newest sound snapshot that the kept journal continues."""
        damage: Corrupt | None = None
        found = await self._journal.snapshots.list()
        # Others may have gone on since the journal was opened: asked after the list.
        tail = max(opened.tail, await self._journal.tail())
        for info in reversed(found):
            sequence = snapshot_sequence(info.name)
            if sequence is None:
                continue
            if sequence > tail:
                raise Corrupt(
                    info.name,
                    0,
                    f"the snapshot is beyond the journal's last entry, {tail}, so entries "
                    f"that were acknowledged are gone",
                    "Restore the journal from a copy; to go on without what it lost, remove the "
                    "snapshot",
                )
            if sequence + 1 < opened.oldest:
                log.warning("snapshot %s does not meet the journal, left alone", info.name)
                continue
            try:
                state = await self._load(info)
            except Corrupt as error:
                log.error("snapshot %s is damaged, trying an older one: %s", info.name, error)
                damage = error
                self.damaged.append(info.name)
                continue
            self.snapshot_sequence = self.tail = sequence
            self.snapshot_bytes = info.size
            return state
        if opened.oldest > 1:
            raise damage or Corrupt(
                "snapshots",
                0,
                f"the journal begins at sequence {opened.oldest} and no snapshot covers what "
                f"came before",
                "Restore the snapshots of this journal from a copy",
            )
        return State(self._table)

    async def _load(self, info: SnapshotInfo) -> State:
        name = info.name
        state = State(self._table)
        done = 0
        header: record_pb2.SnapshotHeader | None = None
        heads: list[dict[bytes, Version]] = [{} for _ in state.store.shards]
        async for chunk in self._journal.snapshots.read(name):
            done += len(chunk)
            # The size has what frames the chunks too, so this ends a little short of it.
            self._on_load(min(done, info.size), info.size)
            if header is None:
                header = _parse_header(name, chunk)
                continue
            part = parse_chunk(name, chunk)
            for lease in part.leases:
                state.lessor.grant(lease.id, lease.ttl_s, self._now())
            _load_versions(state, heads, part)
            await asyncio.sleep(0)
        if header is None:
            raise Corrupt(name, 0, "the snapshot has no header", "Remove it; an older one serves")
        for shard, newest in zip(state.store.shards, heads, strict=True):
            shard.adopt(newest.values())
        for newest in heads:
            for version in newest.values():
                state.lessor.move(version.key, 0, version.lease)
        state.store.revision = header.revision
        state.store.compact_revision = header.compact_revision
        state.term = header.term
        state.cluster_id = header.cluster_id
        state.member_id = header.member_id
        for alarm in header.alarms:
            state.alarms.add((alarm.member_id, alarm.type))
        return state


def _parse_header(name: str, chunk: bytes) -> record_pb2.SnapshotHeader:
    try:
        header = record_pb2.SnapshotHeader.FromString(chunk)
    except DecodeError:
        raise Corrupt(name, 0, "the snapshot's header is none", "An older one serves") from None
    if header.format != SNAPSHOT_FORMAT:
        raise Corrupt(
            name, 0, f"snapshot format {header.format} is unknown", "Use the version that wrote it"
        )
    return header


def parse_chunk(name: str, chunk: bytes) -> record_pb2.SnapshotChunk:
    """A chunk after the header. Raises Corrupt."""
    try:
        part = record_pb2.SnapshotChunk.FromString(chunk)
    except DecodeError:
        raise Corrupt(name, 0, "a chunk of the snapshot is none", "An older one serves") from None
    if part.positions and len(part.positions) != len(part.versions):
        raise Corrupt(name, 0, "versions without positions", "An older snapshot serves")
    return part


def _load_versions(
    state: State, heads: list[dict[bytes, Version]], part: record_pb2.SnapshotChunk
) -> None:
    positions: Iterator[int] = iter(part.positions or [0] * len(part.versions))
    table, shards = state.store.table, state.store.shards
    for kv, sub in zip(part.versions, positions, strict=True):
        key = kv.key
        number = table.shard_of(key)
        previous = heads[number].get(key)
        if previous is not None:
            # All versions of a key share the object.
            key = previous.key
        body = kv.SerializeToString()
        version = Version(
            key,
            kv.create_revision,
            kv.mod_revision,
            sub,
            kv.version,
            kv.lease,
            b"\x12%b%b" % (varint(len(body)), body),
            previous,
        )
        heads[number][key] = version
        shards[number].restore(version)
