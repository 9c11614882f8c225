"""Two servers in lockstep: the same operations to both, and every answer compared.

The left one is the oracle. Both start empty, so revisions are equal for as long as the answers are.
Requests may hold placeholders, resolved just before they are sent; so one sequence of operations
means the same at any point of the servers' history (and hypothesis can shrink it):

- ``CURRENT + d``: the current revision plus d;
- ``COMPACTED + d``: the compacted revision plus d;
- ``BASE + d``: the revision at the last `Pair.reset` plus d;
- ``SLOT + n``: the lease id that the server chose for the n-th `Pair.grant_any`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import Any

from google.protobuf import text_format
from google.protobuf.message import Message

from kvstore.pb import rpc_pb2 as rpc
from tests.oracle import faults
from tests.oracle.client import Answer, Client, Duplex
from tests.oracle.plain import comparable, differences

CURRENT = 1 << 40
COMPACTED = 1 << 41
BASE = 1 << 42
SLOT = 1 << 43
_REACH = 1 << 20
#: More than any generator subtracts from a placeholder.
_FAR = 20

_UNAVAILABLE = 14


#: What was not compared for the faults of an old oracle -> how often.
left_out: Counter[str] = Counter()


class Divergence(AssertionError):
    """The two servers answered differently."""


class OracleDied(AssertionError):
    """The oracle cannot be reached any more: an operation that it does not survive."""


class Pair:
    """`start` gives the endpoints of two fresh, empty servers; it is called again when needed."""

    def __init__(
        self, start: Callable[[], tuple[str, str]], version: faults.Version = faults.CURRENT
    ) -> None:
        self._start = start
        self.version = version
        self.left: Client
        self.right: Client
        self.revision = 1
        self.compacted = -1
        self.base = 1
        #: Every revision that a compaction succeeded at.
        self.compactions: set[int] = set()
        self.in_step = False
        self.log: list[tuple[str, Message | bytes]] = []
        self._slots: list[tuple[int, int]] = []
        self._granted: set[int] = set()

    def close(self) -> None:
        if hasattr(self, "left"):
            self.left.close()
            self.right.close()

    def fresh(self) -> None:
        """Both servers anew, at revision 1."""
        self.close()
        left, right = self._start()
        self.left, self.right = Client(left), Client(right)
        self.revision, self.compacted, self.base = 1, -1, 1
        self._slots, self._granted = [], set()
        self.compactions = set()
        self.log = []
        self.in_step = True

    def reset(self) -> None:
        """Leaves nothing behind but the revision: no keys, no leases, all history compacted."""
        if not self.in_step:
            self.fresh()
        self.log = []
        for lease in sorted(self._granted):
            self.call("Lease.LeaseRevoke", rpc.LeaseRevokeRequest(ID=lease))
        for n in range(len(self._slots)):
            self.call("Lease.LeaseRevoke", rpc.LeaseRevokeRequest(ID=SLOT + n))
        self._clear()
        if self._slots:
            # etcd keeps the hashes of past compactions. That of this one has lease ids in it that
            # differ; leave it out of the reach of placeholders.
            for _ in range(_FAR):
                self.call("KV.Put", rpc.PutRequest(key=b"a"))
            self._clear()
        self._granted, self._slots = set(), []
        self.base = self.revision
        self.log = []

    def _clear(self) -> None:
        self.call("KV.DeleteRange", rpc.DeleteRangeRequest(key=b"\0", range_end=b"\0"))
        self.call("KV.Compact", rpc.CompactionRequest(revision=CURRENT, physical=True))

    def resolve(self, request: Message, side: int) -> Message:
        """A copy with placeholders replaced; `side` is 0 for the oracle."""
        copy = type(request)()
        copy.CopyFrom(request)
        self._resolve(copy, side)
        return copy

    def _resolve(self, message: Message, side: int) -> None:
        for field, value in message.ListFields():
            if field.message_type is not None:
                for one in [value] if isinstance(value, Message) else value:
                    self._resolve(one, side)
            elif isinstance(value, int) and value >= CURRENT - _REACH:
                if abs(value - CURRENT) < _REACH:
                    setattr(message, field.name, self.revision + value - CURRENT)
                elif abs(value - COMPACTED) < _REACH:
                    setattr(message, field.name, self.compacted + value - COMPACTED)
                elif abs(value - BASE) < _REACH:
                    setattr(message, field.name, self.base + value - BASE)
                elif SLOT <= value < SLOT + _REACH:
                    n = value - SLOT
                    chosen = self._slots[n][side] if n < len(self._slots) else 123456789 + n
                    setattr(message, field.name, chosen)

    def call(self, method: str, request: Message, **how: Any) -> Answer:
        """Sends a request to both; returns the oracle's answer. Raises `Divergence`."""
        mine = self.resolve(request, 0)
        theirs = self.resolve(request, 1)
        for one in (mine, theirs):
            self._leave_out(faults.bearable(self.version, one))
        self._note(method, mine)
        if (why := faults.unable(self.version, method)) is not None:
            self._leave_out(why)
            if method == "KV.RangeStream":
                return self.right.stream(method, theirs)
            return self.right.call(method, theirs, **how)
        if method == "KV.RangeStream":
            left, right = self.left.stream(method, mine), self.right.stream(method, theirs)
        else:
            left = self.left.call(method, mine, **how)
            right = self.right.call(method, theirs, **how)
        self.compare(method, mine, left, right)
        self._follow(method, mine, left)
        return left

    def _leave_out(self, why: str | None) -> None:
        if why is not None:
            left_out[why] += 1

    def replay(self, method: str, request: Message, right: Answer) -> None:
        """Sends to the oracle what the subject has answered already."""
        self._note(method, request)
        left = self.left.call(method, request)
        self.compare(method, request, left, right)
        self._follow(method, request, left)

    def raw(self, path: str, body: bytes) -> Answer:
        """The same bytes to both. OK answers are compared by their status alone."""
        self._note(path, body[:200] if len(body) > 200 else body)
        left, right = self.left.raw(path, body), self.right.raw(path, body)
        self.compare(path, None, Answer(left.code, left.text), Answer(right.code, right.text))
        return left

    def grant_any(self, ttl: int) -> None:
        """A lease whose id each server chooses; it is ``SLOT + n`` from now on."""
        request = rpc.LeaseGrantRequest(TTL=ttl)
        self._note("Lease.LeaseGrant", request)
        left = self.left.call("Lease.LeaseGrant", request)
        right = self.right.call("Lease.LeaseGrant", request)
        if left.ok and right.ok:
            self._slots.append((left.message.ID, right.message.ID))
            if left.message.ID <= 0 or right.message.ID <= 0:
                self.diverged([f"chosen lease ids: {left.message.ID} <> {right.message.ID}"])
        self.compare("Lease.LeaseGrant", request, left, right)

    def keep_alive(self, leases: list[int]) -> None:
        """One keep-alive stream each: all requests, then half-close, then the end."""
        ends = []
        for side, client in enumerate((self.left, self.right)):
            with client.open("Lease.LeaseKeepAlive") as stream:
                for lease in leases:
                    request = rpc.LeaseKeepAliveRequest(ID=lease)
                    stream.send(self.resolve(request, side))
                stream.half_close()
                ends.append(stream.until(lambda _: False))
        self._note("Lease.LeaseKeepAlive", str(leases).encode())
        if len(ends[0]) != len(ends[1]):
            self.diverged([f"keep-alive: {ends[0]} <> {ends[1]}"])
        for one, other in zip(*ends, strict=True):
            left = one if isinstance(one, Answer) else Answer(0, message=one)
            right = other if isinstance(other, Answer) else Answer(0, message=other)
            self.compare("Lease.LeaseKeepAlive", None, left, right)

    def watch(self, **how: Any) -> tuple[Duplex, Duplex]:
        """A watch stream on each."""
        left = self.left.open("Watch.Watch", **how)
        return left, self.right.open("Watch.Watch", **how)

    def lease_names(self) -> dict[int, int]:
        """The other server's chosen lease ids -> the oracle's."""
        return {right: left for left, right in self._slots}

    def compare(self, method: str, request: Message | None, left: Answer, right: Answer) -> None:
        if left.code == _UNAVAILABLE and right.code != _UNAVAILABLE:
            self.in_step = False
            raise OracleDied(f"{left}\n{self.story()}")
        if not left.ok and left != right:
            why = faults.same_refusal(self.version, method, left, right)
            if why is not None:
                self._leave_out(why)
                return
        names = self.lease_names()
        found = differences(
            comparable(method, request, left),
            comparable(method, request, right, names),
        )
        if found:
            self.diverged([*found, f"oracle: {left}", f"subject: {right}"])

    def diverged(self, found: list[str]) -> None:
        self.in_step = False
        lines = "\n".join(found)
        raise Divergence(f"oracle <> subject\n{lines}\n{self.story()}")

    def story(self) -> str:
        last = self.log[-60:]
        head = f"revision {self.revision}, compacted {self.compacted}, base {self.base}; since then"
        told = [f"  {method} {_text(request)}" for method, request in last]
        return f"{head} ({len(self.log)} operations):\n" + "\n".join(told)

    def _note(self, method: str, request: Message | bytes) -> None:
        # As text only once somebody asks: that takes as long as the request itself.
        self.log.append((method, request))

    def _follow(self, method: str, request: Any, answer: Answer) -> None:
        """Keeps up with the revisions that the oracle reports."""
        if not answer.ok:
            return
        if answer.message is not None and answer.message.DESCRIPTOR.fields_by_name.get("header"):
            self.revision = max(self.revision, answer.message.header.revision)
        if method == "KV.Compact":
            self.compacted = request.revision
            self.compactions.add(request.revision)
        elif method == "Lease.LeaseGrant":
            self._granted.add(request.ID)
        elif method == "Lease.LeaseRevoke":
            self._granted.discard(request.ID)


def _text(request: Message | bytes) -> str:
    if isinstance(request, bytes):
        return repr(request)
    text = text_format.MessageToString(request, as_one_line=True)
    return re.sub(r"x{100,}", "x...", text)[:1500]
