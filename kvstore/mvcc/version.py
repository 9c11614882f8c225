"""One version of one key: the object that index, history and journal share."""

from __future__ import annotations

from kvstore.mvcc.wire import decode_key_value, encode_key_value, read_key_value


class Version:
    """What one write made of one key.

    Immutable to its readers. Versions of a key form a chain from the newest to the oldest kept
    one (`previous`). `number` is etcd's `version`: 1 at creation, 0 for a deletion.

    `framed` holds the wire bytes (`kvstore.mvcc.wire`); compaction empties it when no reader,
    watcher or hash can want the version any more, and drops the object later.
    """

    __slots__ = ("create", "framed", "key", "lease", "mod", "number", "previous", "sub")

    def __init__(
        self,
        key: bytes,
        create: int,
        mod: int,
        sub: int,
        number: int,
        lease: int,
        framed: bytes,
        previous: Version | None,
    ) -> None:
        self.key = key
        self.create = create
        self.mod = mod
        self.sub = sub
        self.number = number
        self.lease = lease
        self.framed = framed
        self.previous = previous

    def __repr__(self) -> str:
        return f"Version({self.key!r} mod={self.mod}.{self.sub} number={self.number})"

    @property
    def value(self) -> bytes:
        """The value, decoded; for the few paths that look into it."""
        return decode_key_value(self.framed).value

    def without_value(self) -> bytes:
        """The wire bytes of a keys_only answer."""
        return encode_key_value(self.key, self.create, self.mod, self.number, b"", 0)


def put_version(
    key: bytes, value: bytes, lease: int, mod: int, sub: int, previous: Version | None
) -> Version:
    """The version that a put makes; `previous` is what the put finds, deletions included."""
    create, number = mod, 1
    if previous is not None:
        # All versions of a key share the object.
        key = previous.key
        if previous.number:
            create, number = previous.create, previous.number + 1
    framed = encode_key_value(key, create, mod, number, value, lease)
    return Version(key, create, mod, sub, number, lease, framed, previous)


def delete_version(mod: int, sub: int, previous: Version) -> Version:
    """The version that a deletion makes of a live key."""
    key = previous.key
    framed = encode_key_value(key, 0, mod, 0, b"", 0)
    return Version(key, 0, mod, sub, 0, 0, framed, previous)


def version_from_wire(framed: bytes, sub: int) -> Version:
    """The version that a journal holds as these bytes, by itself. Raises DecodeError."""
    kv = read_key_value(framed)
    return Version(kv[0], kv[1], kv[2], sub, kv[3], kv[4], framed, None)


def at_or_below(newest: Version | None, revision: int) -> Version | None:
    """The version of a chain that a read at `revision` finds; None: no live key then."""
    while newest is not None and newest.mod > revision:
        newest = newest.previous
    return newest if newest is not None and newest.number else None
