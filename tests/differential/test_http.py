"""HTTP/1.1 on the port of gRPC's clients: the same bytes to both, the same statuses and texts."""

from __future__ import annotations

import contextlib
import re
import socket
from typing import NamedTuple

import pytest

from tests import peers
from tests.oracle.pair import Pair

pytestmark = pytest.mark.skipif(
    peers.transport() == "grpcio",
    reason="gRPC core serves no HTTP: that has a port of its own",
)

WAIT_S = 15.0
HOST = b" HTTP/1.1\r\nHost: x\r\n"
#: Sent behind each case: whether it is answered tells whether the connection was kept.
LAST = b"GET /nope HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
HEALTH = b"GET /health" + HOST


class Said(NamedTuple):
    """One answer."""

    status: int
    kind: str
    allow: str
    body: bytes


def ask(port: int, request: bytes) -> list[Said]:
    """All answers until the server closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=WAIT_S) as sock:
        with contextlib.suppress(ConnectionError):
            sock.sendall(request + LAST)
        got = b""
        with contextlib.suppress(ConnectionError):
            while part := sock.recv(65536):
                got += part
    bare = request.startswith(b"HEAD ")
    answers = []
    while got:
        head, _, got = got.partition(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        found = {n.lower(): v for n, _, v in (line.partition(": ") for line in lines[1:])}
        length = None if "content-length" not in found else int(found["content-length"])
        if bare and not answers:
            length = 0
        body, got = (got, b"") if length is None else (got[:length], got[length:])
        status = int(lines[0].split(" ")[1])
        body = re.sub(rb"3\.\d+\.\d+", b"3.x", body)
        answers.append(Said(status, found.get("content-type", ""), found.get("allow", ""), body))
    return answers


CASES = {
    **{
        f"{method} {path}": f"{method} {path}".encode() + HOST + b"\r\n"
        for path in ("/health", "/livez", "/readyz/data_corruption", "/version", "/nope", "/")
        for method in ("GET", "HEAD", "POST", "PUT", "DELETE")
    },
    **{
        f"GET {path}": f"GET {path}".encode() + HOST + b"\r\n"
        for path in (
            "/health?exclude=NOSPACE&exclude=x",
            "/health?serializable=true",
            "/livez?verbose",
            "/livez/serializable_read",
            "/livez/nope",
            "/readyz?exclude=nope",
            "/health/",
            "/Health",
            "/%68ealth",
            "/health%3F",
            "http://x/health",
            "/health#x",
        )
    },
    "kept": HEALTH + b"\r\n" + HEALTH + b"\r\n" + b"GET /version" + HOST + b"\r\n",
    "not kept": HEALTH + b"Connection: Close\r\n\r\n",
    "not kept, among others": HEALTH + b"Connection: x, close\r\n\r\n",
    "line feeds only": HEALTH.replace(b"\r", b"") + b"\n",
    "HTTP/1.0": b"GET /health HTTP/1.0\r\n\r\n",
    "no host": b"GET /health HTTP/1.1\r\n\r\n",
    "two hosts": HEALTH + b"Host: y\r\n\r\n",
    "a body": HEALTH + b"Content-Length: 5\r\n\r\nhello",
    "a body for a POST": b"POST /health" + HOST + b"Content-Length: 5\r\n\r\nhello",
    "the same length twice": HEALTH + b"Content-Length: 5\r\n" * 2 + b"\r\nhello",
    "two lengths": HEALTH + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    "a length below zero": HEALTH + b"Content-Length: -1\r\n\r\n",
    "a length with a sign": HEALTH + b"Content-Length: +1\r\n\r\nx",
    "gzip as coding": HEALTH + b"Transfer-Encoding: gzip\r\n\r\n",
    "expecting to be told to go on": HEALTH + b"Expect: 100-continue\r\nContent-Length: 5\r\n\r\n",
    "expecting nonsense": HEALTH + b"Expect: nonsense\r\n\r\n",
    "a body of gigabytes": b"POST /health" + HOST + b"Content-Length: 99999999999\r\n\r\nx",
    "headers of megabytes": HEALTH + b"X: " + b"y" * 2_000_000 + b"\r\n\r\n",
    "a target that is none": b"GET /\x01" + HOST + b"\r\n",
    "a header that is none": HEALTH + b"Bad Name: y\r\n\r\n",
    "another protocol": HEALTH + b"Connection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
}

#: The statuses of jotd's answers, where etcd's are others.
DEVIATIONS = {
    # etcd reads a chunked body, or one that nobody wants, so that the connection can go on.
    "chunks": (
        b"POST /health" + HOST + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        [405],
    ),
    # A bound that is lower than Go's megabyte (I8).
    "17 KiB of headers": (HEALTH + b"X: " + b"y" * 17_000 + b"\r\n\r\n", [431]),
    # etcd closes without a word what its multiplexer takes for no HTTP.
    "a version of no fame": (b"GET /health HTTP/9.9\r\nHost: x\r\n\r\n", [400]),
    "not HTTP": (b"nonsense\r\n\r\n", [400]),
    # No JSON gateway, so no CORS and no redirects of its multiplexer.
    "OPTIONS": (b"OPTIONS /health" + HOST + b"\r\n", [405, 404]),
    "the gateway": (b"POST /v3/kv/range" + HOST + b"Content-Length: 2\r\n\r\n{}", [404, 404]),
    "two slashes": (b"GET //health" + HOST + b"\r\n", [404, 404]),
}


@pytest.mark.parametrize("case", CASES)
def test_the_same_answers(pair: Pair, case: str) -> None:
    etcd, jotd = (ask(client.port, CASES[case]) for client in (pair.left, pair.right))
    assert jotd == etcd
    assert etcd


@pytest.mark.parametrize("case", DEVIATIONS)
def test_a_declared_deviation(pair: Pair, case: str) -> None:
    request, statuses = DEVIATIONS[case]
    etcd, jotd = (ask(client.port, request) for client in (pair.left, pair.right))
    assert [said.status for said in jotd] == statuses
    assert [said.status for said in etcd] != statuses


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
def test_metrics(pair: Pair, method: str) -> None:
    request = method.encode() + b" /metrics" + HOST + b"Connection: close\r\n\r\n"
    for client in (pair.left, pair.right):
        (said,) = ask(client.port, request)
        assert said.status == 200
        assert said.kind.startswith("text/plain; version=0.0.4; charset=utf-8")
        assert (b"# TYPE etcd_" in said.body) == (method != "HEAD")
