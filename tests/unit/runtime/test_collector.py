"""R11: the collector never walks the data, and still frees young cycles."""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Iterator

import pytest

from kvstore.runtime.collector import MIDDLE, OLD, YOUNG, CollectorPolicy

incremental = pytest.mark.skipif(
    sys.version_info >= (3, 14), reason="Python's collector is incremental from 3.14 on"
)


class Node:
    """An object that the collector tracks."""

    other: Node | None = None


@pytest.fixture
def policy() -> Iterator[CollectorPolicy]:
    gc.collect()
    policy = CollectorPolicy()
    before = gc.get_threshold()
    policy.start()
    yield policy
    policy.stop()
    assert gc.get_threshold() == before
    assert gc.get_freeze_count() == 0


@incremental
def test_what_one_step_can_walk_does_not_grow_with_the_data(policy: CollectorPolicy) -> None:
    policy.settle()
    held, in_sight = [], []
    for n in range(40 * YOUNG * MIDDLE):
        held.append(Node())
        if n % YOUNG == 0:
            in_sight.append(sum(len(gc.get_objects(generation)) for generation in range(3)))
    assert policy.freezes >= 3
    # The factor covers what the test itself makes, and the rule by which CPython puts a
    # collection of the old generation off until a quarter of it is new.
    assert max(in_sight) < 2 * YOUNG * (MIDDLE + 1) * (OLD + 1)
    assert gc.get_freeze_count() > len(held) // 2


@incremental
def test_a_young_cycle_is_freed(policy: CollectorPolicy) -> None:
    policy.settle()
    a, b = Node(), Node()
    a.other, b.other = b, a
    gone = weakref.ref(a)
    del a, b
    # More than would fit without a collection of the generation that the cycle is in.
    held = [Node() for _ in range(3 * YOUNG * MIDDLE)]
    assert gone() is None
    assert held


def test_frozen_objects_go_with_their_last_reference(policy: CollectorPolicy) -> None:
    kept = Node()
    gone = weakref.ref(kept)
    policy.settle()
    assert gc.get_freeze_count() > 0
    del kept
    assert gone() is None


def test_steps_are_timed(policy: CollectorPolicy) -> None:
    policy.settle()
    assert policy.pause_s.count > 0
    assert policy.longest_s > 0
