"""HashKV: one number for the whole visible history, the same as etcd's.

etcd runs CRC-32C over its bucket name and over each (revision key, value) pair of its backend
in revision order, leaving out what a compaction has dropped or is about to drop
(server/storage/mvcc/hash.go). Nothing of that depends on how far physical compaction got
(R8), so neither does this.
"""

from __future__ import annotations

import struct

from google_crc32c import extend

from kvstore.mvcc.store import SLICE, Steps, Store
from kvstore.mvcc.version import Version, at_or_below
from kvstore.mvcc.wire import field_bytes, payload_start

_BUCKET = b"key"
_revision_key = struct.Struct(">Q1sQ").pack


def hash_steps(store: Store, revision: int, compact_revision: int, now: float) -> Steps[int]:
    """The hash of all that was written up to `revision`, the store compacted at the other one.

    Both are checked by the caller and taken at one moment. Pins the revision while it runs.
    """
    crc: int = extend(0, _BUCKET)
    if revision <= 0:
        return crc
    pin = store.pins.take(min(revision, max(compact_revision, 0)), now)
    try:
        anything = yield from store.count_steps(b"", None, revision, now)
        survives_at = revision if anything else compact_revision
        at, sub = 0, 0
        while True:
            batch, complete = store.events(store.shards, at, sub, revision, SLICE)
            parts: list[bytes] = []
            for version in batch:
                if version.mod > compact_revision or _survives(store, version, survives_at):
                    if version.mod == compact_revision and not version.number:
                        continue
                    parts.append(_revision_key(version.mod, b"_", version.sub))
                    if version.number:
                        parts.append(version.framed[payload_start(version.framed) :])
                    else:
                        parts.append(b"t" + field_bytes(b"\x0a", version.key))
            crc = extend(crc, b"".join(parts))
            if complete:
                return crc
            at, sub = batch[-1].mod, batch[-1].sub + 1
            yield
            pin.check()
    finally:
        store.pins.release(pin)


def _survives(store: Store, version: Version, revision: int) -> bool:
    """Whether a version at or below the compacted revision is the one that `revision` sees."""
    newest = store.shard_of(version.key).index.get(version.key)
    return at_or_below(newest, revision) is version
