"""Random clients whose every request is written down (`tests.history.Op`)."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio

from kvstore.pb import rpc_pb2
from tests import wire
from tests.history import ACKED, REFUSED, UNKNOWN, Op

#: Prefixes of several shards of the built-in partition table, and keys outside of all of them.
PREFIXES = (
    b"/registry/pods/",
    b"/registry/minions/",
    b"/registry/leases/",
    b"/registry/events/",
    b"/registry/configmaps/",
    b"a/",
    b"zz/",
)
KEYS = tuple(prefix + b"%d" % n for prefix in PREFIXES for n in range(6))

#: What a client cannot know the outcome of.
AMBIGUOUS = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.INTERNAL,
}


@dataclass
class Recorder:
    """All requests of all clients, and the highest revision that any of them was answered."""

    ops: list[Op] = field(default_factory=list)
    known: int = 0
    compacted: int = 0
    leases: list[int] = field(default_factory=list)

    async def do(
        self,
        client: wire.Client,
        number: int,
        method: str,
        request: Any,
        *,
        wait_for_ready: bool = False,
    ) -> Op:
        """Sends one request and writes down what became of it.

        With `wait_for_ready` it is sent once there is a connection, else it fails without one.
        """
        op = Op(number, method, request, self.known)
        self.ops.append(op)
        try:
            op.answer = await client.call(method, request, wait_for_ready=wait_for_ready)
        except grpc.aio.AioRpcError as error:
            op.error = f"{error.code().name}: {error.details()}"
            op.outcome = UNKNOWN if error.code() in AMBIGUOUS else REFUSED
            return op
        except asyncio.CancelledError:
            op.error = "the client gave up"
            raise
        op.outcome = ACKED
        if op.revision > self.known:
            self.known = op.revision
        if method == "LeaseGrant":
            self.leases.append(op.answer.ID)
        elif method == "Compact":
            self.compacted = max(self.compacted, request.revision)
        return op

    def outcomes(self) -> dict[str, int]:
        """How often each outcome occurred; a test that got only errors proves nothing."""
        counts = {ACKED: 0, REFUSED: 0, UNKNOWN: 0}
        for op in self.ops:
            counts[op.outcome] += 1
        return counts


@dataclass
class Mix:
    """Weights of the kinds of requests, and the TTLs of leases."""

    put: int = 45
    leased_put: int = 8
    delete: int = 10
    delete_range: int = 5
    txn: int = 27
    read: int = 8
    grant: int = 3
    revoke: int = 1
    ttls: tuple[int, ...] = (2,)
    big_value_bytes: int = 3000


class Writer:
    """One random client."""

    def __init__(
        self, recorder: Recorder, number: int, rng: random.Random, mix: Mix | None = None
    ) -> None:
        self.recorder = recorder
        self.number = number
        self.rng = rng
        self.mix = mix or Mix()
        self._count = 0

    async def run(
        self,
        client: wire.Client,
        count: int | None = None,
        stop: asyncio.Event | None = None,
        *,
        wait_for_ready: bool = False,
        pause_s: float = 0.0,
    ) -> None:
        """Sends `count` requests, or as many as fit until `stop` is set."""
        done = 0
        while (count is None or done < count) and not (stop and stop.is_set()):
            method, request = self.next()
            op = await self.recorder.do(
                client, self.number, method, request, wait_for_ready=wait_for_ready
            )
            done += 1
            if op.outcome == UNKNOWN:
                # The server is going or gone; do not spin.
                await asyncio.sleep(0.02)
            elif pause_s:
                await asyncio.sleep(pause_s)

    def next(self) -> tuple[str, Any]:
        """The next request."""
        kinds: dict[Callable[[], tuple[str, Any]], int] = {
            self._put: self.mix.put,
            self._leased_put: self.mix.leased_put,
            self._delete: self.mix.delete,
            self._delete_range: self.mix.delete_range,
            self._txn: self.mix.txn,
            self._read: self.mix.read,
            self._grant: self.mix.grant,
            self._revoke: self.mix.revoke,
        }
        (make,) = self.rng.choices(list(kinds), weights=list(kinds.values()))
        return make()

    def _value(self) -> bytes:
        """A value that nobody else writes."""
        self._count += 1
        value = b"%d-%d" % (self.number, self._count)
        if self.rng.random() < 0.1:
            value += b"." * self.rng.randrange(self.mix.big_value_bytes)
        return value

    def _key(self) -> bytes:
        return self.rng.choice(KEYS)

    def _span(self) -> tuple[bytes, bytes]:
        """A range: mostly part of one shard, at times over the border of several."""
        low, high = sorted((self._key(), self._key()))
        if self.rng.random() < 0.7:
            prefix = self.rng.choice(PREFIXES)
            low, high = sorted(prefix + b"%d" % self.rng.randrange(7) for _ in range(2))
        return low, high + b"\x00"

    def _put(self) -> tuple[str, Any]:
        return "Put", self._put_request()

    def _put_request(self, lease: int = 0, key: bytes | None = None) -> rpc_pb2.PutRequest:
        return rpc_pb2.PutRequest(
            key=key or self._key(),
            value=self._value(),
            lease=lease,
            prev_kv=self.rng.random() < 0.3,
        )

    def _leased_put(self) -> tuple[str, Any]:
        if not self.recorder.leases:
            return self._grant()
        lease = self.rng.choice(self.recorder.leases[-4:])
        return "Put", self._put_request(lease)

    def _delete(self) -> tuple[str, Any]:
        return "DeleteRange", rpc_pb2.DeleteRangeRequest(
            key=self._key(), prev_kv=self.rng.random() < 0.5
        )

    def _delete_range(self) -> tuple[str, Any]:
        low, high = self._span()
        return "DeleteRange", rpc_pb2.DeleteRangeRequest(
            key=low, range_end=high, prev_kv=self.rng.random() < 0.5
        )

    def _compare(self) -> rpc_pb2.Compare:
        compare = rpc_pb2.Compare(key=self._key())
        match self.rng.randrange(4):
            case 0:
                compare.target = rpc_pb2.Compare.CREATE
                compare.create_revision = 0
                compare.result = self.rng.choice([rpc_pb2.Compare.EQUAL, rpc_pb2.Compare.GREATER])
            case 1:
                compare.target = rpc_pb2.Compare.MOD
                compare.mod_revision = max(0, self.recorder.known - self.rng.randrange(40))
                compare.result = self.rng.choice([rpc_pb2.Compare.LESS, rpc_pb2.Compare.GREATER])
            case 2:
                compare.target = rpc_pb2.Compare.VERSION
                compare.version = self.rng.randrange(4)
                compare.result = rpc_pb2.Compare.NOT_EQUAL
            case _:
                compare.target = rpc_pb2.Compare.VALUE
                compare.value = b"3"
                compare.result = rpc_pb2.Compare.LESS
        return compare

    def _branch(self, keys: list[bytes], nest: bool) -> list[rpc_pb2.RequestOp]:
        """Operations on different keys of `keys`, which it takes from the list."""
        operations = []
        for _ in range(self.rng.randrange(1, 4)):
            operation = rpc_pb2.RequestOp()
            key = keys.pop()
            match self.rng.randrange(8):
                case 0 | 1 | 2 | 3:
                    operation.request_put.CopyFrom(self._put_request(key=key))
                case 4 | 5:
                    operation.request_delete_range.key = key
                    operation.request_delete_range.prev_kv = True
                case 6:
                    low, high = self._span()
                    operation.request_range.key = low
                    operation.request_range.range_end = high
                case _:
                    if nest:
                        operation.request_txn.compare.append(self._compare())
                        operation.request_txn.success.extend(self._branch(keys, False))
                    else:
                        operation.request_range.key = key
            operations.append(operation)
        return operations

    def _txn(self) -> tuple[str, Any]:
        keys = self.rng.sample(KEYS, 24)
        txn = rpc_pb2.TxnRequest(compare=[self._compare()])
        txn.success.extend(self._branch(keys[:12], True))
        if self.rng.random() < 0.7:
            txn.failure.extend(self._branch(keys[12:], True))
        return "Txn", txn

    def _read(self) -> tuple[str, Any]:
        low, high = self._span()
        request = rpc_pb2.RangeRequest(key=low, range_end=high)
        if self.rng.random() < 0.3:
            request.limit = self.rng.randrange(1, 4)
        oldest = max(1, self.recorder.compacted)
        if self.rng.random() < 0.4 and self.recorder.known > oldest:
            request.revision = self.rng.randrange(oldest, self.recorder.known + 1)
        return "Range", request

    def _grant(self) -> tuple[str, Any]:
        return "LeaseGrant", rpc_pb2.LeaseGrantRequest(TTL=self.rng.choice(self.mix.ttls))

    def _revoke(self) -> tuple[str, Any]:
        if not self.recorder.leases:
            return self._grant()
        return "LeaseRevoke", rpc_pb2.LeaseRevokeRequest(ID=self.rng.choice(self.recorder.leases))


async def compact_now_and_then(
    recorder: Recorder, client: wire.Client, rng: random.Random, stop: asyncio.Event
) -> None:
    """Compacts at a random revision, up to the current one, until `stop` is set."""
    while not stop.is_set():
        await asyncio.sleep(rng.uniform(0.05, 0.4))
        if recorder.known > recorder.compacted + 1:
            behind = rng.choice([0, 1, rng.randrange(200)])
            revision = max(recorder.compacted + 1, recorder.known - behind)
            request = rpc_pb2.CompactionRequest(revision=revision, physical=rng.random() < 0.3)
            await recorder.do(client, -1, "Compact", request)
