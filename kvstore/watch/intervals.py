"""Which of many key ranges contain a key.

A treap ordered by range start, each node knowing the highest end below it. Insert, remove and
the first match cost O(log n); each further match O(log n) at worst. Priorities are a hash that
is salted for each process: who could foretell them could choose ranges that make the tree a list,
which is slow and, since the code recurses, wrong.
"""

from __future__ import annotations

from typing import Generic, TypeVar

T = TypeVar("T")
Range = tuple[bytes, bytes | None]
"""[low, high); high None: no end."""


class _Node(Generic[T]):
    __slots__ = ("high", "left", "low", "priority", "reach", "right", "value")

    def __init__(self, low: bytes, high: bytes | None, value: T) -> None:
        self.low = low
        self.high = high
        self.value = value
        self.priority = hash((low, high))
        self.left: _Node[T] | None = None
        self.right: _Node[T] | None = None
        self.reach: bytes | None = high

    def update(self) -> None:
        """Recompute the highest end in this subtree; None stands for no end."""
        reach = self.high
        for child in (self.left, self.right):
            if reach is None:
                break
            if child is not None and (child.reach is None or child.reach > reach):
                reach = child.reach
        self.reach = reach


class IntervalMap(Generic[T]):
    """A map from ranges to values, searched by key. Each range is present at most once."""

    def __init__(self) -> None:
        self._root: _Node[T] | None = None
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def add(self, low: bytes, high: bytes | None, value: T) -> None:
        """Add a range that is not there yet."""
        node = _Node(low, high, value)
        below, above = _split(self._root, _order(low, high))
        self._root = _join(_join(below, node), above)
        self._size += 1

    def remove(self, low: bytes, high: bytes | None) -> None:
        """Remove a range that is there."""
        order = _order(low, high)
        below, rest = _split(self._root, order)
        found, above = _split(rest, (*order, b""))
        assert found is not None and found.low == low and found.high == high
        self._root = _join(_join(below, _join(found.left, found.right)), above)
        self._size -= 1

    def containing(self, key: bytes, limit: int = 1 << 30, after: Range | None = None) -> list[T]:
        """The values of ranges that contain a key, `limit` at most, by start and then by end.

        `after`: only of ranges behind this one, which need not be there any more.
        """
        found: list[T] = []
        passed = None if after is None else _order(*after)
        stack: list[_Node[T]] = []
        node = self._root
        while True:
            while node is not None and (node.reach is None or node.reach > key):
                if passed is not None and _order(node.low, node.high) <= passed:
                    node = node.right
                else:
                    if node.low <= key:
                        stack.append(node)
                    node = node.left
            if not stack:
                return found
            node = stack.pop()
            if node.high is None or key < node.high:
                found.append(node.value)
                if len(found) == limit:
                    return found
            node = node.right


_Order = tuple[bytes | bool, ...]


def _order(low: bytes, high: bytes | None) -> _Order:
    return (low, high is None, high or b"")


def _split(node: _Node[T] | None, at: _Order) -> tuple[_Node[T] | None, _Node[T] | None]:
    """Nodes below `at`, and the others."""
    if node is None:
        return None, None
    if _order(node.low, node.high) < at:
        middle, above = _split(node.right, at)
        node.right = middle
        node.update()
        return node, above
    below, middle = _split(node.left, at)
    node.left = middle
    node.update()
    return below, node


def _join(below: _Node[T] | None, above: _Node[T] | None) -> _Node[T] | None:
    if below is None:
        return above
    if above is None:
        return below
    if below.priority >= above.priority:
        below.right = _join(below.right, above)
        below.update()
        return below
    above.left = _join(below, above.left)
    above.update()
    return above
