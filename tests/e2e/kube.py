"""A real kube-apiserver, and just enough of a Kubernetes client to examine it.

The server is started by ``tools/run-kube-apiserver``, the very script that the README names.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests import peers

Object = dict[str, Any]

CORE = "/api/v1"
LEASES = "/apis/coordination.k8s.io/v1"

TOKEN = "jotd-admin"
SCRIPT = peers.ROOT / "tools" / "run-kube-apiserver"
MERGE_PATCH = {"Content-Type": "application/merge-patch+json"}


class ApiError(AssertionError):
    """An answer that is not 2xx. `code` is the HTTP status, `status` the Status object."""

    def __init__(self, response: httpx.Response) -> None:
        self.code = response.status_code
        try:
            self.status: Object = response.json()
        except ValueError:
            self.status = {}
        self.reason = self.status.get("reason")
        super().__init__(f"{response.request.method} {response.request.url}: {response.text}")


class Client:
    """JSON over HTTPS. Safe to share between threads."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._http = self._new_http()

    def _new_http(self) -> httpx.Client:
        return httpx.Client(
            verify=False,
            base_url=self.url,
            headers={"Authorization": f"Bearer {TOKEN}"},
            timeout=30,
            # The environment may name a proxy; 127.0.0.1 needs none.
            trust_env=False,
        )

    def close(self) -> None:
        self._http.close()

    def request(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        content = None if body is None else json.dumps(body)
        all_headers = {"Content-Type": "application/json", **(headers or {})}
        return self._http.request(method, path, content=content, params=params, headers=all_headers)

    def call(self, method: str, path: str, body: object = None, **kw: Any) -> Object:
        response = self.request(method, path, body, **kw)
        if not response.is_success:
            raise ApiError(response)
        answer = response.json()
        assert isinstance(answer, dict)
        return answer

    def text(self, path: str) -> str:
        response = self.request("GET", path)
        if not response.is_success:
            raise ApiError(response)
        return response.text

    def get(self, path: str, **params: str) -> Object:
        return self.call("GET", path, params=params)

    def create(self, path: str, body: Object) -> Object:
        return self.call("POST", path, body)

    def replace(self, path: str, body: Object) -> Object:
        return self.call("PUT", path, body)

    def patch(self, path: str, body: Object) -> Object:
        return self.call("PATCH", path, body, headers=MERGE_PATCH)

    def delete(self, path: str, body: object = None, **params: str) -> Object:
        return self.call("DELETE", path, body, params=params)

    def watch(self, path: str, **params: str) -> Watch:
        return Watch(self._new_http(), path, params)


class Watch:
    """A watch that a thread reads. `events` has what came, in order; `ended` is set when it ended.

    The server closes it after 120 s, so that a forgotten one costs little.
    """

    def __init__(self, http: httpx.Client, path: str, params: Mapping[str, str]) -> None:
        self.events: list[Object] = []
        self.ended = False
        self._http = http
        self._path = path
        self._params = {"watch": "1", "timeoutSeconds": "120", **params}
        self._news = threading.Condition()
        self._socket: socket.socket | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self) -> None:
        try:
            with self._http.stream(
                "GET", self._path, params=self._params, timeout=httpx.Timeout(30, read=150)
            ) as response:
                stream = response.extensions["network_stream"]
                self._socket = stream.get_extra_info("socket")
                if not response.is_success:
                    response.read()
                    self._add({"type": "ERROR", "object": response.json()})
                    return
                for line in response.iter_lines():
                    self._add(json.loads(line))
        except (httpx.HTTPError, OSError, ValueError) as error:
            if not self._closed:
                self._add({"type": "BROKEN", "object": {"message": repr(error)}})
        finally:
            with self._news:
                self.ended = True
                self._news.notify_all()
            self._http.close()

    def _add(self, event: Object) -> None:
        with self._news:
            self.events.append(event)
            self._news.notify_all()

    def wait(self, done: Callable[[list[Object]], bool], timeout: float = 30) -> list[Object]:
        """The events so far, once `done` holds for them; AssertionError if it never does."""
        events = self.wait_or_end(done, timeout)
        assert done(events), f"watch {self._path} {self._params} has only {brief(events)}"
        return events

    def wait_or_end(self, done: Callable[[list[Object]], bool], timeout: float) -> list[Object]:
        """The events so far, once `done` holds for them, the watch has ended, or time is up."""
        with self._news:
            self._news.wait_for(lambda: done(self.events) or self.ended, timeout)
            return list(self.events)

    def resumed(
        self, client: Client, done: Callable[[list[Object]], bool], timeout: float = 60
    ) -> list[Object]:
        """All events from the start of this watch until `done` holds for them; closes it.

        What ended before is resumed where it was, as an informer does. AssertionError if time is
        up, or if something is lost (410).
        """
        deadline = time.monotonic() + timeout
        watch, events, since = self, list[Object](), self._params["resourceVersion"]
        while True:
            with watch:
                seen = watch.wait_or_end(
                    lambda seen: done([*events, *seen]), deadline - time.monotonic()
                )
            for event in seen:
                if event["type"] in ("ERROR", "BROKEN"):
                    assert event["object"].get("code") != 410, event
                    # Whoever cannot serve it now is not to be hammered.
                    time.sleep(0.2)
                else:
                    events.append(event)
                    since = event["object"]["metadata"]["resourceVersion"]
            if done(events):
                return events
            assert time.monotonic() < deadline, f"watch {self._path} has only {brief(events)}"
            watch = client.watch(self._path, **{**self._params, "resourceVersion": since})

    def wait_count(self, count: int, timeout: float = 30) -> list[Object]:
        """The events so far without bookmarks, once there are `count` of them."""

        def real(events: list[Object]) -> list[Object]:
            return [event for event in events if event["type"] != "BOOKMARK"]

        return real(self.wait(lambda events: len(real(events)) >= count, timeout))

    def close(self) -> None:
        self._closed = True
        if self._socket is not None:
            try:
                # Only this wakes a thread that is blocked in recv.
                self._socket.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        self._thread.join(10)


def brief(events: list[Object]) -> list[tuple[str, str, str]]:
    """Type, name and resourceVersion of each event."""
    return [(event["type"], *name_and_version(event["object"])) for event in events]


def name_and_version(item: Object) -> tuple[str, str]:
    meta = item.get("metadata") or {}
    return meta.get("name") or item.get("reason", ""), meta.get("resourceVersion", "")


def resource_version(item: Object) -> int:
    """An object's or a list's resourceVersion: the store's revision."""
    return int(item["metadata"]["resourceVersion"])


def start_kube_apiserver(tmp_path: Path, store_url: str, *extra_args: str) -> peers.Process:
    """An unmodified kube-apiserver on a store, ready. Skips the test if it could not be had."""
    peers.require("kube-apiserver")
    peers.require("openssl")
    for last in range(peers.START_TRIES_MAX - 1, -1, -1):
        port = peers.free_ports(1)[0]
        url = f"https://127.0.0.1:{port}"
        work = tmp_path / f"kube-{port}"
        process = peers.Process(
            "kube-apiserver",
            [str(SCRIPT), *extra_args],
            tmp_path / f"kube-{port}.log",
            url=url,
            env={"STORE": store_url, "PORT": str(port), "DIR": str(work)},
            ready=passes_readyz,
        )
        try:
            return process.start(timeout=120)
        except peers.StartError as error:
            if not last or "address already in use" not in str(error):
                raise
    raise AssertionError("not reached")


def passes_readyz(process: peers.Process) -> bool:
    client = Client(process.url)
    try:
        return client.request("GET", "/readyz").is_success
    except httpx.HTTPError:
        return False
    finally:
        client.close()


def until(what: str, done: Callable[[], Any], timeout: float = 60) -> Any:
    """Calls `done` until it returns something true, and returns that.

    An `ApiError` or a broken connection counts as not yet; what is still raised when time is up
    is raised.
    """
    deadline = time.monotonic() + timeout
    while True:
        try:
            if result := done():
                return result
            failure: Exception = AssertionError(f"not in {timeout} s: {what}")
        except (ApiError, httpx.HTTPError) as error:
            failure = error
        if time.monotonic() > deadline:
            raise failure
        time.sleep(0.1)


def metric_sum(text: str, name: str, *labels: str) -> float:
    """The sum of all samples of a metric whose label text contains all of `labels`."""
    total = 0.0
    for line in text.splitlines():
        if line.startswith(name + "{") and all(label in line for label in labels):
            total += float(line.rsplit(" ", 1)[1])
    return total


def configmap(name: str, **data: str) -> Object:
    return {"metadata": {"name": name}, "data": data}


def pages(client: Client, path: str, **params: str) -> Iterator[Object]:
    """The pages of a list, one by one, so that a test can act between them."""
    page = client.get(path, **params)
    yield page
    # The token says which revision the list is of; saying it twice is an error.
    params = {key: params[key] for key in params if not key.startswith("resourceVersion")}
    while token := page["metadata"].get("continue"):
        page = client.get(path, **params, **{"continue": token})
        yield page


def new_namespace(client: Client, name: str) -> str:
    client.create(f"{CORE}/namespaces", {"metadata": {"name": name}})
    return name


def configmaps(namespace: str, name: str = "") -> str:
    return f"{CORE}/namespaces/{namespace}/configmaps" + (f"/{name}" if name else "")


def create_event(client: Client, namespace: str, name: str) -> tuple[str, Object]:
    """Writes a core/v1 Event; returns its path and the object."""
    path = f"{CORE}/namespaces/{namespace}/events"
    body = {
        "metadata": {"name": name, "namespace": namespace, "labels": {"e2e": "yes"}},
        "involvedObject": {"kind": "Pod", "namespace": namespace, "name": "some-pod"},
        "reason": "Tested",
        "message": "something happened",
        "type": "Normal",
    }
    return f"{path}/{name}", client.create(path, body)


def lease(name: str, holder: str) -> Object:
    return {
        "metadata": {"name": name},
        "spec": {"holderIdentity": holder, "leaseDurationSeconds": 40},
    }


def bare(item: Object) -> Object:
    """An object as an item of a list, which says kind and apiVersion once for all."""
    return {key: value for key, value in item.items() if key not in ("kind", "apiVersion")}


def names(items: list[Object]) -> list[str]:
    return [item["metadata"]["name"] for item in items]


@dataclass
class Ledger:
    """What one writer was told about the objects that it alone writes.

    `acked` has the state of each name after its last acknowledged write (None: deleted), `doubt`
    the state that an unanswered write would have made; a name with a doubt is not written again.
    """

    acked: dict[str, Object | None] = field(default_factory=dict)
    doubt: dict[str, dict[str, str] | None] = field(default_factory=dict)
    #: (name, resourceVersion) of each acknowledged write, in order; a delete has None.
    history: list[tuple[str, int | None]] = field(default_factory=list)


def write_until(stop: threading.Event, client: Client, ns: str, who: int, ledger: Ledger) -> None:
    """Creates, changes and deletes objects, a new name each round; writes down what it is told."""
    turn = 0
    while not stop.is_set():
        turn += 1
        name = f"w{who}-{turn:04}"
        path = configmaps(ns, name)
        steps: list[tuple[str, str, Object | None, dict[str, str] | None]] = [
            ("POST", configmaps(ns), configmap(name, v="0"), {"v": "0"}),
            ("PATCH", path, {"data": {"v": "1"}}, {"v": "1"}),
        ]
        if turn % 3 == 0:
            steps.append(("DELETE", path, None, None))
        for method, where, body, state in steps:
            try:
                headers = MERGE_PATCH if method == "PATCH" else None
                answer = client.call(method, where, body, headers=headers)
            except (ApiError, httpx.HTTPError):
                ledger.doubt[name] = state
                # The store is away: no need to hammer.
                stop.wait(0.1)
                break
            deleted = method == "DELETE"
            ledger.acked[name] = None if deleted else answer
            ledger.history.append((name, None if deleted else resource_version(answer)))


def check_objects(ledgers: Sequence[Ledger], items: list[Object]) -> None:
    """Each object is as its last acknowledged write left it, or as the one in doubt would."""
    found = {item["metadata"]["name"]: item for item in items}
    for ledger in ledgers:
        for name, acked in ledger.acked.items():
            now = found.get(name)
            if now != (acked and bare(acked)):
                assert name in ledger.doubt, f"{name} was {acked}, is {now}"
                assert (now and now["data"]) == ledger.doubt[name]
        # A create that nobody acknowledged may have happened, but no more than that.
        for name in ledger.doubt.keys() - ledger.acked.keys():
            assert name not in found or found[name]["data"] == {"v": "0"}


def check_watch(ledgers: Sequence[Ledger], watched: list[Object]) -> None:
    """Events of a watch over all that `ledgers` tell: every acknowledged change once, in order."""
    events = brief([event for event in watched if event["type"] != "BOOKMARK"])
    assert {kind for kind, _, _ in events} <= {"ADDED", "MODIFIED", "DELETED"}
    revisions = [int(revision) for _, _, revision in events]
    assert revisions == sorted(set(revisions))
    for ledger in ledgers:
        for name, state in ledger.acked.items():
            told = [revision for other, revision in ledger.history if other == name]
            mine = [event for event in events if event[1] == name]
            reported = [int(rv) for kind, _, rv in mine if kind != "DELETED"]
            in_order = [revision for revision in told if revision]
            if name in ledger.doubt:
                # One more change may have happened than was acknowledged.
                assert reported[: len(in_order)] == in_order
                assert len(mine) <= len(told) + 1
            else:
                assert reported == in_order
                assert (mine[-1][0] == "DELETED") == (state is None)
