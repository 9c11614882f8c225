"""An unmodified kube-apiserver at work on the store; then the same after the store's kill -9.

Every scenario runs twice against one store and one apiserver: in the phase ``fresh``, and in the
phase ``after_kill9``, when the store was killed under load and started again on the same address
and data while the apiserver ran on. What was acknowledged across the kill is checked on its own
(I1, I3, I4).
"""

from __future__ import annotations

import base64
import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import peers
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

pytestmark = pytest.mark.slow

CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"

#: A phase ends by waiting for it; and what is in flight around the kill has to live that long.
EVENT_TTL_SECONDS = 15
WRITERS = 4
DOWN_SECONDS = 1.0

Update = Callable[[Object], None]


@dataclass
class Cluster:
    store: peers.Process
    server: peers.Process
    client: Client
    tmp_path: Path
    killed: bool = False


@dataclass
class Crash:
    """What was seen around the kill."""

    ledgers: list[Ledger]
    inventory: dict[str, list[Object]]
    event_path: str
    event_after: Object
    watch_events: list[Object]
    uncached_names: list[str]
    uncached_events: list[Object]
    last: Object


@pytest.fixture(scope="module")
def cluster(store: peers.Process, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    tmp_path = tmp_path_factory.mktemp("kube")
    server = kube.start_kube_apiserver(tmp_path, store.url, f"--event-ttl={EVENT_TTL_SECONDS}s")
    client = Client(server.url)
    until("the default namespace", lambda: client.get(f"{CORE}/namespaces/default"))
    with server:
        yield Cluster(store, server, client, tmp_path)
        client.close()


@pytest.fixture(scope="module", params=["fresh", "after_kill9"])
def phase(request: pytest.FixtureRequest, cluster: Cluster) -> str:
    if request.param == "fresh":
        assert not cluster.killed, "the fresh phase must come first"
    else:
        request.getfixturevalue("crash")
    return str(request.param)


@pytest.fixture(scope="module")
def expiring(cluster: Cluster, phase: str) -> Iterator[tuple[str, kube.Watch]]:
    """The path of an event that was written at the start of the phase, and nothing renews.

    And a watch of it from there on: it may be over, and the past compacted, when its test comes.
    """
    namespace = new_namespace(cluster.client, f"e2e-expiring-{slug(phase)}")
    path, event = create_event(cluster.client, namespace, "expires")
    directory, name = path.rsplit("/", 1)
    since, only = str(resource_version(event)), f"metadata.name={name}"
    with cluster.client.watch(directory, resourceVersion=since, fieldSelector=only) as watch:
        yield path, watch


@pytest.fixture
def client(cluster: Cluster, expiring: tuple[str, kube.Watch]) -> Client:
    return cluster.client


@pytest.fixture
def ns(client: Client, phase: str, request: pytest.FixtureRequest) -> str:
    """A namespace of the test's own; what is in it stays, so the kill has something to lose."""
    test = request.node.originalname.removeprefix("test_")
    return new_namespace(client, f"e2e-{slug(test)}-{slug(phase)}")


def slug(text: str) -> str:
    return text.replace("_", "-")


def pod(name: str) -> Object:
    container = {"name": "main", "image": "registry.invalid/none"}
    return {
        "metadata": {"name": name, "labels": {"app": "e2e"}},
        "spec": {"containers": [container]},
    }


def conflict(call: Callable[[], object]) -> kube.ApiError:
    with pytest.raises(kube.ApiError) as caught:
        call()
    assert caught.value.code == 409, caught.value
    return caught.value


def store_revision(cluster: Cluster) -> int:
    out = peers.etcdctl(cluster.store.endpoint, "get", "none", "-w", "json").stdout
    return int(json.loads(out)["header"]["revision"])


# Objects


def test_readyz(cluster: Cluster, client: Client) -> None:
    text = client.text("/readyz?verbose")
    assert "[+]etcd ok" in text
    assert "[+]etcd-readiness ok" in text
    assert "[-]" not in text
    assert client.get("/version")["gitVersion"].startswith("v1.")


def test_storage_size_is_reported(client: Client) -> None:
    # The apiserver asks Maintenance.Status for it.
    metrics = client.text("/metrics")
    assert kube.metric_sum(metrics, "apiserver_storage_size_bytes") > 0


def test_namespace_life(client: Client, phase: str) -> None:
    assert {"default", "kube-system"} <= set(names(client.get(f"{CORE}/namespaces")["items"]))
    name = new_namespace(client, f"e2e-short-{slug(phase)}")
    path = f"{CORE}/namespaces/{name}"
    assert client.get(path)["status"]["phase"] == "Active"
    assert client.delete(path)["status"]["phase"] == "Terminating"
    # The controller that empties a namespace does not run; the finalizer is ours to remove.
    dying = client.get(path)
    dying["spec"]["finalizers"] = []
    client.replace(f"{path}/finalize", dying)
    assert client.request("GET", path).status_code == 404


def test_pods(client: Client, ns: str) -> None:
    path = f"{CORE}/namespaces/{ns}/pods"
    for n in range(10):
        created = client.create(path, pod(f"pod-{n}"))
        assert created["status"]["phase"] == "Pending"
    patched = client.patch(f"{path}/pod-3", {"metadata": {"labels": {"color": "red"}}})
    assert patched["metadata"]["labels"] == {"app": "e2e", "color": "red"}
    status = client.patch(f"{path}/pod-4/status", {"status": {"message": "waits for a node"}})
    assert resource_version(status) > resource_version(patched)

    assert names(client.get(path, labelSelector="color=red")["items"]) == ["pod-3"]
    assert len(client.get(path, fieldSelector="status.phase=Pending")["items"]) == 10

    gone = client.delete(f"{path}/pod-0", gracePeriodSeconds="0")
    assert gone["metadata"]["name"] == "pod-0"
    assert client.request("GET", f"{path}/pod-0").status_code == 404
    assert names(client.get(path)["items"]) == [f"pod-{n}" for n in range(1, 10)]
    assert client.get(f"{path}/pod-4")["status"]["message"] == "waits for a node"


def test_nodes(client: Client, phase: str) -> None:
    path = f"{CORE}/nodes"
    made = [f"e2e-{slug(phase)}-{n}" for n in range(5)]
    for name in made:
        client.create(path, {"metadata": {"name": name, "labels": {"phase": phase}}})
    ready = {"type": "Ready", "status": "True", "reason": "Tested", "message": ""}
    client.patch(f"{path}/{made[0]}/status", {"status": {"conditions": [ready]}})
    assert client.get(f"{path}/{made[0]}")["status"]["conditions"][0]["reason"] == "Tested"
    assert names(client.get(path, labelSelector=f"phase={phase}")["items"]) == made


def test_leases(client: Client, ns: str) -> None:
    path = f"{LEASES}/namespaces/{ns}/leases"
    held = client.create(path, lease("leader", "one"))
    stale = json.loads(json.dumps(held))
    held["spec"]["renewTime"] = "2026-01-01T00:00:00.000000Z"
    renewed = client.replace(f"{path}/leader", held)
    assert resource_version(renewed) > resource_version(held)
    stale["spec"]["holderIdentity"] = "two"
    conflict(lambda: client.replace(f"{path}/leader", stale))
    assert client.get(f"{path}/leader")["spec"]["holderIdentity"] == "one"


def test_events_have_a_store_lease(cluster: Cluster, client: Client, ns: str) -> None:
    path, created = create_event(client, ns, "leased")
    assert client.get(path)["metadata"]["resourceVersion"] == str(resource_version(created))
    key = f"/registry/events/{ns}/leased"
    found = json.loads(peers.etcdctl(cluster.store.endpoint, "get", key, "-w", "json").stdout)
    lease_id = found["kvs"][0]["lease"]
    life = json.loads(
        peers.etcdctl(
            cluster.store.endpoint,
            "lease",
            "timetolive",
            format(lease_id, "x"),
            "--keys",
            "-w",
            "json",
        ).stdout
    )
    assert base64.b64encode(key.encode()).decode() in life["keys"]
    assert 0 < life["ttl"] <= life["granted-ttl"]


def test_custom_resources(client: Client, ns: str, phase: str) -> None:
    group = f"{slug(phase)}.e2e.example"
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    client.create(
        CRDS,
        {
            "metadata": {"name": f"widgets.{group}"},
            "spec": {
                "group": group,
                "scope": "Namespaced",
                "names": {"plural": "widgets", "kind": "Widget", "listKind": "WidgetList"},
                "versions": [
                    {
                        "name": "v1",
                        "served": True,
                        "storage": True,
                        "schema": {"openAPIV3Schema": schema},
                    }
                ],
            },
        },
    )
    path = f"/apis/{group}/v1/namespaces/{ns}/widgets"
    head = {"apiVersion": f"{group}/v1", "kind": "Widget"}
    until("the resource is served", lambda: client.get(path)["items"] == [])
    start = client.get(path)["metadata"]["resourceVersion"]
    for n in range(5):
        until(
            "the resource can be written",
            lambda n=n: client.create(path, {**head, **configmap(f"w-{n}"), "spec": {"n": n}}),
        )
    client.patch(f"{path}/w-2", {"spec": {"n": 22}})
    client.delete(f"{path}/w-4")
    assert names(client.get(path)["items"]) == ["w-0", "w-1", "w-2", "w-3"]
    with client.watch(path, resourceVersion=start) as watch:
        events = watch.wait_count(7)
    assert [(kind, name) for kind, name, _ in brief(events)] == [
        *(("ADDED", f"w-{n}") for n in range(5)),
        ("MODIFIED", "w-2"),
        ("DELETED", "w-4"),
    ]
    # Deleting the definition deletes its objects: the apiserver itself is the controller.
    client.delete(f"{CRDS}/widgets.{group}")
    until("it is gone", lambda: client.request("GET", f"{CRDS}/widgets.{group}").is_client_error)


# Optimistic locks


def test_create_twice(client: Client, ns: str) -> None:
    client.create(configmaps(ns), configmap("one"))
    error = conflict(lambda: client.create(configmaps(ns), configmap("one")))
    assert error.reason == "AlreadyExists"


def test_stale_update_and_delete(client: Client, ns: str) -> None:
    old = client.create(configmaps(ns), configmap("one", v="0"))
    client.replace(configmaps(ns, "one"), {**old, "data": {"v": "1"}})
    update = conflict(lambda: client.replace(configmaps(ns, "one"), {**old, "data": {"v": "2"}}))
    assert update.reason == "Conflict"
    preconditions = {"preconditions": {"resourceVersion": str(resource_version(old))}}
    conflict(lambda: client.delete(configmaps(ns, "one"), preconditions))
    assert client.get(configmaps(ns, "one"))["data"] == {"v": "1"}


def test_concurrent_increments(client: Client, ns: str) -> None:
    """Read, add one, write back: with the lock kept, no increment is lost."""
    each, path = 10, configmaps(ns, "counter")
    client.create(configmaps(ns), configmap("counter", n="0"))
    conflicts: list[int] = []
    errors: list[BaseException] = []

    def increment() -> None:
        done = 0
        try:
            while done < each:
                now = client.get(path)
                now["data"]["n"] = str(int(now["data"]["n"]) + 1)
                try:
                    client.replace(path, now)
                    done += 1
                except kube.ApiError as error:
                    if error.code != 409:
                        raise
                    conflicts.append(1)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=increment) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert client.get(path)["data"]["n"] == str(4 * each)


# Lists


def fill(client: Client, ns: str, count: int) -> list[Object]:
    return [
        bare(client.create(configmaps(ns), configmap(f"cm-{n:03}", v="0"))) for n in range(count)
    ]


@contextlib.contextmanager
def writes_going_on(client: Client, ns: str, count: int) -> Iterator[None]:
    """Meanwhile objects are deleted, changed and created in the namespace that `fill` filled."""
    stop = threading.Event()
    errors: list[BaseException] = []

    def work() -> None:
        try:
            for n in range(count):
                if stop.is_set():
                    return
                if n % 3 == 0:
                    client.delete(configmaps(ns, f"cm-{n:03}"))
                elif n % 3 == 1:
                    client.patch(configmaps(ns, f"cm-{n:03}"), {"data": {"v": "changed"}})
                else:
                    client.create(configmaps(ns), configmap(f"cm-{n:03}-new"))
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    assert not errors


@pytest.mark.parametrize("served_from", ["store", "cache"])
def test_pages_are_of_one_revision(client: Client, phase: str, served_from: str) -> None:
    """With resourceVersionMatch=Exact and a continue token, pages show one moment, under writes."""
    ns = new_namespace(client, f"e2e-pages-{served_from}-{slug(phase)}")
    count = 60
    made = fill(client, ns, count)
    params = {"limit": "7"}
    if served_from == "store":
        params |= {
            "resourceVersion": str(resource_version(made[-1])),
            "resourceVersionMatch": "Exact",
        }
    seen: list[Object] = []
    revisions = set()
    with writes_going_on(client, ns, count):
        for n, page in enumerate(kube.pages(client, configmaps(ns), **params)):
            if n == 0:
                # Only now, so that the first page is sure to show what `fill` made.
                client.create(configmaps(ns), configmap("cm-zzz-late"))
            seen += page["items"]
            revisions.add(resource_version(page))
            assert len(page["items"]) <= 7
    assert len(revisions) == 1
    revision = revisions.pop()
    at_once = client.get(
        configmaps(ns), resourceVersion=str(revision), resourceVersionMatch="Exact"
    )
    assert seen == at_once["items"]
    if served_from == "store":
        assert seen == made


def test_pages_of_events_come_from_the_store(client: Client, ns: str) -> None:
    """Events are not cached: each page is a Range with a limit at one revision."""
    for n in range(30):
        create_event(client, ns, f"ev-{n:02}")
    path = f"{CORE}/namespaces/{ns}/events"
    got: list[str] = []
    left: list[int | None] = []
    revisions = set()
    for page in kube.pages(client, path, limit="8"):
        got += names(page["items"])
        left.append(page["metadata"].get("remainingItemCount"))
        revisions.add(resource_version(page))
        create_event(client, ns, f"later-{len(got)}")
        client.delete(f"{path}/ev-{len(left):02}")
    assert got == [f"ev-{n:02}" for n in range(30)]
    assert len(revisions) == 1
    assert left[0] == 22
    assert left[-1] is None


def test_reads_of_the_past(client: Client, ns: str) -> None:
    versions = [client.create(configmaps(ns), configmap("one", v="0"))]
    for n in range(1, 6):
        versions.append(client.patch(configmaps(ns, "one"), {"data": {"v": str(n)}}))
    client.delete(configmaps(ns, "one"))
    for version in versions:
        then = client.get(
            configmaps(ns),
            resourceVersion=str(resource_version(version)),
            resourceVersionMatch="Exact",
        )
        assert then["items"] == [bare(version)]
        assert resource_version(then) == resource_version(version)


def test_a_list_sees_ones_own_write(client: Client, ns: str) -> None:
    """A list without resourceVersion is consistent, and answered from the apiserver's cache.

    The cache knows that it is fresh enough from the store's answer to a manual progress request
    (R7); if that were not to work, each such list would fall back to reading the store.
    """

    def consistent_reads() -> float:
        metrics = client.text("/metrics")
        name = "apiserver_watch_cache_consistent_read_total"
        return kube.metric_sum(metrics, name, 'resource="configmaps"', 'success="true"')

    before = consistent_reads()
    rounds = 20
    for n in range(rounds):
        created = client.create(configmaps(ns), configmap(f"cm-{n:02}"))
        listed = client.get(configmaps(ns))
        assert names(listed["items"]) == [f"cm-{m:02}" for m in range(n + 1)]
        assert resource_version(listed) >= resource_version(created)
    assert consistent_reads() - before >= rounds


def test_delete_collection(client: Client, ns: str) -> None:
    for n in range(20):
        body = configmap(f"cm-{n:02}")
        body["metadata"]["labels"] = {"half": str(n % 2)}
        client.create(configmaps(ns), body)
    client.delete(configmaps(ns), labelSelector="half=0")
    left = [f"cm-{n:02}" for n in range(1, 20, 2)]
    # kube-root-ca.crt would be here as well if its controller ran.
    assert names(client.get(configmaps(ns))["items"]) == left
    client.delete(configmaps(ns))
    assert client.get(configmaps(ns))["items"] == []


# Watches


def change(client: Client, ns: str) -> list[tuple[str, str, str]]:
    """Writes of all kinds; returns what a watch must then report."""
    expected = []
    for n in range(5):
        made = client.create(configmaps(ns), configmap(f"w-{n}", v="0"))
        expected.append(("ADDED", f"w-{n}", str(resource_version(made))))
        made = client.patch(configmaps(ns, f"w-{n}"), {"data": {"v": "1"}})
        expected.append(("MODIFIED", f"w-{n}", str(resource_version(made))))
    for n in range(0, 5, 2):
        client.delete(configmaps(ns, f"w-{n}"))
        # The delete's own revision: it is one of the events, and is not in the answer.
        expected.append(("DELETED", f"w-{n}", "?"))
    return expected


def check_events(events: list[Object], expected: list[tuple[str, str, str]]) -> None:
    got = brief(events)
    revisions = [int(revision) for _, _, revision in got]
    assert revisions == sorted(set(revisions))
    masked = [(kind, name, "?" if kind == "DELETED" else rv) for kind, name, rv in got]
    assert masked == expected


def test_watch_from_the_past(client: Client, ns: str) -> None:
    start = client.create(configmaps(ns), configmap("mark"))
    expected = change(client, ns)
    revision = str(resource_version(start))
    with client.watch(configmaps(ns), resourceVersion=revision) as watch:
        check_events(watch.wait_count(len(expected)), expected)


def test_watch_of_events_from_the_past(client: Client, ns: str) -> None:
    """Events are not cached: this is a watch of the store, from a past revision."""
    path = f"{CORE}/namespaces/{ns}/events"
    start = create_event(client, ns, "mark")[1]
    expected = []
    for n in range(10):
        made = create_event(client, ns, f"ev-{n}")[1]
        expected.append(("ADDED", f"ev-{n}", str(resource_version(made))))
    made = client.patch(f"{path}/ev-3", {"message": "it happened again"})
    expected.append(("MODIFIED", "ev-3", str(resource_version(made))))
    client.delete(f"{path}/ev-4")
    expected.append(("DELETED", "ev-4", "?"))
    with client.watch(path, resourceVersion=str(resource_version(start))) as watch:
        events = watch.wait_count(len(expected))
        check_events(events, expected)
        # The deleted object comes from prev_kv: whole, as it was last.
        assert events[-1]["object"]["message"] == "something happened"
        live = create_event(client, ns, "live")[1]
        assert brief(watch.wait_count(len(expected) + 1))[-1] == (
            "ADDED",
            "live",
            str(resource_version(live)),
        )


def test_live_watch_with_selector(client: Client, ns: str) -> None:
    """An object that a change moves out of a selector's sight is reported as deleted."""
    with client.watch(configmaps(ns), labelSelector="see=me", resourceVersion="0") as watch:
        body = configmap("one")
        body["metadata"]["labels"] = {"see": "me"}
        client.create(configmaps(ns), body)
        watch.wait_count(1)
        client.patch(configmaps(ns, "one"), {"metadata": {"labels": {"see": "not"}}})
        client.create(configmaps(ns), configmap("two"))
        client.patch(configmaps(ns, "one"), {"metadata": {"labels": {"see": "me"}}})
        events = watch.wait_count(3)
    assert [(kind, name) for kind, name, _ in brief(events)] == [
        ("ADDED", "one"),
        ("DELETED", "one"),
        ("ADDED", "one"),
    ]


def test_streaming_list(client: Client, ns: str) -> None:
    made = fill(client, ns, 20)
    with client.watch(
        configmaps(ns),
        sendInitialEvents="true",
        resourceVersionMatch="NotOlderThan",
        allowWatchBookmarks="true",
    ) as watch:
        events = watch.wait(lambda seen: any(e["type"] == "BOOKMARK" for e in seen))
        assert sorted(brief(events[:-1])) == [
            ("ADDED", *kube.name_and_version(item)) for item in made
        ]
        end = events[-1]["object"]
        assert end["metadata"]["annotations"] == {"k8s.io/initial-events-end": "true"}
        assert resource_version(end) >= resource_version(made[-1])
        later = client.create(configmaps(ns), configmap("later"))
        event = watch.wait_count(len(made) + 1)[-1]
        assert brief([event]) == [("ADDED", "later", str(resource_version(later)))]


def test_too_old_revisions_are_gone(cluster: Cluster, client: Client, ns: str) -> None:
    """After a compaction: 410 for a watch, a continue token and an exact list (R8)."""
    path = f"{CORE}/namespaces/{ns}/events"
    first = resource_version(create_event(client, ns, "ev-0")[1])
    for n in range(1, 6):
        last = resource_version(create_event(client, ns, f"ev-{n}")[1])
    token = client.get(path, limit="2")["metadata"]["continue"]
    create_event(client, ns, "later")
    peers.etcdctl(cluster.store.endpoint, "compaction", str(store_revision(cluster)))

    with client.watch(path, resourceVersion=str(first)) as watch:
        error = watch.wait(lambda events: len(events) > 0)[0]
    assert error["type"] == "ERROR"
    assert error["object"]["code"] == 410
    assert error["object"]["reason"] == "Expired"

    for params in (
        {"limit": "2", "continue": token},
        {"resourceVersion": str(last), "resourceVersionMatch": "Exact"},
    ):
        with pytest.raises(kube.ApiError) as caught:
            client.get(path, **params)
        assert caught.value.code == 410
        assert caught.value.reason == "Expired"
    # What is not that old is still there.
    assert len(client.get(path)["items"]) == 7


def test_future_revision(client: Client, ns: str) -> None:
    """A list that must not be older than a revision far ahead is refused, not answered early."""
    with pytest.raises(kube.ApiError) as caught:
        client.get(configmaps(ns), resourceVersion="1000000000")
    assert caught.value.code == 504
    assert "Too large resource version" in str(caught.value)


def test_events_expire(client: Client, expiring: tuple[str, kube.Watch]) -> None:
    """The store deletes what is attached to a lease that nothing keeps alive; a watch says so."""
    path, watch = expiring
    events = watch.wait(
        lambda seen: any(e["type"] == "DELETED" for e in seen), timeout=4 * EVENT_TTL_SECONDS
    )
    assert brief(events)[-1][:2] == ("DELETED", "expires")
    assert client.request("GET", path).status_code == 404


# kill -9


def take_inventory(client: Client) -> dict[str, list[Object]]:
    """Everything that the scenarios left behind, by list path. Events, which expire, left out."""
    paths = (
        *(f"{CORE}/{kind}" for kind in ("namespaces", "nodes", "pods", "configmaps")),
        f"{LEASES}/leases",
        CRDS,
    )
    found = {}
    for path in paths:
        items = client.get(path)["items"]
        found[path] = [item for item in items if is_ours(item["metadata"])]
    return found


def is_ours(meta: Object) -> bool:
    return (meta.get("namespace") or meta["name"]).startswith("e2e-")


@pytest.fixture(scope="module")
def crash(cluster: Cluster) -> Crash:
    """Kills the store under load, starts it again, and hands over what everybody saw."""
    cluster.killed = True
    client, store = cluster.client, cluster.store
    ns = new_namespace(client, "crash")
    event_path = create_event(client, ns, "kept")[0]
    quiet = new_namespace(client, "e2e-quiet")
    fill(client, quiet, 10)
    client.create(f"{CORE}/namespaces/{quiet}/pods", pod("quiet"))
    client.create(f"{CORE}/nodes", {"metadata": {"name": "e2e-quiet"}})
    client.create(f"{LEASES}/namespaces/{quiet}/leases", lease("quiet", "one"))
    inventory = take_inventory(client)
    start = client.get(configmaps(ns))["metadata"]["resourceVersion"]

    stop = threading.Event()
    ledgers = [Ledger() for _ in range(WRITERS)]
    writers = [
        threading.Thread(target=write_until, args=(stop, client, ns, who, ledger))
        for who, ledger in enumerate(ledgers)
    ]
    watch = client.watch(configmaps(ns), resourceVersion=start)
    events_path = f"{CORE}/namespaces/{ns}/events"
    uncached = client.watch(events_path, resourceVersion=start)
    with watch, uncached:
        for writer in writers:
            writer.start()
        until("writes are under way", lambda: len(ledgers[0].history) >= 20)
        store.kill9()
        time.sleep(DOWN_SECONDS)
        acked = [len(ledger.history) for ledger in ledgers]
        store.restart()
        for ledger, count in zip(ledgers, acked, strict=True):
            until(
                "every writer writes again",
                lambda ledger=ledger, count=count: len(ledger.history) >= count + 20,
            )
        stop.set()
        for writer in writers:
            writer.join()
        until("the apiserver is ready again", lambda: client.text("/readyz"))
        event_after = client.get(event_path)

        last = client.create(configmaps(ns), configmap("the-last"))
        watch.wait(lambda seen: any(item[1] == "the-last" for item in brief(seen)))
        uncached_names = [f"after-{n}" for n in range(5)]
        for name in uncached_names:
            create_event(client, ns, name)
        uncached.wait(lambda seen: any(item[1] == "after-4" for item in brief(seen)))
    return Crash(
        ledgers=ledgers,
        inventory=inventory,
        event_path=event_path,
        event_after=event_after,
        watch_events=list(watch.events),
        uncached_names=uncached_names,
        uncached_events=list(uncached.events),
        last=last,
    )


def test_no_acknowledged_write_is_lost(cluster: Cluster, crash: Crash) -> None:
    """I1: each object is as its last acknowledged write left it, or as the one in doubt would."""
    items = cluster.client.get(configmaps("crash"))["items"]
    assert sum(len(ledger.doubt) for ledger in crash.ledgers) > 0, "nothing was under way"
    kube.check_objects(crash.ledgers, items)


def test_what_stood_still_stands(cluster: Cluster, crash: Crash) -> None:
    """I5: everything that nobody wrote meanwhile is as it was, to its resourceVersion."""
    assert sum(map(len, crash.inventory.values())) >= 14
    for path, items in crash.inventory.items():
        for item in items:
            meta = item["metadata"]
            name, space = meta["name"], meta.get("namespace")
            base, kind = path.rsplit("/", 1)
            where = f"{base}/namespaces/{space}/{kind}" if space else path
            assert bare(cluster.client.get(f"{where}/{name}")) == item
    assert crash.event_after["metadata"]["name"] == "kept"


def test_revisions_go_on_rising(crash: Crash) -> None:
    """I3: no revision is used twice, and a later write never has a lower one."""
    seen: set[int] = set()
    for ledger in crash.ledgers:
        revisions = [revision for _, revision in ledger.history if revision]
        assert revisions == sorted(revisions)
        assert seen.isdisjoint(revisions)
        seen.update(revisions)
    assert resource_version(crash.last) > max(seen)


def test_watches_recover(crash: Crash) -> None:
    """I4: a watch open across the kill has every acknowledged change once, in order."""
    kube.check_watch(crash.ledgers, crash.watch_events)


def test_watches_of_the_store_recover(crash: Crash) -> None:
    """The same for events, whose watch the apiserver passes on to the store."""
    got = [(kind, name) for kind, name, _ in brief(crash.uncached_events)]
    assert got == [("ADDED", name) for name in crash.uncached_names]


def test_the_apiserver_compacts_and_a_second_one_joins(cluster: Cluster, crash: Crash) -> None:
    """Kubernetes' own compactor (a transaction on compact_rev_key, then Compact), by a second
    apiserver on the same store with a short interval; the first one learns of it by its watch.
    """
    client = cluster.client
    ns = new_namespace(client, "compacted")
    first = client.create(configmaps(ns), configmap("one"))
    path, event = create_event(client, ns, "one")
    old = {"resourceVersion": str(resource_version(event)), "resourceVersionMatch": "Exact"}
    client.patch(path, {"message": "changed"})
    assert client.get(f"{CORE}/namespaces/{ns}/events", **old)["items"] == [bare(event)]
    with kube.start_kube_apiserver(
        cluster.tmp_path, cluster.store.url, "--etcd-compaction-interval=2s"
    ) as second:
        other = Client(second.url)
        assert other.get(configmaps(ns, "one")) == first

        def compacted() -> bool:
            client.patch(path, {"message": str(time.monotonic())})
            answer = client.request("GET", f"{CORE}/namespaces/{ns}/events", params=old)
            return answer.status_code == 410

        until("the past is compacted", compacted)
        # Two caches of one store: each sees what the other wrote, at once.
        for n in range(5):
            writer, reader = (client, other) if n % 2 else (other, client)
            writer.create(configmaps(ns), configmap(f"cm-{n}"))
            assert f"cm-{n}" in names(reader.get(configmaps(ns))["items"])
        other.close()
