"""The partition table: which shard a key belongs to (DESIGN §8).

A table maps key prefixes to named shards. A key belongs to the shard with the longest matching
prefix; keys that match none belong to the default shard. A prefix that ends in `/` also owns
the bare name without it, so `/registry/pods` and `/registry/pods/` route alike while
`/registry/podtemplates/` does not.

The prefixes cut the key space into intervals, each owned by one shard. Point lookups and
ranges are answered from the sorted interval starts: O(log n) in the number of prefixes.
"""

from __future__ import annotations

import tomllib
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

DEFAULT_SHARD = "default"


class PartitionTableError(ValueError):
    """A partition table that cannot be used; the text says why."""


def prefix_end(prefix: bytes) -> bytes | None:
    """The smallest key above every key with this prefix; None when there is none."""
    stripped = prefix.rstrip(b"\xff")
    return stripped[:-1] + bytes([stripped[-1] + 1]) if stripped else None


@dataclass(frozen=True, slots=True)
class ShardSpec:
    """One line of the table.

    `budget_bytes` limits what this shard may hold besides the process-wide quota; 0: no limit
    of its own.
    """

    name: str
    prefixes: tuple[bytes, ...] = ()
    budget_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of a range that lies in one shard: keys in [low, high), high None: no end."""

    shard: int
    low: bytes
    high: bytes | None


@dataclass(slots=True)
class PartitionTable:
    """Routes keys and ranges to shard numbers (indexes into `shards`)."""

    shards: Sequence[ShardSpec]
    _starts: list[bytes] = field(init=False, repr=False)
    _owners: list[int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        names = [spec.name for spec in self.shards]
        if len(set(names)) != len(names):
            raise PartitionTableError(f"shard names are not unique: {', '.join(names)}")
        if DEFAULT_SHARD not in names:
            self.shards = [ShardSpec(DEFAULT_SHARD), *self.shards]
        owner_of: dict[bytes, int] = {}
        for number, spec in enumerate(self.shards):
            for prefix in spec.prefixes:
                if not prefix:
                    raise PartitionTableError(f"shard {spec.name}: an empty prefix")
                if prefix in owner_of:
                    raise PartitionTableError(f"prefix {prefix!r} is in two shards")
                owner_of[prefix] = number
        self._cut(owner_of)

    def _cut(self, owner_of: Mapping[bytes, int]) -> None:
        """Cut the key space at every place where the owner can change."""
        default = next(n for n, spec in enumerate(self.shards) if spec.name == DEFAULT_SHARD)
        edges = {b""}
        for prefix in owner_of:
            end = prefix_end(prefix)
            edges.add(prefix)
            if end is not None:
                edges.add(end)
            if prefix.endswith(b"/") and len(prefix) > 1:
                edges.update((prefix[:-1], prefix[:-1] + b"\x00"))
        starts: list[bytes] = []
        owners: list[int] = []
        for edge in sorted(edges):
            owner = self._longest_match(edge, owner_of, default)
            if not owners or owners[-1] != owner:
                starts.append(edge)
                owners.append(owner)
        self._starts, self._owners = starts, owners

    @staticmethod
    def _longest_match(key: bytes, owner_of: Mapping[bytes, int], default: int) -> int:
        for length in range(len(key), 0, -1):
            owner = owner_of.get(key[:length])
            if owner is not None:
                return owner
            if length == len(key):
                owner = owner_of.get(key + b"/")
                if owner is not None:
                    return owner
        return default

    def shard_of(self, key: bytes) -> int:
        """The number of the shard that owns a key."""
        return self._owners[bisect_right(self._starts, key) - 1]

    def segments(self, low: bytes, high: bytes | None) -> Iterator[Segment]:
        """Cut [low, high) into parts of one shard each, in key order."""
        if high is not None and high <= low:
            return
        starts, owners = self._starts, self._owners
        at = bisect_right(starts, low) - 1
        while True:
            end = starts[at + 1] if at + 1 < len(starts) else None
            if end is None or (high is not None and high <= end):
                yield Segment(owners[at], low, high)
                return
            yield Segment(owners[at], low, end)
            low = end
            at += 1


def parse(text: str) -> PartitionTable:
    """Read a table from TOML: `[[shard]]` with `name`, `prefixes`, `budget-bytes`."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise PartitionTableError(f"not TOML: {error}") from None
    unknown = sorted(set(document) - {"shard"})
    if unknown:
        raise PartitionTableError(f"unknown key {unknown[0]!r}; a table holds [[shard]] entries")
    entries = document.get("shard", [])
    if not isinstance(entries, list):
        raise PartitionTableError("write [[shard]], with two brackets")
    return PartitionTable([_parse_shard(entry) for entry in entries])


def _parse_shard(entry: object) -> ShardSpec:
    if not isinstance(entry, dict):
        raise PartitionTableError("write [[shard]], with two brackets")
    unknown = sorted(set(entry) - {"name", "prefixes", "budget-bytes"})
    if unknown:
        raise PartitionTableError(f"unknown key {unknown[0]!r} in a shard")
    name = entry.get("name")
    if not isinstance(name, str) or not name or not name.isprintable():
        raise PartitionTableError("a shard has no name")
    prefixes = entry.get("prefixes", [])
    if not isinstance(prefixes, list) or not all(isinstance(p, str) for p in prefixes):
        raise PartitionTableError(f"shard {name}: prefixes is not a list of strings")
    budget = entry.get("budget-bytes", 0)
    if not isinstance(budget, int) or isinstance(budget, bool) or budget < 0:
        raise PartitionTableError(f"shard {name}: budget-bytes is not a whole number from 0")
    return ShardSpec(name, tuple(p.encode() for p in prefixes), budget)


def load(path: Path) -> PartitionTable:
    """Read a table from a file. Raises PartitionTableError, OSError."""
    try:
        return parse(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise PartitionTableError("not UTF-8 text") from None


def kubernetes() -> PartitionTable:
    """The built-in table: what is hot in a Kubernetes cluster has a shard of its own."""
    return parse(resources.files("partitioner").joinpath("kubernetes.toml").read_text("utf-8"))
