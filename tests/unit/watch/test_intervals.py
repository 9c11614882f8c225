"""The range index against a plain list, and against who would make it a list (I8)."""

from __future__ import annotations

from bisect import bisect_left
from random import Random
from zlib import crc32

from hypothesis import given
from hypothesis import strategies as st

from kvstore.watch.intervals import IntervalMap, Range, _Node
from tests.property.profiles import moderate


def check(map_: IntervalMap[int]) -> None:
    """Every node knows the highest end below it, the order and the priorities hold."""

    def walk(node: _Node[int] | None) -> list[_Node[int]]:
        if node is None:
            return []
        left, right = walk(node.left), walk(node.right)
        below = [*left, node, *right]
        assert all(n.priority <= node.priority for n in below)
        highs = [n.high for n in below]
        finite = [high for high in highs if high is not None]
        assert node.reach == (None if None in highs else max(finite))
        return below

    nodes = walk(map_._root)
    order = [(n.low, n.high is None, n.high or b"") for n in nodes]
    assert order == sorted(order)
    assert len(nodes) == len(map_)


@moderate(150)
@given(st.integers(0, 1 << 32), st.integers(1, 120))
def test_ranges_are_found_by_the_keys_in_them(seed: int, length: int) -> None:
    random = Random(seed)
    keys = [b"", b"\x00", b"a", b"a\x00", b"b", b"c", b"cc", b"d", b"\xff"]
    map_: IntervalMap[int] = IntervalMap()
    model: dict[Range, int] = {}
    for value in range(length):
        if random.random() < 0.6 or not model:
            low, high = random.choice(keys), random.choice([None, *keys])
            if (low, high) not in model:
                map_.add(low, high, value)
                model[(low, high)] = value
        else:
            gone = random.choice(list(model))
            map_.remove(*gone)
            del model[gone]
        check(map_)
        for key in keys:
            expected = [
                (low, high is None, high or b"", v)
                for (low, high), v in model.items()
                if low <= key and (high is None or key < high)
            ]
            values = [value for *_, value in sorted(expected)]
            assert map_.containing(key) == values
            limit = random.randrange(1, 5)
            assert map_.containing(key, limit) == values[:limit]
            low, high = random.choice(keys), random.choice([None, *keys])
            after = (low, high is None, high or b"")
            rest = [value for *order, value in sorted(expected) if tuple(order) > after]
            assert map_.containing(key, limit, (low, high)) == rest[:limit]


def test_nobody_can_choose_ranges_that_make_it_deep() -> None:
    """Priorities that a client can compute would let it: here in the order of a checksum."""
    random = Random(1)
    drawn = sorted(random.randbytes(8) for _ in range(60_000))
    # The longest rising run of checksums, by patience sorting.
    tops: list[int] = []
    piles: list[int] = []
    before: list[int] = []
    for at, low in enumerate(drawn):
        priority = crc32(low + b"\x00" + b"\xff\xff")
        pile = bisect_left(tops, priority)
        tops[pile : pile + 1] = [priority]
        piles[pile : pile + 1] = [at]
        before.append(piles[pile - 1] if pile else -1)
    chosen, at = [], piles[-1]
    while at >= 0:
        chosen.append(drawn[at])
        at = before[at]
    assert len(chosen) > 400
    map_: IntervalMap[int] = IntervalMap()
    for at, low in enumerate(chosen):
        map_.add(low, None, at)

    def depth(node: _Node[int] | None) -> int:
        return 0 if node is None else 1 + max(depth(node.left), depth(node.right))

    assert depth(map_._root) < 100
