"""Snapshots, taken while serving (R9).

A snapshot holds the state as of one journal position. It is written from the histories in
slices, at a pinned revision, then read back whole, and only then is the journal before it
trimmed. The one before it is kept too, and the journal from there on, so that damage to the
newest can be survived.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Iterator

from journal.contract import Corrupt, Journal, JournalError
from kvstore.mvcc.store import Store
from kvstore.mvcc.wire import varint
from kvstore.node.recovery import (
    SNAPSHOT_FORMAT,
    parse_chunk,
    snapshot_name,
    snapshot_sequence,
)
from kvstore.node.state import State
from kvstore.pb import record_pb2

log = logging.getLogger(__name__)

CHUNK_VERSIONS = 250
CHUNK_BYTES = 1 << 20
KEEP = 2


class Snapshotter:
    """Takes one snapshot at a time."""

    def __init__(
        self,
        journal: Journal,
        state: State,
        now: Callable[[], float],
        damaged: Collection[str] = (),
    ) -> None:
        """`damaged`: snapshots that recovery could not read; the next sound one replaces them."""
        self._journal = journal
        self._state = state
        self._now = now
        self._damaged = set(damaged)
        self.running = False
        self.taken = 0
        self.failed = 0
        self.observe_taken: Callable[[float], None] = lambda seconds: None
        """Told how long a snapshot took, its verification included."""

    async def take(self, sequence: int) -> int:
        """Snapshot the state of this moment, which is the journal's up to `sequence`.

        Returns the bytes it took; 0 if it failed, which is logged and costs nothing but a longer
        journal. Called at a moment when everything up to `sequence`, and no more, is applied.
        """
        assert not self.running
        self.running = True
        started = time.monotonic()
        name = snapshot_name(sequence)
        store = self._state.store
        header = self._header(sequence)
        capture = self._state.lessor.capture()
        pin = store.pins.take(min(header.revision, max(header.compact_revision, 0)), self._now())
        pin.taken_at = float("inf")
        try:
            async with self._journal.snapshots.writer(name) as writer:
                await writer.write(header.SerializeToString())
                for part in capture.parts():
                    if part:
                        await writer.write(_lease_chunk(part))
                    await asyncio.sleep(0)
                for chunk in _version_chunks(store, header.revision):
                    if chunk:
                        await writer.write(chunk)
                    else:
                        await asyncio.sleep(0)
            size = await self._verify(name)
            self._damaged.discard(name)
            await self._drop_older(sequence)
        except (JournalError, OSError) as error:
            self.failed += 1
            log.error("snapshot %s failed: %s", name, error)
            return 0
        finally:
            self._state.lessor.end_capture()
            store.pins.release(pin)
            self.running = False
        self.taken += 1
        took = time.monotonic() - started
        self.observe_taken(took)
        log.info(
            "saved snapshot",
            extra={
                "fields": {
                    "sequence": sequence,
                    "revision": header.revision,
                    "bytes": size,
                    "took-seconds": round(took, 3),
                }
            },
        )
        return size

    def _header(self, sequence: int) -> record_pb2.SnapshotHeader:
        state = self._state
        return record_pb2.SnapshotHeader(
            format=SNAPSHOT_FORMAT,
            sequence=sequence,
            revision=state.store.revision,
            compact_revision=state.store.compact_revision,
            term=state.term,
            cluster_id=state.cluster_id,
            member_id=state.member_id,
            alarms=[
                record_pb2.Alarm(member_id=member, type=kind, active=True)
                for member, kind in sorted(state.alarms)
            ],
        )

    async def _verify(self, name: str) -> int:
        """Read a snapshot back to its end. Raises Corrupt. Returns its length in bytes."""
        # Until it is known to be sound nothing may rely on it.
        self._damaged.add(name)
        size = 0
        async for chunk in self._journal.snapshots.read(name):
            if size:
                parse_chunk(name, chunk)
            size += len(chunk)
            await asyncio.sleep(0)
        if not size:
            raise Corrupt(name, 0, "the snapshot reads back empty", "It will be taken again")
        return size

    async def _drop_older(self, sequence: int) -> None:
        snapshots = self._journal.snapshots
        kept: list[int] = []
        for info in reversed(await snapshots.list()):
            at = snapshot_sequence(info.name)
            if at is None or at > sequence:
                continue
            if info.name not in self._damaged and len(kept) < KEEP:
                kept.append(at)
            else:
                await snapshots.delete(info.name)
                self._damaged.discard(info.name)
        await self._journal.trim((kept[-1] if len(kept) == KEEP else 0) + 1)


def _lease_chunk(part: list[tuple[int, int]]) -> bytes:
    leases = [record_pb2.LeaseGrant(id=lease_id, ttl_s=ttl_s) for lease_id, ttl_s in part]
    return record_pb2.SnapshotChunk(leases=leases).SerializeToString()


def _version_chunks(store: Store, revision: int) -> Iterator[bytes]:
    """Chunks of all kept versions up to `revision`; empty ones are places to let others run.

    The stored wire bytes are field 2 of SnapshotChunk as they are.
    """
    at, sub = 0, 0
    while True:
        batch, complete = store.events(store.shards, at, sub, revision, CHUNK_VERSIONS)
        start = 0
        size = 0
        for end, version in enumerate(batch, 1):
            size += len(version.framed)
            if size >= CHUNK_BYTES or end == len(batch):
                # Compaction goes on while earlier chunks are written: what it buried since the
                # batch was read was below the pinned revision, and nobody's to read.
                part = [version for version in batch[start:end] if version.framed]
                positions = b""
                if any(v.sub for v in part):
                    packed = b"".join([varint(v.sub) for v in part])
                    positions = b"\x0a%b%b" % (varint(len(packed)), packed)
                yield positions + b"".join([v.framed for v in part])
                start, size = end, 0
        if complete:
            return
        at, sub = batch[-1].mod, batch[-1].sub + 1
        yield b""
