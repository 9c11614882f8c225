"""One store over many lives of its server, under load, and the verdict on what it kept.

Clients go on while the server dies and comes back, and write down each request as acknowledged,
refused, or of unknown outcome (`tests.history`). Watchers go on too, and what they saw has to be
true at the end: nobody may see a write that later turns out not to have happened.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import grpc
import grpc.aio

from kvstore.pb import kv_pb2, rpc_pb2
from tests import history, wire
from tests.history import ACKED, REFUSED, Log, Op
from tests.peers import Process
from tests.watch import checks
from tests.watch.checks import Session
from tests.workload import AMBIGUOUS, Mix, Recorder, Writer

ANSWER_SECONDS_MAX = 30.0
START_SECONDS_MAX = 60.0
BEHIND_SECONDS_MAX = 20.0
LONG_TTL_S = 10_000
STATES_COMPARED = 5
FAULTS_SHOWN_MAX = 10
#: Watchers must not fall behind this far while the server is away.
COMPACT_BEHIND = (500, 900)

#: Refusals that the workload itself brings about.
EXPECTED_REFUSALS = ("requested lease not found", "has been compacted")


@dataclass
class Verdict:
    """What was wrong, and figures that show that the run exercised something."""

    faults: list[str] = field(default_factory=list)
    log: Log = field(default_factory=Log)
    happened: list[Op] = field(default_factory=list)
    acked: int = 0
    unknown: int = 0
    hashes: int = 0
    watched: int = 0

    def __str__(self) -> str:
        return (
            f"{self.log.last} revisions, {self.acked} acknowledged, {self.unknown} unknown of "
            f"which {len(self.happened)} happened, {self.hashes} hashes, {self.watched} events"
        )


def show(verdict: Verdict, seed: int) -> str:
    """The first faults, and how to have them again."""
    shown = "\n".join(verdict.faults[:FAULTS_SHOWN_MAX])
    return f"{len(verdict.faults)} faults; JOTD_TEST_SEED={seed} runs this again\n{shown}"


def require_sound(verdict: Verdict, seed: int, acked_min: int) -> None:
    """Nothing is wrong, and enough was done to say so."""
    assert not verdict.faults, show(verdict, seed)
    print(verdict)
    assert verdict.acked > acked_min


class Follower:
    """A watch of everything that goes on where it stopped whenever the server comes back."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.sessions: list[Session] = []
        self.faults: list[str] = []

    async def run(self) -> None:
        """Watches until cancelled."""
        start = 2
        while True:
            async with wire.Client(self.endpoint) as client:
                request = rpc_pb2.WatchCreateRequest(
                    key=b"\x00", range_end=b"\x00", start_revision=start, prev_kv=True
                )
                session = Session(request)
                self.sessions.append(session)
                try:
                    await self._follow(client, session)
                except grpc.aio.AioRpcError:
                    pass
                except asyncio.InvalidStateError:
                    # The stream broke before the watch could be asked for.
                    pass
                finally:
                    session.ended = checks.CUT
                if session.created_revision:
                    start = session.resume
            await asyncio.sleep(0.05)

    async def _follow(self, client: wire.Client, session: Session) -> None:
        call = client.stream("Watch")
        await call.write(rpc_pb2.WatchRequest(create_request=session.request))
        async for answer in wire.messages(call):
            if answer.created:
                session.created_revision = answer.header.revision
            elif answer.canceled:
                self.faults.append(f"I4: cancelled: {answer} of {session}")
                return
            else:
                session.responses.append(answer)


class Lives:
    """The load on one endpoint, or on all of a cluster, over any number of its lives."""

    def __init__(
        self,
        endpoint: str | Sequence[str],
        seed: int,
        clients: int = 8,
        *,
        compacting: bool = False,
        pause_s: float = 0.0,
    ) -> None:
        """`compacting`: another client compacts all the time, some way behind the others.

        Of several endpoints each client has one, and each is watched. `pause_s`: what a client
        waits between two requests.
        """
        self.compacting = compacting
        self.endpoints = [endpoint] if isinstance(endpoint, str) else list(endpoint)
        self.endpoint = self.endpoints[0]
        self.pause_s = pause_s
        self.rng = random.Random(seed)
        self.recorder = Recorder()
        self.followers = [Follower(one) for one in self.endpoints]
        self.hashes: dict[tuple[int, int], int] = {}
        """By revision and the compact revision at which they were taken."""
        self.faults: list[str] = []
        self._stop = asyncio.Event()
        self._count = clients
        self._clients: list[wire.Client] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Lets the clients loose."""
        mix = Mix(ttls=(3, LONG_TTL_S), grant=4)
        for number in range(self._count):
            client = wire.Client(self.endpoints[number % len(self.endpoints)])
            self._clients.append(client)
            writer = Writer(self.recorder, number, random.Random(self.rng.random()), mix)
            run = writer.run(client, stop=self._stop, wait_for_ready=True, pause_s=self.pause_s)
            self._tasks.append(asyncio.create_task(run))
        for follower in self.followers:
            self._tasks.append(asyncio.create_task(follower.run()))
        self._tasks.append(asyncio.create_task(self._take_hashes()))
        if self.compacting:
            self._tasks.append(asyncio.create_task(self._compact()))

    async def progress(self, revisions: int) -> None:
        """Waits until this many more revisions were acknowledged, so that a life has content."""
        target = self.recorder.known + revisions
        async with asyncio.timeout(ANSWER_SECONDS_MAX):
            while self.recorder.known < target:
                await asyncio.sleep(0.01)
                for task in self._tasks:
                    if task.done():
                        task.result()

    async def stop(self) -> None:
        """Ends the load; requests under way are waited for."""
        self._stop.set()
        writers, others = self._tasks[: self._count], self._tasks[self._count :]
        await asyncio.gather(*writers)
        for task in others:
            task.cancel()
        for result in await asyncio.gather(*others, return_exceptions=True):
            if isinstance(result, Exception):
                raise result
        await asyncio.gather(*(client.close() for client in self._clients))

    async def abandon(self) -> None:
        """Ends the load at once; nothing can be said of the requests under way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(client.close() for client in self._clients))

    async def _compact(self) -> None:
        async with wire.Client(self.endpoint) as client:
            while True:
                await asyncio.sleep(0.05)
                revision = self.recorder.known - self.rng.randrange(*COMPACT_BEHIND)
                if revision > self.recorder.compacted:
                    request = rpc_pb2.CompactionRequest(
                        revision=revision, physical=self.rng.random() < 0.3
                    )
                    await self.recorder.do(client, -1, "Compact", request, wait_for_ready=True)

    async def _take_hashes(self) -> None:
        """HashKV of revisions that are over, to be compared in later lives (I5)."""
        async with wire.Client(self.endpoint) as client:
            while not self._stop.is_set():
                await asyncio.sleep(0.03)
                if self.recorder.known > 1:
                    try:
                        await self._compare_hash(client, self.recorder.known)
                    except grpc.aio.AioRpcError as error:
                        if error.code() not in AMBIGUOUS:
                            raise

    async def _compare_hash(self, client: wire.Client, revision: int) -> None:
        try:
            answer = await self._hash(client, revision)
        except grpc.aio.AioRpcError as error:
            if error.code() != grpc.StatusCode.OUT_OF_RANGE:
                raise
            self.faults.append(f"I3: revision {revision} was known and is now: {error.details()}")
            return
        if answer.hash_revision not in (0, revision):
            self.faults.append(f"I5: asked for the hash of {revision}: {answer}")
        compacted = answer.compact_revision
        known = self.hashes.setdefault((revision, compacted), answer.hash)
        if known != answer.hash:
            self.faults.append(
                f"I5: HashKV of revision {revision}, compacted at {compacted}, was {known} "
                f"and is {answer.hash}"
            )

    async def _hash(self, client: wire.Client, revision: int) -> rpc_pb2.HashKVResponse:
        """Of a cluster's members, as of etcd's, each answers for itself, and may be behind."""
        deadline = asyncio.get_running_loop().time() + BEHIND_SECONDS_MAX
        while True:
            try:
                return await client.hash_kv(revision)
            except grpc.aio.AioRpcError:
                late = asyncio.get_running_loop().time() > deadline
                if late or len(self.endpoints) == 1:
                    raise
            await asyncio.sleep(0.02)

    async def judge(self) -> Verdict:
        """Everything that can be said of the store, now that it is up and the load is over."""
        verdict = Verdict()
        async with wire.Client(self.endpoint) as client:
            last = await client.revision()
            compacted = await self._compacted(client)
            whole = await _history(client, max(2, compacted), last)
            # What was compacted is known from those who watched it.
            observed: dict[int, list[kv_pb2.Event]] = {}
            watched = [session for follower in self.followers for session in follower.sessions]
            for session in [*watched, whole]:
                for revision, events in session.by_revision().items():
                    # Leases may go on ending meanwhile; what is later is another story.
                    if revision <= last:
                        observed[revision] = events
            assembly = history.assemble(self.recorder.ops, observed, last)
            log = verdict.log = assembly.log
            verdict.happened = assembly.happened
            verdict.faults += assembly.faults
            for follower in self.followers:
                verdict.faults += follower.faults
            verdict.faults += _absent(observed, last)
            for op in self.recorder.ops:
                if op.outcome == REFUSED and not any(t in op.error for t in EXPECTED_REFUSALS):
                    verdict.faults.append(f"refused: {op.error}: {op}")
            for session in [whole, *watched]:
                if session.created_revision:
                    _cut_after(session, last)
                    verdict.faults += checks.check(session, log, last if session is whole else 0)
                    verdict.watched += session.delivered
            await self._compare_states(client, verdict, max(1, compacted))
            for revision in {revision for revision, _ in self.hashes} | {last}:
                if revision >= compacted:
                    await self._compare_hash(client, revision)
            verdict.faults += await _lease_faults(client, self.recorder.ops, log, last)
        verdict.faults += self.faults
        counts = self.recorder.outcomes()
        verdict.acked, verdict.unknown = counts[ACKED], counts[history.UNKNOWN]
        verdict.hashes = len(self.hashes)
        return verdict

    async def _compacted(self, client: wire.Client) -> int:
        """The compact revision of the store: at least what was acknowledged, if not more (I1)."""
        call = client.stream("Watch")
        request = rpc_pb2.WatchCreateRequest(key=b"\x00", start_revision=1)
        await call.write(rpc_pb2.WatchRequest(create_request=request))
        compacted = 0
        progress = rpc_pb2.WatchRequest(progress_request=rpc_pb2.WatchProgressRequest())
        async with asyncio.timeout(ANSWER_SECONDS_MAX):
            answer = await call.read()
            assert answer.created
            # It is cancelled for compaction, or says that it is synced.
            reading = asyncio.create_task(call.read())
            while not reading.done():
                await call.write(progress)
                await asyncio.wait({reading}, timeout=0.5)
            answer = reading.result()
        if answer.canceled:
            compacted = answer.compact_revision
        call.cancel()
        asked = [op.request.revision for op in self.recorder.ops if op.method == "Compact"]
        if not self.recorder.compacted <= compacted <= max(asked, default=0):
            self.faults.append(
                f"I1: compacted at {compacted}; {self.recorder.compacted} was acknowledged, "
                f"{max(asked, default=0)} asked for"
            )
        return compacted

    async def _compare_states(self, client: wire.Client, verdict: Verdict, oldest: int) -> None:
        log = verdict.log
        some = [self.rng.randrange(oldest, log.last + 1) for _ in range(STATES_COMPARED)]
        for revision in [oldest, log.last, *some]:
            if await client.everything(revision) != log.state_at(revision):
                verdict.faults.append(f"I1: the state at {revision} is not what the log makes")


def _absent(observed: dict[int, list[kv_pb2.Event]], last: int) -> list[str]:
    missing = [revision for revision in range(2, last + 1) if revision not in observed]
    return [f"I1: the history lacks revisions {missing[:10]} and so on"] if missing else []


def _cut_after(session: Session, last: int) -> None:
    """Drops what came after the revision that is judged."""
    kept = []
    for answer in session.responses:
        while answer.events and answer.events[-1].kv.mod_revision > last:
            answer.events.pop()
        if answer.events or answer.header.revision <= last:
            kept.append(answer)
    session.responses = kept


async def _history(client: wire.Client, first: int, last: int) -> Session:
    """All events from one revision to another, by a watch."""
    request = rpc_pb2.WatchCreateRequest(
        key=b"\x00", range_end=b"\x00", start_revision=first, prev_kv=True
    )
    session = Session(request)
    if last < first:
        session.created_revision = last
        return session
    call = client.stream("Watch")
    await call.write(rpc_pb2.WatchRequest(create_request=request))
    async with asyncio.timeout(ANSWER_SECONDS_MAX):
        async for answer in wire.messages(call):
            if answer.created:
                session.created_revision = answer.header.revision
                continue
            session.responses.append(answer)
            if answer.events and answer.events[-1].kv.mod_revision >= last:
                break
    call.cancel()
    return session


async def _lease_faults(client: wire.Client, ops: list[Op], log: Log, last: int) -> list[str]:
    """Long leases that were granted and not revoked are there, with their keys; revoked are not."""
    faults = []
    answer = await client.call("LeaseLeases", rpc_pb2.LeaseLeasesRequest())
    there = {lease.ID for lease in answer.leases}
    granted = {op.answer.ID: op.answer.TTL for op in ops if op.method == "LeaseGrant" and op.answer}
    touched = {op.request.ID for op in ops if op.method == "LeaseRevoke" and op.outcome != REFUSED}
    revoked = {op.request.ID for op in ops if op.method == "LeaseRevoke" and op.outcome == ACKED}
    for lease, ttl in granted.items():
        if ttl == LONG_TTL_S and lease not in touched and lease not in there:
            faults.append(f"I1: lease {lease} was granted and is gone")
        if lease in revoked and lease in there:
            faults.append(f"I1: lease {lease} was revoked and is there")
        if ttl == LONG_TTL_S and lease in there:
            request = rpc_pb2.LeaseTimeToLiveRequest(ID=lease, keys=True)
            answer = await client.call("LeaseTimeToLive", request)
            keys = {key for key, kv in log.state.items() if kv.lease == lease}
            if answer.header.revision == last and set(answer.keys) != keys:
                faults.append(f"I1: keys of lease {lease}: {answer.keys}, expected {keys}")
            if answer.grantedTTL != ttl:
                faults.append(f"I1: TTL of lease {lease}: granted {ttl}, now {answer}")
    unknown = sum(op.method == "LeaseGrant" and op.outcome == history.UNKNOWN for op in ops)
    if len(there - set(granted)) > unknown:
        faults.append(f"I1: {len(there - set(granted))} leases that nobody asked for")
    return faults


async def in_thread_restart(process: Process) -> None:
    """Starts a process again without holding the loop on which the clients run."""
    await asyncio.to_thread(process.restart, START_SECONDS_MAX)
