"""What is counted under etcd's names is counted as etcd counts it."""

from __future__ import annotations

import re
import urllib.request
from collections.abc import Callable, Iterator

import pytest

from kvstore.pb import rpc_pb2 as rpc
from tests import peers
from tests.differential.strategies import wrap
from tests.oracle.client import Client

#: delete_total is left out: jotd counts keys, etcd requests.
COUNTED = ("put", "range", "txn")

Counts = dict[str, float]


def key(name: bytes) -> rpc.RangeRequest:
    return rpc.RangeRequest(key=name)


def put(name: bytes, **fields: object) -> rpc.PutRequest:
    return rpc.PutRequest(key=name, value=b"" if "ignore_value" in fields else b"v", **fields)  # type: ignore[arg-type]


def delete(name: bytes, **fields: object) -> rpc.DeleteRangeRequest:
    return rpc.DeleteRangeRequest(key=name, **fields)  # type: ignore[arg-type]


def version_is(name: bytes, number: int, range_end: bytes = b"") -> rpc.Compare:
    target = rpc.Compare.VERSION
    return rpc.Compare(key=name, target=target, version=number, range_end=range_end)


def txn(
    compare: list[rpc.Compare], success: list[object], failure: list[object] | None = None
) -> rpc.TxnRequest:
    return rpc.TxnRequest(
        compare=compare,
        success=[wrap(op) for op in success],  # type: ignore[arg-type]
        failure=[wrap(op) for op in failure or []],  # type: ignore[arg-type]
    )


MISSING, THERE = version_is(b"none", 0), version_is(b"a", 0)

#: In this order: "a" and "b" are there from the first two on.
REQUESTS: dict[str, tuple[str, object]] = {
    "a put": ("KV.Put", put(b"a")),
    "another": ("KV.Put", put(b"b")),
    "a put that asks for what was there": ("KV.Put", put(b"a", prev_kv=True)),
    "a put that keeps the value": ("KV.Put", put(b"a", ignore_value=True)),
    "a get": ("KV.Range", key(b"a")),
    "a get of nothing": ("KV.Range", key(b"none")),
    "a list": ("KV.Range", rpc.RangeRequest(key=b"a", range_end=b"z")),
    "a list of a revision to come": ("KV.Range", rpc.RangeRequest(key=b"a", revision=1 << 40)),
    "a delete of nothing": ("KV.DeleteRange", delete(b"none")),
    "a delete that asks for what was there": ("KV.DeleteRange", delete(b"b", prev_kv=True)),
    "a txn of nothing": ("KV.Txn", txn([], [])),
    "a txn of one get": ("KV.Txn", txn([], [key(b"a")])),
    "a txn of two gets": ("KV.Txn", txn([], [key(b"a"), key(b"b")])),
    "a txn that compares and gets": ("KV.Txn", txn([MISSING], [key(b"a")])),
    "a txn of a list": ("KV.Txn", txn([], [rpc.RangeRequest(key=b"a", range_end=b"z")])),
    "a txn of one put": ("KV.Txn", txn([], [put(b"a")])),
    "a txn of two puts": ("KV.Txn", txn([], [put(b"a"), put(b"b")])),
    "a create": ("KV.Txn", txn([MISSING], [put(b"c")], [key(b"c")])),
    "a create of what is there": ("KV.Txn", txn([THERE], [put(b"a")], [key(b"a")])),
    "compares, one fails": ("KV.Txn", txn([MISSING, THERE, MISSING], [put(b"a")], [put(b"b")])),
    "compares that hold": ("KV.Txn", txn([MISSING, MISSING], [put(b"a")])),
    "a compare of a range": ("KV.Txn", txn([version_is(b"x", 0, b"y")], [put(b"a")])),
    "a put in a txn that asks for what was there": (
        "KV.Txn",
        txn([], [put(b"a", prev_kv=True)]),
    ),
    "a put in a txn that keeps the value": ("KV.Txn", txn([], [put(b"a", ignore_value=True)])),
    "a delete in a txn that asks for what was there": (
        "KV.Txn",
        txn([], [delete(b"b", prev_kv=True)]),
    ),
    "a delete of a range in a txn": ("KV.Txn", txn([], [delete(b"k", range_end=b"z"), put(b"k")])),
    "a txn in a txn": (
        "KV.Txn",
        txn([MISSING], [txn([MISSING], [put(b"a"), key(b"a")]), key(b"b")]),
    ),
    "a delete of a range": ("KV.DeleteRange", delete(b"a", range_end=b"z")),
}


class Counted:
    """One server, and what a request adds to its counters."""

    def __init__(self, server: peers.Process) -> None:
        self._url = f"{server.metrics_url}/metrics"
        self._client = Client(server.endpoint)

    def counts(self) -> Counts:
        with urllib.request.urlopen(self._url, timeout=15) as answer:
            text = answer.read().decode()
        return {
            name: float(value)
            for name, value in re.findall(r"^etcd_mvcc_(\w+)_total (\S+)$", text, re.M)
            if name in COUNTED
        }

    def of(self, method: str, request: object) -> Counts:
        before = self.counts()
        self._client.call(method, request)  # type: ignore[arg-type]
        return {name: value - before[name] for name, value in self.counts().items()}

    def close(self) -> None:
        self._client.close()


@pytest.fixture(scope="module")
def both(
    start_oracle: Callable[[], peers.Process], start_subject: Callable[[], peers.Process]
) -> Iterator[tuple[Counted, Counted]]:
    with start_oracle() as oracle, start_subject() as subject:
        counted = (Counted(oracle), Counted(subject))
        yield counted
        for one in counted:
            one.close()


def test_requests_count_as_they_do_in_etcd(both: tuple[Counted, Counted]) -> None:
    oracle, subject = both
    expected, found = (
        {name: server.of(*request) for name, request in REQUESTS.items()}
        for server in (oracle, subject)
    )
    assert expected["a put"] == {"put": 1, "range": 0, "txn": 0}
    assert expected["compares that hold"] == {"put": 1, "range": 2, "txn": 1}
    assert found == expected
