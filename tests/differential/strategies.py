"""Random requests over a small key space that lies in every shard of the default table.

Requests are messages with placeholders for revisions and leases (see `tests.oracle.pair`), so that
a sequence keeps its meaning wherever the servers' history stands.

Each generator takes its choices from a `Source`. Two exist: hypothesis, which shrinks what it finds
but spends much time on choosing, and a seeded `random.Random`, which spreads evenly and is quick.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from google.protobuf.message import Message
from hypothesis import strategies as st

from kvstore.pb import rpc_pb2 as rpc
from tests.oracle.pair import BASE, COMPACTED, CURRENT, SLOT

T = TypeVar("T")


class Source(Protocol):
    """Where choices come from. The first of several is the simplest."""

    def integer(self, low: int, high: int) -> int: ...

    def choice(self, of: Sequence[T]) -> T: ...

    def shuffled(self, of: Sequence[T]) -> list[T]: ...


class Seeded:
    """Choices by a seeded generator."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def integer(self, low: int, high: int) -> int:
        return self._random.randint(low, high)

    def choice(self, of: Sequence[T]) -> T:
        return self._random.choice(of)

    def shuffled(self, of: Sequence[T]) -> list[T]:
        return self._random.sample(of, len(of))


class Drawn:
    """Choices by hypothesis."""

    def __init__(self, draw: st.DrawFn) -> None:
        self._draw = draw

    def integer(self, low: int, high: int) -> int:
        return self._draw(st.integers(low, high))

    def choice(self, of: Sequence[T]) -> T:
        return of[self._draw(st.integers(0, len(of) - 1))]

    def shuffled(self, of: Sequence[T]) -> list[T]:
        return self._draw(st.permutations(of))


def drawn(generator: Callable[[Source], T]) -> st.SearchStrategy[T]:
    """A generator as a strategy of hypothesis."""

    @st.composite
    def strategy(draw: st.DrawFn) -> T:
        return generator(Drawn(draw))

    return strategy()


KEYS = [
    b"/registry/pods/default/a",
    b"/registry/pods/default/b",
    b"/registry/pods/kube-system/a",
    b"/registry/minions/n1",
    b"/registry/minions/n2",
    b"/registry/leases/kube-node-lease/n1",
    b"/registry/events/default/e1",
    b"/registry/events/default/e2",
    b"/registry/configmaps/default/c",
    b"/registry/podtemplates/default/t",
    b"/registry/services/s",
]
ODD_KEYS = [
    b"/registry/pods",
    b"/registry/pods/",
    b"/registry/pods0",
    b"/registry/minions/",
    b"/registry/",
    b"/",
    b"a",
    b"\x00",
    b"\x00\x00",
    b"\xff",
    b"\xff\xff",
    b"\xfe/\x80",
]
#: Ends of prefixes: of one shard, over several, of everything.
ENDS = [
    b"/registry/pods0",
    b"/registry/pods/default0",
    b"/registry/minions0",
    b"/registry/leases0",
    b"/registry/events0",
    b"/registry0",
    b"/registry/n",
    b"0",
    b"\xff",
]
#: Leases that tests grant under these ids; those of `NO_LEASES` never are.
LEASES = [1, 2, 3, -9, 1 << 39]
NO_LEASES = [77, -1]
VALUES = [b"", b"a", b"b", b"c", b"\x00", b"\xff\xfe", b"value", b"x" * 3000]


def maybe(s: Source, one_in: int = 6) -> bool:
    return s.integer(1, one_in) == one_in


def key(s: Source) -> bytes:
    return s.choice(s.choice([KEYS, KEYS, ODD_KEYS]))


def any_key(s: Source) -> bytes:
    return b"" if maybe(s, 40) else key(s)


def range_end(s: Source) -> bytes:
    kind = s.choice(["one", "all", "end", "end", "end", "key", "after"])
    if kind == "one":
        return b""
    if kind == "all":
        return b"\x00"
    if kind == "end":
        return s.choice(ENDS)
    return key(s) + (b"\x00" if kind == "after" else b"")


def value(s: Source) -> bytes:
    return s.choice(VALUES)


def revision(s: Source) -> int:
    kind = s.choice(["now", "past", "past", "past", "base", "future", "border", "odd"])
    if kind == "now":
        return 0
    if kind == "past":
        return CURRENT - s.integer(0, 8)
    if kind == "base":
        return BASE + s.integer(0, 12)
    if kind == "future":
        return CURRENT + s.integer(1, 3)
    if kind == "border":
        return COMPACTED + s.integer(-2, 2)
    return s.choice([1, -1, -7])


def lease(s: Source) -> int:
    return s.choice([0, 0, 0, *LEASES, *LEASES, *NO_LEASES, SLOT, SLOT + 1])


def bound(s: Source) -> int:
    return s.choice([0, 0, 0, CURRENT - s.integer(-1, 6), -1])


def range_request(s: Source) -> rpc.RangeRequest:
    request = rpc.RangeRequest(key=any_key(s), range_end=range_end(s))
    if maybe(s, 2):
        request.limit = s.choice([1, 2, 3, 5, 100, -1, 1 << 62])
    if maybe(s, 3):
        request.revision = revision(s)
    request.serializable = maybe(s)
    request.keys_only = maybe(s)
    request.count_only = maybe(s)
    if maybe(s, 3):
        request.sort_order = s.choice([0, 1, 2])
        request.sort_target = s.choice([0, 1, 2, 3, 4])
        if maybe(s, 10):
            request.sort_order = s.choice([0, -1, 3, 7])
            request.sort_target = s.choice([0, -1, 5])
    if maybe(s, 5):
        request.min_mod_revision = bound(s)
        request.max_mod_revision = bound(s)
        request.min_create_revision = bound(s)
        request.max_create_revision = bound(s)
    return request


def range_stream_request(s: Source) -> rpc.RangeRequest:
    request = range_request(s)
    if maybe(s, 2):
        request.sort_order = request.sort_target = 0
        request.min_mod_revision = request.max_mod_revision = 0
        request.min_create_revision = request.max_create_revision = 0
    if not request.sort_order:
        # etcd sorts each chunk by itself then, and repeats keys: see README.md of this directory.
        request.sort_target = 0
    return request


def put_request(s: Source) -> rpc.PutRequest:
    request = rpc.PutRequest(key=any_key(s), value=value(s), prev_kv=maybe(s, 2))
    if maybe(s, 3):
        request.lease = lease(s)
    if maybe(s, 5):
        request.ignore_value = maybe(s, 2)
        request.ignore_lease = maybe(s, 2)
        if not maybe(s, 4):
            if request.ignore_value:
                request.value = b""
            if request.ignore_lease:
                request.lease = 0
    return request


def delete_request(s: Source) -> rpc.DeleteRangeRequest:
    request = rpc.DeleteRangeRequest(key=any_key(s), prev_kv=maybe(s, 2))
    if maybe(s, 2):
        request.range_end = range_end(s)
    return request


def compare(s: Source) -> rpc.Compare:
    c = rpc.Compare(
        key=any_key(s),
        target=s.choice([0, 1, 2, 3, 4]),
        result=s.choice([0, 1, 2, 3]),
    )
    if maybe(s, 20):
        c.target = s.choice([-1, 9])
    if maybe(s, 20):
        c.result = s.choice([-1, 9])
    if maybe(s, 4):
        c.range_end = range_end(s)
    names = ["version", "create_revision", "mod_revision", "value", "lease"]
    kind = s.integer(1, 10)
    if kind == 10:
        return c
    name = names[c.target] if kind < 9 and 0 <= c.target < 5 else s.choice(names)
    if name == "version":
        c.version = s.integer(-1, 4)
    elif name == "value":
        c.value = value(s)
    elif name == "lease":
        c.lease = lease(s)
    else:
        setattr(c, name, 0 if maybe(s, 3) else revision(s))
    return c


def wrap(message: Message) -> rpc.RequestOp:
    """A request as an operation of a transaction."""
    name = {
        "RangeRequest": "request_range",
        "PutRequest": "request_put",
        "DeleteRangeRequest": "request_delete_range",
        "TxnRequest": "request_txn",
    }[message.DESCRIPTOR.name]
    return rpc.RequestOp(**{name: message})


def _wild_txn(s: Source, depth: int) -> rpc.TxnRequest:
    """Anything in any order; most of these are refused."""

    def op() -> rpc.RequestOp:
        if maybe(s, 40):
            return rpc.RequestOp()
        kind = s.choice(["range", "put", "put", "delete", "txn"])
        if kind == "txn" and depth:
            return wrap(_wild_txn(s, depth - 1))
        return wrap({"put": put_request, "delete": delete_request}.get(kind, range_request)(s))

    return rpc.TxnRequest(
        compare=[compare(s) for _ in range(s.choice([0, 0, 1, 1, 2, 3]))],
        success=[op() for _ in range(s.integer(0, 4))],
        failure=[op() for _ in range(s.integer(0, 3))],
    )


def _sound_txn(s: Source, depth: int, free: list[bytes] | None = None) -> rpc.TxnRequest:
    """A key for each put and delete alone, so that most of these go through."""
    free = s.shuffled(KEYS + ODD_KEYS) if free is None else free
    txn = rpc.TxnRequest(compare=[compare(s) for _ in range(s.choice([0, 1, 1, 2]))])
    for c in txn.compare:
        c.key = c.key or b"a"
    for branch in (txn.success, txn.failure):
        for _ in range(s.integer(0, 4)):
            kind = s.choice(["put", "put", "delete", "range", "txn"])
            if kind == "txn" and depth:
                branch.append(wrap(_sound_txn(s, depth - 1, free)))
            elif kind == "put" and free:
                put = put_request(s)
                put.key = free.pop()
                if not maybe(s, 8):
                    put.ClearField("lease")
                    put.ignore_value = False
                branch.append(wrap(put))
            elif kind == "delete" and free:
                delete = rpc.DeleteRangeRequest(key=free.pop(), prev_kv=maybe(s, 2))
                if maybe(s, 3):
                    # A range that ends before the next free key: neighbours may be hit.
                    delete.range_end = delete.key + b"\x00"
                branch.append(wrap(delete))
            else:
                request = range_request(s)
                request.key = request.key or b"a"
                if not maybe(s, 5):
                    request.revision = 0
                if request.sort_order not in (0, 1, 2) or request.sort_target not in range(5):
                    request.sort_order = request.sort_target = 0
                branch.append(wrap(request))
    return txn


def _wide_txn(s: Source) -> rpc.TxnRequest:
    """Around the limit of 128 operations."""
    count = s.choice([127, 128, 129])
    ops = [wrap(rpc.PutRequest(key=b"/registry/pods/w%03d" % n)) for n in range(count)]
    what = s.choice(["puts", "compares", "failure", "nested"])
    if what == "puts":
        return rpc.TxnRequest(success=ops)
    if what == "failure":
        return rpc.TxnRequest(failure=ops)
    if what == "compares":
        return rpc.TxnRequest(compare=[rpc.Compare(key=b"a", result=2)] * count, failure=ops[:2])
    inner = rpc.TxnRequest(success=ops[: count - 64])
    return rpc.TxnRequest(compare=[rpc.Compare(key=b"zz")] * 64, success=[wrap(inner)])


def _has_open_delete(txn: rpc.TxnRequest) -> bool:
    for op in [*txn.success, *txn.failure]:
        if op.HasField("request_delete_range"):
            delete = op.request_delete_range
            if delete.range_end and delete.range_end <= delete.key:
                return True
        elif op.HasField("request_txn") and _has_open_delete(op.request_txn):
            return True
    return False


def _no_ignores(txn: rpc.TxnRequest) -> None:
    for op in [*txn.success, *txn.failure]:
        if op.HasField("request_put"):
            op.request_put.ignore_value = False
            op.request_put.ignore_lease = False
        elif op.HasField("request_txn"):
            _no_ignores(op.request_txn)


def survivable(txn: rpc.TxnRequest) -> rpc.TxnRequest:
    """The transaction without what makes etcd panic.

    etcd lets a delete to the end of the key space (or an inverted one) and a put of the same key
    into one transaction. If that put ignores value or lease, it passes the check, finds nothing
    when it is executed, and the process ends. `test_deviations` sends those to jotd.
    """
    if _has_open_delete(txn):
        _no_ignores(txn)
    return txn


def txn_request(s: Source) -> rpc.TxnRequest:
    kind = s.integer(1, 20)
    if kind <= 6:
        return survivable(_wild_txn(s, s.integer(0, 3)))
    if kind <= 19:
        return survivable(_sound_txn(s, s.choice([0, 1, 2, 4])))
    return _wide_txn(s)


@dataclass(frozen=True)
class Step:
    """One operation: a unary method with its request, or something that needs more than that."""

    method: str
    request: Any = None

    def __repr__(self) -> str:
        text = str(self.request).replace("\n", " ")
        return f"Step({self.method} {text[:400]})"


#: Long lists of steps shrink to long lists of these.
NOTHING = Step("nothing")


def write(s: Source) -> Step:
    kind = s.choice(["put", "put", "put", "delete", "txn", "txn"])
    if kind == "put":
        return Step("KV.Put", put_request(s))
    if kind == "delete":
        return Step("KV.DeleteRange", delete_request(s))
    return Step("KV.Txn", txn_request(s))


def _lease_step(s: Source) -> Step:
    some_id = s.choice([*LEASES, *LEASES, *NO_LEASES, 0, SLOT])
    kind = s.choice(["grant", "grant", "any", "revoke", "ttl", "alive", "list"])
    if kind == "grant":
        ttl = s.choice([100, 5000, 9_000_000_000])
        if maybe(s, 10):
            ttl = s.choice([9_000_000_001, (1 << 63) - 1])
        return Step("Lease.LeaseGrant", rpc.LeaseGrantRequest(ID=s.choice(LEASES), TTL=ttl))
    if kind == "any":
        return Step("grant-any", s.choice([60, 5000]))
    if kind == "revoke":
        return Step("Lease.LeaseRevoke", rpc.LeaseRevokeRequest(ID=some_id))
    if kind == "ttl":
        request = rpc.LeaseTimeToLiveRequest(ID=some_id, keys=maybe(s, 2))
        return Step("Lease.LeaseTimeToLive", request)
    if kind == "alive":
        return Step("keep-alive", [some_id, s.choice(LEASES)])
    return Step("Lease.LeaseLeases", rpc.LeaseLeasesRequest())


def _read(s: Source) -> Step:
    kind = s.integer(1, 5)
    if kind <= 3:
        return Step("KV.Range", range_request(s))
    if kind == 4:
        return Step("KV.RangeStream", range_stream_request(s))
    return Step("hash", revision(s))


def compaction(s: Source) -> rpc.CompactionRequest:
    rev = CURRENT - s.integer(0, 6)
    if maybe(s, 3):
        rev = s.choice([0, -1, CURRENT + 1, CURRENT + 50, COMPACTED, COMPACTED - 1, 1 << 62])
    return rpc.CompactionRequest(revision=rev, physical=maybe(s, 2))


def _other(s: Source) -> Step:
    kind = s.choice(["compact"] * 6 + ["defrag", "status", "hash", "alarm", "members"])
    if kind == "compact":
        return Step("KV.Compact", compaction(s))
    if kind == "defrag":
        return Step("Maintenance.Defragment", rpc.DefragmentRequest())
    if kind == "status":
        return Step("Maintenance.Status", rpc.StatusRequest())
    if kind == "hash":
        return Step("Maintenance.Hash", rpc.HashRequest())
    if kind == "alarm":
        return Step("Maintenance.Alarm", rpc.AlarmRequest(alarm=s.choice([0, 1, 2])))
    return Step("Cluster.MemberList", rpc.MemberListRequest(linearizable=maybe(s, 2)))


def step(s: Source) -> Step:
    kind = s.integer(0, 100)
    if kind == 0:
        return NOTHING
    if kind <= 48:
        return write(s)
    if kind <= 80:
        return _read(s)
    if kind <= 94:
        return _lease_step(s)
    return _other(s)


@dataclass(frozen=True)
class WatchSpec:
    """A watch to create, and whether to cancel it half way."""

    request: rpc.WatchCreateRequest
    cancel: bool = False

    def __repr__(self) -> str:
        text = str(self.request).replace("\n", " ")
        return f"WatchSpec({text}, cancel={self.cancel})"


def watch_spec(s: Source) -> WatchSpec:
    """Watches from any revision, with good ids and bad."""
    kind = s.choice(["now", "past", "past", "past", "base", "base", "future", "border", "odd"])
    start = {
        "now": 0,
        "past": CURRENT - s.integer(0, 10),
        "base": BASE + s.integer(0, 10),
        "future": CURRENT + s.integer(1, 6),
        "border": COMPACTED + s.integer(-2, 2),
        "odd": s.choice([1, -1]),
    }[kind]
    request = rpc.WatchCreateRequest(
        key=any_key(s),
        range_end=s.choice([b"", b"\x00", b"0", range_end(s)]),
        start_revision=start,
        progress_notify=maybe(s),
        filters=s.choice([[], [], [], [0], [1], [0, 1], [9]]),
        prev_kv=maybe(s, 2),
        watch_id=s.choice([0, 0, 0, 0, 1, 2, 7, -3]),
        fragment=maybe(s),
    )
    return WatchSpec(request, cancel=maybe(s, 4))
