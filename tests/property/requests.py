"""Random requests over few keys, in several shards and across them.

Plain `random`, seeded by hypothesis: histories have to be long before they are interesting.
"""

from __future__ import annotations

from random import Random
from typing import Any

from kvstore.pb import rpc_pb2 as pb

KEYS = [b"a", b"a/", b"a/1", b"a/2", b"a/3", b"a/4", b"a/5", b"a0", b"b/1", b"b/2", b"b/3", b"c",
        b"zz"]  # fmt: skip
ENDS = [b"\x00", b"a/2", b"a/4", b"a0", b"b/2", b"b0", b"c\x00", b"zzz"]
LEASES = [11, 12, 13]
VALUES = [b"", b"x", b"y", b"value " * 5]


class Requests:
    """Draws requests; `revision` and `compacted` say which revisions are worth asking for."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.revision = 1
        self.compacted = -1

    def chance(self, percent: int) -> bool:
        return self.random.random() * 100 < percent

    def past(self) -> int:
        """A revision, mostly one that can be read."""
        low = max(self.compacted, 1)
        return self.random.randint(low - self.chance(10), self.revision + self.chance(10))

    def key(self) -> bytes:
        return self.random.choice(KEYS)

    def end(self, percent: int) -> bytes:
        return self.random.choice(ENDS) if self.chance(percent) else b""

    def put(self) -> pb.PutRequest:
        ignore_value, ignore_lease = self.chance(10), self.chance(10)
        return pb.PutRequest(
            key=self.key(),
            value=b"" if ignore_value else self.random.choice(VALUES),
            lease=0 if ignore_lease or self.chance(70) else self.random.choice(LEASES),
            prev_kv=self.chance(50),
            ignore_value=ignore_value,
            ignore_lease=ignore_lease,
        )

    def delete(self) -> pb.DeleteRangeRequest:
        return pb.DeleteRangeRequest(
            key=self.key(), range_end=self.end(40), prev_kv=self.chance(50)
        )

    def range(self) -> pb.RangeRequest:
        whole = self.chance(40)
        request = pb.RangeRequest(
            key=b"a" if whole else self.key(),
            range_end=b"\x00" if whole else self.end(70),
            revision=self.past() if self.chance(60) else 0,
            limit=self.random.choice([0, 0, 1, 2, 4, 100]),
            keys_only=self.chance(20),
            count_only=self.chance(20),
        )
        if self.chance(40):
            request.sort_order = self.random.choice([0, 1, 2])  # type: ignore[assignment]
            request.sort_target = self.random.choice([0, 1, 2, 3, 4])  # type: ignore[assignment]
        if self.chance(20):
            for name in ("min_mod", "max_mod", "min_create", "max_create"):
                setattr(request, f"{name}_revision", self.past() if self.chance(30) else 0)
        return request

    def compare(self) -> pb.Compare:
        target = self.random.choice([0, 1, 2, 3, 4])
        compare = pb.Compare(
            target=target,  # type: ignore[arg-type]
            result=self.random.choice([0, 1, 2, 3]),  # type: ignore[arg-type]
            key=self.key(),
            range_end=self.end(20),
        )
        name = ["version", "create_revision", "mod_revision", "value", "lease"][target]
        if self.chance(15):
            name = self.random.choice(["", "version", "create_revision", "mod_revision"])
        if name == "value":
            compare.value = self.random.choice(VALUES)
        elif name:
            setattr(compare, name, self.random.choice([0, 1, 2, 11, self.past()]))
        return compare

    def op(self, depth: int) -> pb.RequestOp:
        kind = self.random.randrange(10)
        if kind < 4:
            return pb.RequestOp(request_put=self.put())
        if kind < 6:
            return pb.RequestOp(request_delete_range=self.delete())
        if kind < 9 or depth > 2:
            return pb.RequestOp(request_range=self.range())
        return pb.RequestOp(request_txn=self.txn(depth + 1))

    def txn(self, depth: int = 0) -> pb.TxnRequest:
        return pb.TxnRequest(
            compare=[self.compare() for _ in range(self.random.randrange(3))],
            success=[self.op(depth) for _ in range(self.random.randrange(5))],
            failure=[self.op(depth) for _ in range(self.random.randrange(3))],
        )

    def grant(self) -> pb.LeaseGrantRequest:
        return pb.LeaseGrantRequest(ID=self.random.choice(LEASES), TTL=60)

    def revoke(self) -> pb.LeaseRevokeRequest:
        return pb.LeaseRevokeRequest(ID=self.random.choice(LEASES))

    def compact(self) -> pb.CompactionRequest:
        return pb.CompactionRequest(revision=self.past(), physical=self.chance(50))

    def hash(self) -> pb.HashKVRequest:
        return pb.HashKVRequest(revision=self.past() if self.chance(70) else 0)

    def any(self) -> Any:
        """Something to do."""
        weights = {
            self.put: 30,
            self.delete: 8,
            self.txn: 12,
            self.range: 25,
            self.hash: 8,
            self.compact: 6,
            self.grant: 4,
            self.revoke: 3,
        }
        return self.random.choices(list(weights), list(weights.values()))[0]()
