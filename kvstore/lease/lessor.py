"""Leases and the keys attached to them.

Sans-I/O: time is an argument, in seconds of a clock that never jumps. A lease ends only by a
journaled revoke (R1), so this class never expires anything by itself: it names the leases
whose time is up. A keep-alive is not journaled; after a restart, or a change of leader, every lease
has its full TTL again, as in etcd.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from math import ceil, inf

from sortedcontainers import SortedList

from kvstore.mvcc.buckets import BucketedDict
from kvstore.mvcc.errors import LeaseExists, LeaseNotFound, LeaseTTLTooLarge

MAX_TTL_S = 9_000_000_000
MIN_TTL_S = 2
"""etcd's floor: one and a half election timeouts of its default, rounded up."""

NAME_AGAIN_S = 1.0
"""After this long without a revoke a lease whose time is up is named again."""

LOOKS_PER_STEP = 100
"""Leases that `Lessor.due` looks at in one step (I9): what is named is revoked in the same one."""

_SMALL_SET = 4096


class LeaseKeys:
    """The keys of one lease: a set that grows without long moves (R11)."""

    __slots__ = ("_few", "_many")

    def __init__(self) -> None:
        self._few: set[bytes] = set()
        self._many: BucketedDict[bytes, None] | None = None

    def __len__(self) -> int:
        return len(self._few) + (len(self._many) if self._many is not None else 0)

    def add(self, key: bytes) -> None:
        """Attach a key."""
        if self._many is not None and key in self._many:
            return
        if len(self._few) < _SMALL_SET or key in self._few:
            self._few.add(key)
        else:
            if self._many is None:
                self._many = BucketedDict(bits=8)
            self._many[key] = None

    def discard(self, key: bytes) -> None:
        """Detach a key."""
        self._few.discard(key)
        if self._many is not None:
            self._many.pop(key)

    def parts(self) -> Iterator[list[bytes]]:
        """The keys, in no order, in parts short enough for one step."""
        yield list(self._few)
        if self._many is not None:
            for bucket in self._many.buckets():
                yield list(bucket)


class _Renewal:
    """When all leases of a lessor were given their full time again, last."""

    __slots__ = ("at",)

    def __init__(self) -> None:
        self.at = -inf


class Lease:
    """One lease. Times are in seconds of the caller's clock.

    `look_at` is when `Lessor.due` will look at it: its expiry, or later if it was named already, or
    earlier if all leases were renewed since.
    """

    __slots__ = ("_ends_at", "_renewal", "id", "keys", "look_at", "ttl_s")

    def __init__(self, lease_id: int, ttl_s: int, now: float, renewal: _Renewal) -> None:
        self.id = lease_id
        self.ttl_s = ttl_s
        self._renewal = renewal
        self._ends_at = now + ttl_s
        self.look_at = self._ends_at
        self.keys = LeaseKeys()

    @property
    def expires_at(self) -> float:
        """When its time is up: its TTL after its grant or renewal, or after that of all leases."""
        return max(self._ends_at, self._renewal.at + self.ttl_s)

    def renew(self, now: float) -> None:
        """Start its time anew."""
        self._ends_at = now + self.ttl_s

    def remaining_s(self, now: float) -> float:
        """Seconds until the lease is due."""
        return self.expires_at - now


class Lessor:
    """All leases of one store."""

    def __init__(self) -> None:
        self._leases: BucketedDict[int, Lease] = BucketedDict(bits=8)
        self._due: SortedList = SortedList()  # (look_at, id) of every lease, once
        self._renewal = _Renewal()
        self._capture: LeaseCapture | None = None
        self.granted = 0
        self.revoked = 0
        self.renewed = 0
        self.on_grant: Callable[[int], None] = lambda ttl_s: None
        """Told the TTL of each lease that is granted."""

    def __len__(self) -> int:
        return len(self._leases)

    def get(self, lease_id: int) -> Lease | None:
        """The lease, or None."""
        return self._leases.get(lease_id)

    def __contains__(self, lease_id: int) -> bool:
        return lease_id in self._leases

    def check_grant(self, lease_id: int, ttl_s: int) -> None:
        """Raise LeaseTTLTooLarge, LeaseNotFound or LeaseExists if a grant would fail."""
        if lease_id == 0:
            raise LeaseNotFound
        if ttl_s > MAX_TTL_S:
            raise LeaseTTLTooLarge
        if lease_id in self._leases:
            raise LeaseExists

    def grant(self, lease_id: int, ttl_s: int, now: float) -> Lease:
        """Add a lease; `ttl_s` is at least MIN_TTL_S already."""
        former = self._leases.get(lease_id)
        if former is not None:
            self._due.remove((former.look_at, lease_id))
        lease = Lease(lease_id, ttl_s, now, self._renewal)
        self._leases[lease_id] = lease
        self._due.add((lease.look_at, lease_id))
        self.granted += 1
        self.on_grant(ttl_s)
        if self._capture is not None:
            self._capture.granted(lease_id)
        return lease

    def revoke(self, lease_id: int) -> Lease | None:
        """Remove a lease; its keys are deleted by the caller, at one revision."""
        lease = self._leases.pop(lease_id)
        if lease is not None:
            self.revoked += 1
            self._due.remove((lease.look_at, lease_id))
            if self._capture is not None:
                self._capture.revoked(lease)
        return lease

    def renew(self, lease_id: int, now: float) -> int:
        """Start a lease's time anew. Returns its TTL. Raises LeaseNotFound."""
        lease = self._leases.get(lease_id)
        if lease is None or lease.expires_at <= now:
            raise LeaseNotFound
        lease.renew(now)
        self._due.remove((lease.look_at, lease_id))
        self._look_at(lease, lease.expires_at)
        self.renewed += 1
        return lease.ttl_s

    def renew_all(self, now: float) -> None:
        """Give every lease its full TTL again: after a restart, or a change of leader.

        Costs the same for a million of them (I9): only the moment is noted, from which every lease
        counts that was not renewed since. `due` finds each once where it stood in the order, too
        early and never too late, for its expiry can only have moved away.
        """
        self._renewal.at = now

    def _look_at(self, lease: Lease, when: float) -> None:
        """Put a lease that was taken out of the order back into it."""
        lease.look_at = when
        self._due.add((when, lease.id))

    def move(self, key: bytes, old: int, new: int) -> None:
        """A key's version with lease `old` was replaced by one with lease `new`; 0: none."""
        if old == new:
            return
        if old:
            lease = self._leases.get(old)
            if lease is not None:
                lease.keys.discard(key)
        if new:
            lease = self._leases.get(new)
            if lease is not None:
                lease.keys.add(key)

    def due(self, now: float, limit: int) -> Iterator[list[int]]:
        """Up to `limit` leases whose time is up, in parts short enough for one step.

        Named again after `NAME_AGAIN_S` if still there. O(log n) for each, however many were
        renewed one by one: each lease stands in the order once. Those that were renewed with all
        others are put to where they belong on the way, so a part may be empty.
        """
        left = limit
        over = False
        while not over:
            found: list[int] = []
            for _ in range(LOOKS_PER_STEP):
                if left <= 0 or not self._due or self._due[0][0] > now:
                    over = True
                    break
                lease = self._leases.get(self._due.pop(0)[1])
                assert lease is not None
                expires_at = lease.expires_at
                if expires_at > now:
                    self._look_at(lease, expires_at)
                else:
                    self._look_at(lease, now + NAME_AGAIN_S)
                    found.append(lease.id)
                    left -= 1
            yield found

    def parts(self) -> Iterator[list[Lease]]:
        """All leases, in no order, in parts short enough for one step."""
        for bucket in self._leases.buckets():
            yield list(bucket.values())

    # -- snapshots -------------------------------------------------------------------------

    def capture(self) -> LeaseCapture:
        """Begin to list the leases as they are now, while they go on changing (R9)."""
        assert self._capture is None, "one snapshot at a time"
        self._capture = LeaseCapture(self._leases.buckets())
        return self._capture

    def end_capture(self) -> None:
        """Stop tracking changes for `capture`."""
        self._capture = None


class LeaseCapture:
    """The leases as of one moment, read in parts while grants and revokes go on."""

    def __init__(self, buckets: Iterable[dict[int, Lease]]) -> None:
        self._buckets = buckets
        self._new: set[int] = set()
        self._gone: list[tuple[int, int]] = []
        self._listed: set[int] = set()

    def granted(self, lease_id: int) -> None:
        """A lease was granted after the moment."""
        self._new.add(lease_id)

    def revoked(self, lease: Lease) -> None:
        """A lease was revoked after the moment."""
        if lease.id in self._new:
            self._new.discard(lease.id)
        else:
            self._gone.append((lease.id, lease.ttl_s))

    def parts(self) -> Iterator[list[tuple[int, int]]]:
        """(id, TTL in seconds) of each lease of the moment, once, in parts."""
        for bucket in self._buckets:
            part = [(x.id, x.ttl_s) for x in bucket.values() if x.id not in self._new]
            self._listed.update(lease_id for lease_id, _ in part)
            yield part
        gone, self._gone = self._gone, []
        yield [pair for pair in gone if pair[0] not in self._listed]


def effective_ttl_s(ttl_s: int) -> int:
    """The TTL that a request for `ttl_s` seconds gets."""
    return max(ttl_s, MIN_TTL_S)


def whole_seconds(remaining_s: float) -> int:
    """Seconds as LeaseTimeToLive reports them: rounded towards zero."""
    return ceil(remaining_s) if remaining_s < 0 else int(remaining_s)
