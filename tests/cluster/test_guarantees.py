"""What a cluster of real processes owes its clients beyond staying right: who leads, and how soon.

One cluster for all of them; each leaves it whole.
"""

from __future__ import annotations

import asyncio
import re
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from journal.nats import config
from kvstore.pb import rpc_pb2
from tests import peers, wire
from tests.cluster.parts import JotdCluster, first_write, hashes, status
from tests.nats import request
from tests.peers import READY_LINE, Process

pytestmark = [pytest.mark.slow, pytest.mark.timeout(150)]

LEASES = b"/registry/leases/"
PODS = b"/registry/pods/"
HAS_LEADER = (("hasleader", "true"),)
NO_LEADER = (grpc.StatusCode.UNAVAILABLE, "etcdserver: no leader")
NOTICED_S = 10.0
"""A lease, its margin, the patience with having no leader, and what else may be slow."""
SETTLED_S = 20.0
STARTING_AGAIN = "starting again from a snapshot"


async def _settled(cluster: JotdCluster) -> None:
    """All nodes know the same leader."""
    async with asyncio.timeout(SETTLED_S):
        while True:
            # One that starts anew takes no connections.
            with suppress(grpc.aio.AioRpcError):
                known = {(await status(node)).leader for node in cluster.nodes}
                if len(known) == 1 and 0 not in known:
                    return
            await asyncio.sleep(0.05)


async def _started_again(node: Process) -> None:
    """A node serves again after it has started from a snapshot, in the same process.

    Until it meets the trim point it serves what it knows, and answers as a settled one does.
    """
    async with asyncio.timeout(SETTLED_S):
        while READY_LINE not in node.log_text().partition(STARTING_AGAIN)[2]:
            await asyncio.sleep(0.05)


async def _refusal(work: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await work
    return caught.value.code(), str(caught.value.details())


# Reads


@asynccontextmanager
async def _writers(endpoint: str, count: int = 3) -> AsyncIterator[None]:
    """Writes to other shards, all the time."""

    async def write(number: int) -> None:
        async with wire.Client(endpoint) as client:
            while True:
                await client.put(PODS + b"%d" % number, b"x" * 500)
                await asyncio.sleep(0.005)

    tasks = [asyncio.create_task(write(number)) for number in range(count)]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(result, asyncio.CancelledError) for result in results), results


def test_a_consistent_read_through_a_follower_is_soon(cuttable: JotdCluster) -> None:
    """R2: what kube-apiserver does for a list from its cache, for a shard where nothing happens."""
    progress = rpc_pb2.WatchRequest(progress_request=rpc_pb2.WatchProgressRequest())

    async def reached(call: Any, revision: int) -> float:
        """How long until the watch says that it has come to a revision."""
        began = time.monotonic()
        reading = asyncio.create_task(call.read())
        async with asyncio.timeout(10):
            while True:
                await call.write(progress)
                until = time.monotonic() + 0.05
                while (left := until - time.monotonic()) > 0:
                    done, _ = await asyncio.wait({reading}, timeout=left)
                    if not done:
                        break
                    answer = reading.result()
                    assert not answer.events and not answer.canceled
                    if answer.watch_id == -1 and answer.header.revision >= revision:
                        return time.monotonic() - began
                    reading = asyncio.create_task(call.read())

    async def run() -> list[float]:
        revisions = set()
        follower = await cuttable.follower()
        leader = await cuttable.leader()
        took = []
        async with wire.Client(follower.endpoint) as client, _writers(leader.endpoint):
            await client.put(LEASES + b"node-1")
            call = client.stream("Watch", metadata=HAS_LEADER)
            create = rpc_pb2.WatchCreateRequest(
                key=LEASES, range_end=LEASES[:-1] + b"0", progress_notify=True
            )
            await call.write(rpc_pb2.WatchRequest(create_request=create))
            assert (await call.read()).created
            for _ in range(20):
                answer = await client.get(LEASES, LEASES[:-1] + b"0", limit=1)
                revisions.add(answer.header.revision)
                took.append(await reached(call, answer.header.revision))
                await asyncio.sleep(0.03)
            call.cancel()
        assert len(revisions) > 10, "the other shards have to be written meanwhile"
        return took

    took = asyncio.run(run())
    quick = sum(each < 0.2 for each in took)
    print(f"median {statistics.median(took) * 1e3:.0f} ms, {quick} of {len(took)} below 200 ms")


# Leaders


def _start_etcds(directory: Path) -> list[Process]:
    """A real etcd cluster of three."""
    binary = str(peers.require("etcd"))
    ports = peers.free_ports(6)
    peer_urls = [f"http://127.0.0.1:{port}" for port in ports[3:]]
    etcds = []
    for number, (port, peer) in enumerate(zip(ports[:3], peer_urls, strict=True)):
        url = f"http://127.0.0.1:{port}"
        initial = ",".join(f"e{n}={each}" for n, each in enumerate(peer_urls))
        argv = [
            binary,
            f"--name=e{number}",
            f"--data-dir={directory}/e{number}",
            f"--listen-client-urls={url}",
            f"--advertise-client-urls={url}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster={initial}",
        ]
        etcds.append(Process(f"e{number}", argv, directory / f"e{number}.log", url=url))
    for etcd in etcds:
        etcd.start(wait=False)
    for etcd in etcds:
        etcd.wait_ready()
    return etcds


def _ctl(endpoint: str, target: int | str) -> tuple[int, str]:
    """etcdctl move-leader: its exit code and what it says, ids and addresses left out."""
    name = target if isinstance(target, str) else f"{target:x}"
    done = peers.etcdctl(endpoint, "move-leader", name, check=False)
    said = done.stdout + "".join(
        line for line in done.stderr.splitlines(keepends=True) if line.startswith("Error")
    )
    return done.returncode, re.sub(r"127\.0\.0\.1:\d+|\b[0-9a-f]{14,16}\b", "*", said)


async def _moves(nodes: list[Process]) -> list[Any]:
    """Attempts to move the lead, and how each one ended."""
    said = [await status(node) for node in nodes]
    leading = next(s.leader for s in said if s.leader)
    by_id = {s.header.member_id: node for s, node in zip(said, nodes, strict=True)}
    leader = by_id[leading].endpoint
    other_id, other = next((i, n.endpoint) for i, n in by_id.items() if i != leading)
    move = rpc_pb2.MoveLeaderRequest
    results: list[Any] = []
    for endpoint, target in [
        (leader, 0xDEADBEEFDEADBEEF >> 1),
        (leader, "none"),
        (other, other_id),
        (leader, leading),
        (leader, other_id),
    ]:
        if not isinstance(target, str) and target != other_id:
            async with wire.Client(endpoint) as client:
                try:
                    results.append(await client.call("MoveLeader", move(targetID=target)))
                except grpc.aio.AioRpcError as error:
                    results.append((error.code(), error.details()))
        if endpoint == other:
            async with wire.Client(endpoint) as client:
                results.append(await _refusal(client.call("MoveLeader", move(targetID=target))))
        results.append(await asyncio.to_thread(_ctl, endpoint, target))
    assert (await status(by_id[other_id])).leader == other_id
    return results


def test_etcdctl_moves_the_leader_and_says_the_same(cuttable: JotdCluster, tmp_path: Path) -> None:
    async def jotd() -> list[Any]:
        await cuttable.leader()
        await _settled(cuttable)
        results = await _moves(cuttable.nodes)
        await first_write(cuttable.endpoints[0])
        return results

    moved = asyncio.run(jotd())
    assert moved[-1] == (0, "Leadership transferred from * to *\n")
    etcds = _start_etcds(tmp_path)
    try:
        assert moved == asyncio.run(_moves(etcds))
    finally:
        for etcd in etcds:
            etcd.kill9()


@pytest.mark.parametrize("control", ["elsewhere", "there too"])
def test_an_election_of_nats_is_none_of_jotds(cuttable: JotdCluster, control: str) -> None:
    """The nats-server that leads the stream of the data dies: writes stall, and no more.

    And where it leads the control stream as well: nobody could renew a lease, and the leader is
    the first to do so.
    """

    async def run() -> None:
        leader = await cuttable.leader()
        await _settled(cuttable)
        before = await status(leader)
        server = await cuttable.stream_leader()
        others = [each for each in cuttable.nats.servers if each is not server]
        await asyncio.to_thread(
            cuttable.nats.move_leader,
            config.names(cuttable.name, "control").stream,
            server if control == "there too" else others[0],
        )
        server.kill9()
        began = time.monotonic()
        writing = asyncio.create_task(first_write(leader.endpoint))
        seen = set()
        try:
            while not writing.done():
                seen |= {((s := await status(n)).leader, s.raftTerm) for n in cuttable.nodes}
                await asyncio.sleep(0.05)
            print(f"writes stalled for {await writing - began:.1f} s")
        finally:
            await asyncio.to_thread(server.restart)
            await asyncio.to_thread(cuttable.nats.wait_ready)
        await _settled(cuttable)
        seen |= {((s := await status(node)).leader, s.raftTerm) for node in cuttable.nodes}
        # A lease may lapse while the control journal has its own election, in the same term.
        assert seen <= {(before.leader, before.raftTerm), (0, before.raftTerm)}, seen

    asyncio.run(run())


@pytest.mark.parametrize("kind", ["refuse", "stall"])
def test_who_wants_a_leader_is_told_that_there_is_none(cuttable: JotdCluster, kind: str) -> None:
    """`hasleader`, at a node that has lost the journal."""

    async def watch(client: wire.Client, metadata: wire.Metadata | None) -> Any:
        call = client.stream("Watch", metadata=metadata)
        create = rpc_pb2.WatchCreateRequest(key=PODS)
        await call.write(rpc_pb2.WatchRequest(create_request=create))
        assert (await call.read()).created
        return call

    async def run() -> None:
        await _settled(cuttable)
        node = await cuttable.follower()
        async with wire.Client(node.endpoint) as client:
            plain, wanting = await watch(client, None), await watch(client, HAS_LEADER)
            getattr(cuttable.way(node), kind)()
            began = time.monotonic()
            try:
                async with asyncio.timeout(NOTICED_S):
                    with pytest.raises(grpc.aio.AioRpcError):
                        await wanting.read()
                print(f"{kind}: the watch ends after {time.monotonic() - began:.1f} s")
                assert (await wanting.code(), await wanting.details()) == NO_LEADER
                for method, asked in {
                    "Put": rpc_pb2.PutRequest(key=PODS),
                    "Range": rpc_pb2.RangeRequest(key=PODS, serializable=True),
                    "LeaseLeases": rpc_pb2.LeaseLeasesRequest(),
                }.items():
                    refused = _refusal(client.call(method, asked, metadata=HAS_LEADER, timeout=5))
                    assert await refused == NO_LEADER, method
                call = client.stream("Watch", metadata=HAS_LEADER)
                assert (await call.code(), await call.details()) == NO_LEADER
                await client.get(PODS, serializable=True)
            finally:
                cuttable.way(node).heal()
            await _settled(cuttable)
            await client.put(PODS, metadata=HAS_LEADER)
            async with asyncio.timeout(SETTLED_S):
                assert (await plain.read()).events[0].kv.key == PODS
            plain.cancel()

    asyncio.run(run())


# Snapshots


def test_who_is_behind_the_journals_beginning_starts_from_a_snapshot(
    cuttable: JotdCluster,
) -> None:
    """I5: a node that was cut off, one that was down, and a new one."""
    stream = config.names(cuttable.name, "data").stream

    async def ends() -> tuple[int, int]:
        async def look(client: Any) -> Any:
            return (await request(client, f"$JS.API.STREAM.INFO.{stream}"))["state"]

        state = await asyncio.to_thread(cuttable.nats.ask, look)
        return state["first_seq"], state["last_seq"]

    async def run() -> None:
        await _settled(cuttable)
        leader = await cuttable.leader()
        cut, down = (node for node in cuttable.nodes if node is not leader)
        down.kill9()
        # One that is only frozen may find all it missed in its socket.
        cuttable.way(cut).refuse()
        try:
            _, last = await ends()
            async with wire.Client(leader.endpoint) as client, asyncio.timeout(60):
                while (await ends())[0] <= last:
                    keys = (PODS + b"%d" % number for number in range(150))
                    await asyncio.gather(*(client.put(key, b"x" * 100) for key in keys))
                    await client.delete(PODS, PODS + b"2")
        finally:
            cuttable.way(cut).heal()
        await cuttable.restart(down)
        new = await asyncio.to_thread(cuttable.add)
        await _started_again(cut)
        await _settled(cuttable)
        assert len(cuttable.endpoints) == 4
        assert len(await hashes(cuttable.endpoints)) == 1
        for node in (cut, down, new):
            # The last time that it started.
            found = re.findall(r'"snapshot-sequence": (\d+)', node.log_text())
            assert int(found[-1]) > 0, node.log_text()

    asyncio.run(run())
