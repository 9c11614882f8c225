"""The store's structures against plain ones: history, index, buckets, pins."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.mvcc import history as history_module
from kvstore.mvcc.buckets import BucketedDict
from kvstore.mvcc.errors import Compacted
from kvstore.mvcc.history import CHUNK, History
from kvstore.mvcc.index import KeyIndex
from kvstore.mvcc.pins import Pins
from kvstore.mvcc.version import Version, delete_version, put_version
from tests.property.profiles import moderate


def version(mod: int, sub: int) -> Version:
    return put_version(b"k", b"v", 0, mod, sub, None)


# -- history ---------------------------------------------------------------------------------


@moderate(150)
@given(st.integers(0, 1 << 32), st.integers(1, 120))
def test_history_reads_what_was_not_buried(seed: int, length: int) -> None:
    """Appends and burials in any order, reads from anywhere, in chunks of four."""
    before, history_module.CHUNK = history_module.CHUNK, 4
    try:
        random = Random(seed)
        history, kept, revision = History(), [], 1
        for _ in range(length):
            kind = random.random()
            if kind < 0.5:
                revision += 1
                for sub in range(random.randint(1, 3)):
                    added = version(revision, sub)
                    history.append(added)
                    kept.append(added)
            elif kept:
                # Mostly old ones, as compaction does.
                at = min(int(random.expovariate(0.2)), len(kept) - 1)
                history.bury(kept.pop(at))
            start = (random.randint(0, revision + 1), random.randint(0, 2))
            size = random.randint(1, 10)
            expected = [v for v in kept if (v.mod, v.sub) >= start]
            assert history.read(*start, size) == expected[:size]
            assert len(history) == len(kept)
            stored = sum(map(len, history._chunks))
            # Only a part of each chunk may be dead, except where it fills up.
            assert stored <= 2 * len(kept) + 2 * 4
            after = sum(v.mod > start[0] for v in kept)
            assert history.after(start[0]) + 4 >= after
        if kept:
            assert history.read(0, 0, 10_000) == kept
    finally:
        history_module.CHUNK = before


def test_a_chunk_that_died_while_it_was_filled_is_dropped_when_it_is_full() -> None:
    """A hot key, compacted to its last version every time a chunk is nearly full (I8)."""
    history = History()
    for revision in range(40 * CHUNK):
        history.append(version(revision, 0))
        if revision % CHUNK == CHUNK - 2:
            for old in history.read(revision - CHUNK + 2, 0, CHUNK - 2):
                history.bury(old)
    assert len(history) == 2 * 40
    assert sum(map(len, history._chunks)) <= 2 * CHUNK


def test_buried_versions_give_up_their_bytes_and_their_past() -> None:
    history = History()
    first = version(2, 0)
    second = put_version(b"k", b"w", 0, 3, 0, first)
    history.append(first)
    history.append(second)
    history.bury(first)
    assert (first.framed, first.previous) == (b"", None)
    assert history.last() == (3, 0)
    assert History().last() == (0, 0)
    assert History().after(5) == 0


# -- index -----------------------------------------------------------------------------------


@moderate(150)
@given(st.integers(0, 1 << 32), st.integers(1, 100))
def test_the_index_counts_and_slices_as_a_sorted_dict(seed: int, length: int) -> None:
    random = Random(seed)
    index: KeyIndex = KeyIndex()
    model: dict[bytes, Version] = {}
    for revision in range(2, length + 2):
        key = random.choice([b"", b"\x00", b"\xff\xff"]) + b"%d" % random.randrange(12)
        newest = model.get(key)
        kind = random.random()
        if kind < 0.5 or newest is None:
            model[key] = put_version(key, b"", 0, revision, 0, newest)
            index.link(model[key])
        elif newest.number:
            model[key] = delete_version(revision, 0, newest)
            index.link(model[key])
        else:
            stale = delete_version(1, 0, newest)
            assert not index.drop(stale), "not the newest"
            assert index.drop(newest)
            del model[key]
        low = random.choice([b"", b"1", b"5", b"\x00", b"\xff"])
        high = random.choice([None, b"", b"1", b"5\x00", b"\xff\xff9"])
        inside = sorted(k for k in model if k >= low and (high is None or k < high))
        assert index.kept(low, high) == len(inside)
        assert index.live(low, high) == sum(model[k].number > 0 for k in inside)
        size = random.randint(1, 6)
        nodes = index.slice(low, high, size) if high is None or low < high else []
        assert [(n.key, n.head) for n in nodes] == [(k, model[k]) for k in inside[:size]]
        assert index.get(key) is model.get(key)
        assert len(index) == sum(v.number > 0 for v in model.values())
    loaded: KeyIndex = KeyIndex()
    assert {v.key for v in loaded.load(model.values())} == {
        v.key for v in model.values() if v.number
    }
    assert len(loaded) == len(index)
    assert [n.key for n in loaded.slice(b"", None, 100)] == sorted(model)


# -- buckets ---------------------------------------------------------------------------------


@moderate(100)
@given(st.lists(st.tuples(st.sampled_from("spg"), st.integers(0, 20), st.integers()), max_size=60))
def test_buckets_are_a_dict(changes: list[tuple[str, int, int]]) -> None:
    buckets: BucketedDict[int, int] = BucketedDict(bits=2)
    model: dict[int, int] = {}
    for kind, key, value in changes:
        if kind == "s":
            buckets[key] = model[key] = value
        elif kind == "p":
            assert buckets.pop(key) == model.pop(key, None)
        assert buckets.get(key) == model.get(key)
        assert (key in buckets) == (key in model)
        assert len(buckets) == len(model)
    assert sorted(buckets.values()) == sorted(model.values())
    merged: dict[int, int] = {}
    for bucket in buckets.buckets():
        assert not merged.keys() & bucket.keys()
        merged |= bucket
    assert merged == model


# -- pins ------------------------------------------------------------------------------------


def test_the_floor_is_the_lowest_pin_that_has_not_expired() -> None:
    pins = Pins(deadline_s=60.0)
    old = pins.take(5, 0.0)
    young = pins.take(7, 50.0)
    endless = pins.take(9, 0.0)
    endless.taken_at = float("inf")
    assert pins.floor(10, 60.0) == 5
    assert pins.floor(4, 60.0) == 4
    assert pins.floor(10, 61.0) == 7
    with pytest.raises(Compacted):
        old.check()
    young.check()
    pins.release(young)
    pins.release(old)
    assert pins.floor(10, 1e9) == 9
    pins.release(endless)
    assert pins.floor(10, 1e9) == 10


def test_a_pin_above_the_target_does_not_expire() -> None:
    """It holds nothing back, so nothing is gained by taking it away."""
    pins = Pins(deadline_s=60.0)
    pin = pins.take(20, 0.0)
    assert pins.floor(10, 1000.0) == 10
    pin.check()
