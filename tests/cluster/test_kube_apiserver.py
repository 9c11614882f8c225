"""Unmodified kube-apiservers on three nodes, whose leader dies and changes under them.

Two of them on one store: one is told of all nodes, the leader last, the other of followers only.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from tests import peers
from tests.cluster.parts import JotdCluster, hashes
from tests.e2e import kube
from tests.e2e.kube import (
    CORE,
    LEASES,
    Client,
    Ledger,
    Object,
    bare,
    brief,
    configmap,
    configmaps,
    create_event,
    lease,
    names,
    new_namespace,
    resource_version,
    until,
    write_until,
)
from tests.nats import NatsCluster

pytestmark = pytest.mark.slow

WORKS_AGAIN_S_MAX = 40.0


@dataclass
class World:
    nodes: JotdCluster
    clients: dict[str, Client]
    """By which nodes their apiserver was told of."""
    servers: list[peers.Process]

    def leader(self) -> peers.Process:
        return asyncio.run(self.nodes.leader())

    def alive(self) -> list[str]:
        return [node.endpoint for node in self.nodes.nodes if node.alive]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    peers.require("kube-apiserver")
    tmp_path = tmp_path_factory.mktemp("kube")
    with contextlib.ExitStack() as stack:
        nats = NatsCluster(tmp_path / "nats")
        stack.callback(nats.stop)
        nodes = JotdCluster(tmp_path, nats=nats)
        stack.callback(nodes.stop)
        leader = asyncio.run(nodes.leader())
        followers = [node for node in nodes.nodes if node is not leader]
        told = {"all": [*followers, leader], "followers": followers}

        def start(name: str) -> peers.Process:
            urls = ",".join(node.url for node in told[name])
            return kube.start_kube_apiserver(tmp_path / name, urls)

        with ThreadPoolExecutor() as pool:
            starts = {name: pool.submit(start, name) for name in told}
        clients, servers = {}, []
        for name, started in starts.items():
            server = stack.enter_context(started.result())
            servers.append(server)
            clients[name] = Client(server.url)
            stack.callback(clients[name].close)
        for client in clients.values():
            until("the default namespace", lambda c=client: c.get(f"{CORE}/namespaces/default"))
        yield World(nodes, clients, servers)


@pytest.mark.parametrize("told", ["all", "followers"])
def test_objects(world: World, told: str) -> None:
    client = world.clients[told]
    ns = new_namespace(client, f"objects-{told}")
    assert ns in names(client.get(f"{CORE}/namespaces")["items"])
    start = client.get(configmaps(ns))["metadata"]["resourceVersion"]
    with client.watch(configmaps(ns), resourceVersion=start) as watch:
        made = client.create(configmaps(ns), configmap("one", v="0"))
        assert client.get(configmaps(ns, "one")) == made
        changed = client.replace(configmaps(ns, "one"), {**made, "data": {"v": "1"}})
        with pytest.raises(kube.ApiError) as caught:
            client.replace(configmaps(ns, "one"), {**made, "data": {"v": "2"}})
        assert (caught.value.code, caught.value.reason) == (409, "Conflict")
        # The list is consistent, whichever node it comes from.
        assert client.get(configmaps(ns))["items"] == [bare(changed)]
        client.delete(configmaps(ns, "one"))
        assert client.get(configmaps(ns))["items"] == []
        events = brief(watch.wait_count(3))
    assert events[:2] == [
        ("ADDED", "one", str(resource_version(made))),
        ("MODIFIED", "one", str(resource_version(changed))),
    ]
    assert events[2][:2] == ("DELETED", "one")

    path = f"{LEASES}/namespaces/{ns}/leases"
    held = client.create(path, lease("leader", "one"))
    held["spec"]["holderIdentity"] = "two"
    assert client.replace(f"{path}/leader", held)["spec"]["holderIdentity"] == "two"
    with pytest.raises(kube.ApiError) as caught:
        client.replace(f"{path}/leader", held)
    assert caught.value.code == 409


def test_what_one_apiserver_writes_the_other_sees_at_once(world: World) -> None:
    ns = new_namespace(world.clients["all"], "seen")
    both = itertools.cycle(world.clients.values())
    for n in range(10):
        writer, reader = next(both), next(both)
        next(both)
        made = writer.create(configmaps(ns), configmap(f"cm-{n}"))
        assert names(reader.get(configmaps(ns))["items"]) == [f"cm-{m}" for m in range(n + 1)]
        assert reader.get(configmaps(ns, f"cm-{n}")) == made


@contextlib.contextmanager
def writers(world: World, ns: str) -> Iterator[list[Ledger]]:
    """Two clients of each apiserver write until the end."""
    stop = threading.Event()
    ledgers, threads = [], []
    for who, client in enumerate([*world.clients.values()] * 2):
        ledger = Ledger()
        ledgers.append(ledger)
        threads.append(threading.Thread(target=write_until, args=(stop, client, ns, who, ledger)))
    for thread in threads:
        thread.start()
    try:
        yield ledgers
    finally:
        stop.set()
        for thread in threads:
            thread.join()


@contextlib.contextmanager
def watches(world: World, path: str, since: str) -> Iterator[list[tuple[kube.Watch, Client]]]:
    """A watch by each apiserver, with its client."""
    with contextlib.ExitStack() as stack:
        yield [
            (stack.enter_context(client.watch(path, resourceVersion=since)), client)
            for client in world.clients.values()
        ]


def ended_by(last: Object) -> Callable[[list[Object]], bool]:
    """Whether events end with that of this object."""

    def ended(events: list[Object]) -> bool:
        return bool(events) and brief(events[-1:]) == [("ADDED", *kube.name_and_version(last))]

    return ended


def member_id(node: peers.Process) -> int:
    told = json.loads(peers.etcdctl(node.endpoint, "endpoint", "status", "-w=json").stdout)
    return int(told[0]["Status"]["header"]["member_id"])


def all_write(ledgers: Sequence[Ledger], more: int = 10) -> None:
    """Waits until each has had that many more writes acknowledged."""
    before = [len(ledger.history) for ledger in ledgers]
    until(
        "every writer writes",
        lambda: all(
            len(ledger.history) >= count + more
            for ledger, count in zip(ledgers, before, strict=True)
        ),
        WORKS_AGAIN_S_MAX,
    )


def check(
    world: World, ns: str, ledgers: Sequence[Ledger], watched: Sequence[list[Object]]
) -> None:
    """Nothing that was acknowledged is lost, anywhere (I1, I3, I4, I5)."""
    for client in world.clients.values():
        kube.check_objects(ledgers, client.get(configmaps(ns))["items"])
    for events in watched:
        kube.check_watch(ledgers, events)
    revisions = [rv for ledger in ledgers for _, rv in ledger.history if rv]
    assert len(revisions) == len(set(revisions))
    assert len(asyncio.run(hashes(world.alive()))) == 1


def test_the_leader_dies(world: World) -> None:
    first = world.clients["all"]
    quiet = new_namespace(first, "quiet")
    still = [bare(first.create(configmaps(quiet), configmap(f"cm-{n:02}"))) for n in range(20)]
    told_of = [create_event(first, quiet, f"ev-{n:02}")[1] for n in range(12)]
    ns = new_namespace(first, "dies")
    start = first.get(configmaps(ns))["metadata"]["resourceVersion"]

    clients = [*world.clients.values()]
    exact = {"resourceVersion": still[-1]["metadata"]["resourceVersion"]}
    lists = [
        kube.pages(client, path, limit="5", **params)
        for client in clients
        for path, params in (
            (configmaps(quiet), {**exact, "resourceVersionMatch": "Exact"}),
            (f"{CORE}/namespaces/{quiet}/events", {}),
        )
    ]
    seen = [next(pages) for pages in lists]
    # Events are not cached: their watches, and pages, are of the store itself.
    with (
        watches(world, configmaps(ns), start) as cached,
        watches(world, f"{CORE}/namespaces/{ns}/events", start) as uncached,
    ):
        with writers(world, ns) as ledgers:
            all_write(ledgers)
            before = create_event(first, ns, "before")[1]
            leader = world.leader()
            # So that every writer has a write under way in it.
            world.nodes.freeze(leader)
            time.sleep(0.3)
            began = time.monotonic()
            leader.kill9()
            all_write(ledgers)
            print(f"every writer has written again {time.monotonic() - began:.1f} s after the kill")
            for client in clients:
                until("it is ready", lambda c=client: c.text("/readyz"), WORKS_AGAIN_S_MAX)
            # What was listed before is gone on with, at the same revision.
            first.delete(configmaps(quiet, still[-1]["metadata"]["name"]))
            create_event(first, quiet, "ev-zz-late")
            for page, pages in zip(seen, lists, strict=True):
                rest = list(pages)
                assert {resource_version(one) for one in rest} == {resource_version(page)}
                page["items"] += [item for one in rest for item in one["items"]]
            assert world.leader() is not leader
        last = first.create(configmaps(ns), configmap("the-last"))
        watched = [watch.resumed(client, ended_by(last)) for watch, client in cached]
        after = [create_event(client, ns, f"after-{n}")[1] for n, client in enumerate(clients)]
        for watch, client in uncached:
            assert brief(watch.resumed(client, ended_by(after[-1]))) == [
                ("ADDED", *kube.name_and_version(event)) for event in (before, *after)
            ]
    for configs, events in (seen[:2], seen[2:]):
        assert configs["items"] == still
        assert names(events["items"]) == names(told_of)

    assert any(ledger.doubt for ledger in ledgers), "nothing was under way"
    check(world, ns, ledgers, watched)
    for client in clients:
        assert client.get(configmaps(quiet))["items"] == still[:-1]
        one = client.create(configmaps(quiet), configmap("lock", v="0"))
        client.replace(configmaps(quiet, "lock"), {**one, "data": {"v": "1"}})
        with pytest.raises(kube.ApiError) as caught:
            client.replace(configmaps(quiet, "lock"), {**one, "data": {"v": "2"}})
        assert caught.value.code == 409
        client.delete(configmaps(quiet, "lock"))


@pytest.mark.parametrize("how", ["move-leader", "SIGTERM"])
def test_leadership_is_handed_over(world: World, how: str) -> None:
    """To a node that was dead meanwhile, under load."""
    for node in world.nodes.nodes:
        if not node.alive:
            node.restart()
    client = world.clients["all"]
    ns = new_namespace(client, f"handed-over-{how.lower()}")
    start = client.get(configmaps(ns))["metadata"]["resourceVersion"]
    with watches(world, configmaps(ns), start) as open_ones:
        with writers(world, ns) as ledgers:
            all_write(ledgers)
            leader = world.leader()
            if how == "SIGTERM":
                assert leader.stop() == 0
            else:
                heir = next(node for node in world.nodes.nodes if node is not leader)
                member = member_id(heir)
                everybody = ",".join(world.nodes.endpoints)
                peers.etcdctl(everybody, "move-leader", format(member, "x"))
                assert world.leader() is heir
            all_write(ledgers)
        # A server of grpc.aio cancels what arrives in the moment in which it stops.
        if how != "SIGTERM" or peers.transport() == "native":
            assert not any(ledger.doubt for ledger in ledgers), "a call failed"
        last = client.create(configmaps(ns), configmap("the-last"))
        watched = [watch.resumed(on, ended_by(last)) for watch, on in open_ones]
    check(world, ns, ledgers, watched)


def test_no_watch_of_the_store_has_ended_for_want_of_a_leader(world: World) -> None:
    """The apiservers' own, over all of the above: those of nodes that lived have gone on."""
    for server in world.servers:
        assert "etcdserver: no leader" not in server.log_text()
