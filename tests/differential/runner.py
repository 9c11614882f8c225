"""Executes steps on a pair, and makes a sequence that failed shorter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from kvstore.pb import rpc_pb2 as rpc
from tests.differential import strategies as some
from tests.oracle.pair import COMPACTED, SLOT, Divergence, Pair

T = TypeVar("T")


class Run:
    """One sequence of steps, from an empty store on."""

    def __init__(self, pair: Pair) -> None:
        pair.reset()
        self.pair = pair
        #: A key may hold a lease id that each server chose for itself: hashes differ then.
        self.tainted = False

    def step(self, step: some.Step) -> None:
        pair = self.pair
        if step.method == "nothing":
            return
        if step.method == "grant-any":
            pair.grant_any(step.request)
        elif step.method == "keep-alive":
            pair.keep_alive(step.request)
        elif step.method == "hash":
            self.hash(step.request)
        else:
            self.tainted |= str(SLOT)[:9] in str(step.request)
            pair.call(step.method, step.request)

    def hash(self, revision: int) -> None:
        wanted = self.pair.resolve(rpc.HashKVRequest(revision=revision), 0)
        if self.tainted or wanted.revision in self.pair.compactions:
            # etcd answers with what it remembers from the time of that compaction (README.md).
            return
        # etcd's hash counts what a compaction has not removed yet. This one is always refused, and
        # being physical, only after those before it are done.
        self.pair.call("KV.Compact", rpc.CompactionRequest(revision=-1, physical=True))
        self.pair.call("Maintenance.HashKV", rpc.HashKVRequest(revision=revision))

    def everything(self) -> None:
        """What a reader could still find out about the state."""
        whole = {"key": b"\0", "range_end": b"\0"}
        self.pair.call("KV.Range", rpc.RangeRequest(**whole))
        self.pair.call("KV.Range", rpc.RangeRequest(revision=COMPACTED, **whole))
        self.pair.call("Lease.LeaseLeases", rpc.LeaseLeasesRequest())
        for lease in some.LEASES:
            request = rpc.LeaseTimeToLiveRequest(ID=lease, keys=True)
            self.pair.call("Lease.LeaseTimeToLive", request)
        self.hash(0)


def run_steps(pair: Pair, steps: Sequence[some.Step]) -> None:
    run = Run(pair)
    for step in steps:
        run.step(step)
    run.everything()


def shorter(
    failing: Sequence[T], run: Callable[[Sequence[T]], None], tries: int = 150
) -> tuple[list[T], Divergence | None]:
    """A sub-sequence that still diverges, found by leaving out ever smaller pieces."""
    best, error = list(failing), None
    size = max(1, len(best) // 2)
    while tries > 0:
        at = 0
        shrunk = False
        while at < len(best) and tries > 0:
            candidate = best[:at] + best[at + size :]
            tries -= 1
            try:
                run(candidate)
                at += size
            except Divergence as found:
                best, error, shrunk = candidate, found, True
        if size == 1 and not shrunk:
            break
        size = max(1, size // 2)
    return best, error
