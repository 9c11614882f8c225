"""One random run of writers and watchers against an endpoint, and its verdict."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field

from kvstore.pb import kv_pb2, rpc_pb2
from tests import history, wire
from tests.history import Log
from tests.watch import checks
from tests.watch.watchers import Temper, Watcher, WatchStream
from tests.workload import KEYS, PREFIXES, Mix, Recorder, Writer, compact_now_and_then

CATCH_UP_SECONDS_MAX = 60.0
LEASES_END_SECONDS_MAX = 60.0


@dataclass
class Size:
    """How much a run does."""

    writers: int = 6
    requests_per_writer: int = 150
    streams: int = 10
    watches_per_stream: int = 4


@dataclass
class Verdict:
    """The faults of a run, and figures that show that it exercised something."""

    faults: list[str] = field(default_factory=list)
    revisions: int = 0
    sessions: int = 0
    events: int = 0
    bookmarks: int = 0
    compacted_sessions: int = 0
    disconnects: int = 0
    ended_leases: int = 0


def _some_watch(rng: random.Random) -> rpc_pb2.WatchCreateRequest:
    """A random thing to watch: a key, a shard, part of one, several, or all."""
    request = rpc_pb2.WatchCreateRequest(
        prev_kv=rng.random() < 0.6,
        progress_notify=rng.random() < 0.5,
        fragment=rng.random() < 0.3,
    )
    match rng.randrange(6):
        case 0:
            request.key = rng.choice(KEYS)
        case 1 | 2:
            prefix = rng.choice(PREFIXES)
            request.key, request.range_end = prefix, prefix[:-1] + b"0"
        case 3:
            low, high = sorted(rng.sample(KEYS, 2))
            request.key, request.range_end = low, high
        case 4:
            request.key, request.range_end = b"/registry/", b"/registry0"
        case _:
            request.key, request.range_end = b"\x00", b"\x00"
    if rng.random() < 0.3:
        request.filters.append(rng.choice([0, 1]))
    return request


def _some_temper(rng: random.Random) -> Temper:
    temper = Temper(progress=rng.choice([0.0, 0.05]), own_ids=rng.random() < 0.3)
    match rng.randrange(5):
        case 0:
            temper.pause_s = 0.2
        case 1:
            temper.cancel = 0.05
        case 2:
            temper.disconnect = 0.02
        case 3:
            temper.cancel, temper.disconnect, temper.pause_s = 0.02, 0.01, 0.02
        case _:
            pass
    return temper


async def run(endpoint: str, seed: int, size: Size, *, etcd_faults: bool = False) -> Verdict:
    """Lets writers and watchers loose on an empty store and checks what came of it.

    `etcd_faults` forgives what etcd itself gets wrong: an absent prev_kv (it reads the previous
    value when it sends the event, and by then it may be gone; seen under load also far above the
    last compaction, one run in twenty), and no progress on a stream on which compaction ended a
    watch (it goes on to wait for that watch).
    """
    rng = random.Random(seed)
    recorder = Recorder()
    verdict = Verdict()
    whole = rpc_pb2.WatchCreateRequest(
        key=b"\x00", range_end=b"\x00", start_revision=2, prev_kv=True
    )
    reference = WatchStream(endpoint, [Watcher(whole)], Temper(), random.Random(0))
    streams: list[WatchStream] = [reference]
    stop = asyncio.Event()
    clients = [wire.Client(endpoint) for _ in range(size.writers + 1)]
    try:
        await reference.start()
        await _grant_one_lease(recorder, clients[0])
        opened = asyncio.Event()
        tasks = [
            asyncio.create_task(
                _write(
                    Writer(recorder, n, random.Random(rng.random()), Mix()), client, size, opened
                )
            )
            for n, client in enumerate(clients[1:])
        ]
        side = asyncio.create_task(
            compact_now_and_then(recorder, clients[0], random.Random(rng.random()), stop)
        )
        for _ in range(size.streams):
            await asyncio.sleep(rng.uniform(0, 0.3))
            watchers = []
            for _ in range(size.watches_per_stream):
                request = _some_watch(rng)
                # From now, from the past, from the future.
                start = recorder.known + rng.choice([-500, -20, -1, 0, 1, 10, 100])
                request.start_revision = max(0, start) if rng.random() < 0.6 else 0
                watchers.append(Watcher(request))
            stream = WatchStream(endpoint, watchers, _some_temper(rng), random.Random(rng.random()))
            streams.append(stream)
            await stream.start()
        opened.set()
        await asyncio.gather(*tasks)
        stop.set()
        await side
        last = await _quiet(clients[0])
        for stream in streams:
            stream.calm = True
        if not await reference.ask_progress(last):
            verdict.faults.append("bookmarkable: the reference watch got no progress answer")
        (session,) = reference.watchers[0].sessions
        observed = session.by_revision()
        assembly = history.assemble(recorder.ops, observed, last)
        verdict.faults += assembly.faults
        verdict.faults += [f"error: {op} {op.error}" for op in recorder.ops if _unexpected(op)]
        await _catch_up(streams, assembly.log, last, verdict, etcd_faults)
    finally:
        await asyncio.gather(*(stream.close() for stream in streams))
        await asyncio.gather(*(client.close() for client in clients))

    def excuse(event: kv_pb2.Event) -> bool:
        return etcd_faults

    for stream in streams:
        verdict.faults += stream.faults
        verdict.disconnects += stream.disconnects
        for watcher in stream.watchers:
            for session in watcher.sessions:
                if not session.created_revision:
                    continue
                upto = last if session.ended == checks.OPEN else 0
                verdict.faults += checks.check(session, assembly.log, upto, excuse)
                _count(verdict, session)
    verdict.revisions = last
    acked = {op.revision for op in recorder.ops if history.wrote(op)} if recorder.ops else set()
    verdict.ended_leases = sum(r not in acked for r in range(2, last + 1))
    return verdict


async def _write(writer: Writer, client: wire.Client, size: Size, opened: asyncio.Event) -> None:
    """Half of the requests while streams are being opened, half with all of them there.

    So each stream has events to come, however fast the server is.
    """
    early = size.requests_per_writer // 2
    await writer.run(client, early)
    await opened.wait()
    await writer.run(client, size.requests_per_writer - early)


async def _grant_one_lease(recorder: Recorder, client: wire.Client) -> None:
    """A lease that ends by itself while the run goes on, with keys that no writer touches."""
    grant = rpc_pb2.LeaseGrantRequest(ID=4711, TTL=2)
    await recorder.do(client, -1, "LeaseGrant", grant)
    # Writers shall not use it: one that is revoked proves nothing about expiry.
    recorder.leases.clear()
    for key in (b"zz/leased", b"zz/leased too"):
        put = rpc_pb2.PutRequest(key=key, value=b"for a while", lease=4711)
        await recorder.do(client, -1, "Put", put)


def _unexpected(op: history.Op) -> bool:
    """Refusals that are part of the game: leases that ended, revisions that were compacted."""
    if op.outcome == history.ACKED:
        return False
    return op.outcome == history.UNKNOWN or not any(
        text in op.error for text in ("requested lease not found", "has been compacted")
    )


def _count(verdict: Verdict, session: checks.Session) -> None:
    verdict.sessions += 1
    verdict.events += session.delivered
    verdict.bookmarks += sum(not answer.events for answer in session.responses)
    verdict.compacted_sessions += session.ended == checks.COMPACTED


async def _quiet(client: wire.Client) -> int:
    """Waits until all leases have ended by themselves; the revision is final then."""
    async with asyncio.timeout(LEASES_END_SECONDS_MAX):
        while (await client.call("LeaseLeases", rpc_pb2.LeaseLeasesRequest())).leases:
            await asyncio.sleep(0.2)
    return await client.revision()


async def _catch_up(
    streams: list[WatchStream], log: Log, last: int, verdict: Verdict, etcd_faults: bool
) -> None:
    """Waits until each watch has all that is due, then for a progress answer on each stream."""

    def due(session: checks.Session) -> int:
        request = session.request
        return sum(
            1 for _ in log.watched(request.key, request.range_end, session.start, request.filters)
        )

    for stream in streams:
        try:
            async with asyncio.timeout(CATCH_UP_SECONDS_MAX):
                for watcher in stream.watchers:
                    while not (
                        watcher.session.created_revision
                        and watcher.session.delivered >= due(watcher.session)
                    ):
                        await stream.changed()
        except TimeoutError:
            verdict.faults.append(f"reliable: still incomplete after a while: {watcher.session}")
            continue
        # etcd's rule: no answer while a watch of the stream was asked to start above the revision.
        if any(watcher.session.request.start_revision > last for watcher in stream.watchers):
            continue
        sessions = [session for watcher in stream.watchers for session in watcher.sessions]
        if etcd_faults and any(session.ended == checks.COMPACTED for session in sessions):
            continue
        if not await stream.ask_progress(last):
            watches = "\n".join(str(watcher.session) for watcher in stream.watchers)
            verdict.faults.append(f"bookmarkable: no progress answer for\n{watches}")
