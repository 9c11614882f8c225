"""Which shard owns a key: against a search of all prefixes, and what a table file may say."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from partitioner.table import (
    DEFAULT_SHARD,
    PartitionTable,
    PartitionTableError,
    ShardSpec,
    kubernetes,
    load,
    parse,
    prefix_end,
)
from tests.property.profiles import moderate

PIECES = [b"/", b"a", b"b", b"/a/", b"/a", b"a/b/", b"\x00", b"\xff", b"/registry/pods"]
some_keys = st.lists(st.sampled_from(PIECES), max_size=4).map(b"".join)


def owner(table: PartitionTable, key: bytes) -> str:
    """The rule of DESIGN §8, word by word: the longest prefix; a bare name as its directory."""
    found: list[tuple[int, str]] = []
    for spec in table.shards:
        for prefix in spec.prefixes:
            if key.startswith(prefix):
                found.append((len(prefix), spec.name))
            elif prefix.endswith(b"/") and len(prefix) > 1 and key == prefix[:-1]:
                found.append((len(key) - 0.5, spec.name))  # type: ignore[arg-type]
    return max(found)[1] if found else DEFAULT_SHARD


@moderate(300)
@given(
    st.lists(some_keys.filter(bool), max_size=8, unique=True),
    st.lists(some_keys, min_size=1, max_size=12),
)
def test_keys_and_segments_go_to_the_longest_prefix(
    prefixes: list[bytes], asked: list[bytes]
) -> None:
    table = PartitionTable([ShardSpec(f"s{n}", (p,)) for n, p in enumerate(prefixes)])

    def name(number: int) -> str:
        return table.shards[number].name

    near = {k for p in prefixes for k in (p, p[:-1], p + b"\x00", p[:-1] + b"\x00", p + b"x")}
    near |= {end for p in prefixes if (end := prefix_end(p)) is not None}
    points = sorted({*asked, *near})
    for key in points:
        assert name(table.shard_of(key)) == owner(table, key), key

    for low in asked:
        for high in (*asked, None):
            segments = list(table.segments(low, high))
            if high is not None and high <= low:
                assert segments == []
                continue
            assert segments[0].low == low and segments[-1].high == high
            for one, two in pairwise(segments):
                assert one.high == two.low and one.shard != two.shard
            for segment in segments:
                for key in points:
                    if key >= segment.low and (segment.high is None or key < segment.high):
                        assert table.shard_of(key) == segment.shard


@pytest.mark.parametrize(
    ("prefix", "end"),
    [(b"a", b"b"), (b"a/", b"a0"), (b"a\xff", b"b"), (b"\xff", None), (b"\xff\xff", None)],
)
def test_the_end_of_a_prefix(prefix: bytes, end: bytes | None) -> None:
    assert prefix_end(prefix) == end


def test_the_kubernetes_table_keeps_what_is_hot_apart() -> None:
    table = kubernetes()

    def name(key: bytes) -> str:
        return table.shards[table.shard_of(key)].name

    for key, shard in {
        b"/registry/pods/default/web": "pods",
        b"/registry/pods/": "pods",
        b"/registry/pods": "pods",
        b"/registry/podtemplates/x": "default",
        b"/registry/pods.metrics/x": "default",
        b"/registry/minions/node-1": "nodes",
        b"/registry/leases/kube-node-lease/node-1": "leases",
        b"/registry/events/default/x": "events",
        b"/registry/configmaps/x": "default",
        b"compact_rev_key": "default",
        b"\x00": "default",
    }.items():
        assert name(key) == shard, key
    shards = [s.shard for s in table.segments(b"/registry/", b"/registry0")]
    assert {table.shards[n].name for n in shards} == {
        "pods",
        "nodes",
        "leases",
        "events",
        "default",
    }


def test_a_table_is_read_from_toml() -> None:
    table = parse('[[shard]]\nname = "x"\nprefixes = ["/x/", "é"]\nbudget-bytes = 5\n')
    assert [spec.name for spec in table.shards] == [DEFAULT_SHARD, "x"]
    assert table.shards[1] == ShardSpec("x", (b"/x/", "é".encode()), 5)
    assert parse("").shards == [ShardSpec(DEFAULT_SHARD)]
    named = parse('[[shard]]\nname = "default"\nbudget-bytes = 7\n')
    assert named.shards == [ShardSpec(DEFAULT_SHARD, (), 7)]


BAD = {
    "[[shard": "not TOML",
    "x = 1": "unknown key 'x'",
    "shard = 1": "two brackets",
    "shard = [1]": "two brackets",
    'shard = ["name"]': "two brackets",
    '[shard]\nname = "x"': "two brackets",
    "[[shard]]": "no name",
    '[[shard]]\nname = ""': "no name",
    "[[shard]]\nname = 3": "no name",
    '[[shard]]\nname = "a\\nb"': "no name",
    '[[shard]]\nname = "x"\nsize = 1': "unknown key 'size'",
    '[[shard]]\nname = "x"\nprefixes = "/x/"': "not a list of strings",
    '[[shard]]\nname = "x"\nprefixes = [1]': "not a list of strings",
    '[[shard]]\nname = "x"\nprefixes = [""]': "an empty prefix",
    '[[shard]]\nname = "x"\nbudget-bytes = -1': "whole number",
    '[[shard]]\nname = "x"\nbudget-bytes = true': "whole number",
    '[[shard]]\nname = "x"\nbudget-bytes = "1"': "whole number",
    '[[shard]]\nname = "x"\n[[shard]]\nname = "x"': "not unique",
    '[[shard]]\nname = "x"\nprefixes = ["a"]\n[[shard]]\nname = "y"\nprefixes = ["a"]': "in two",
    '[[shard]]\nname = "x"\nprefixes = ["a", "a"]': "in two",
}


@pytest.mark.parametrize("text", BAD)
def test_a_table_that_cannot_be_used_says_why(text: str) -> None:
    with pytest.raises(PartitionTableError, match=BAD[text]):
        parse(text)


def test_a_file_that_is_not_text_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "table.toml"
    path.write_bytes(b'[[shard]]\nname = "\xff"')
    with pytest.raises(PartitionTableError, match="UTF-8"):
        load(path)
    with pytest.raises(OSError):
        load(tmp_path / "none.toml")
    path.write_bytes(b'[[shard]]\nname = "x"\nprefixes = ["/x/"]')
    assert load(path).shards[1].prefixes == (b"/x/",)
