"""What a store refuses. The api layer owns etcd's codes and texts for these."""

from __future__ import annotations


class StoreError(Exception):
    """A request that the state of the store does not allow."""


class Compacted(StoreError):
    """The revision has been compacted away."""


class FutureRevision(StoreError):
    """The revision does not exist yet."""


class LeaseNotFound(StoreError):
    """There is no such lease."""


class LeaseExists(StoreError):
    """The lease id is taken."""


class LeaseTTLTooLarge(StoreError):
    """The TTL is beyond etcd's maximum."""


class KeyNotFound(StoreError):
    """ignore_value or ignore_lease on a key that does not exist."""
