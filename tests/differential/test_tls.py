"""TLS as etcd does it: the same clients are let in, and agree on the same protocol."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import grpc
import httpx
import pytest

from kvstore.pb import rpc_pb2
from tests import peers
from tests.hostile.converse import converse, field_block, frames
from tests.pki import make_ca, make_certificate, make_pki

WAIT_S = 15.0


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = make_pki(tmp_path_factory.mktemp("pki"))
    make_certificate(place, "expired", days=-1)
    make_ca(place, "other")
    make_certificate(place, "stranger", ca="other")
    return place


Servers = dict[str, peers.Process]


@pytest.fixture(scope="module", params=["tls", "mutual"])
def servers(
    request: pytest.FixtureRequest, pki: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Servers]:
    base = tmp_path_factory.mktemp("servers")
    flags = [f"--cert-file={pki}/server.crt", f"--key-file={pki}/server.key"]
    if request.param == "mutual":
        flags += [f"--trusted-ca-file={pki}/ca.crt", "--client-cert-auth"]
    with (
        peers.start_etcd(base, flags, scheme="https") as etcd,
        peers.start_jotd(base / "jotd", flags, journal="memory", scheme="https") as jotd,
    ):
        yield {"etcd": etcd, "jotd": jotd}


def context(pki: Path, name: str | None) -> ssl.SSLContext:
    found = ssl.create_default_context(cafile=str(pki / "ca.crt"))
    if name is not None:
        found.load_cert_chain(pki / f"{name}.crt", pki / f"{name}.key")
    return found


def put(server: peers.Process, pki: Path, name: str | None) -> bool:
    own = () if name is None else [(pki / f"{name}.{end}").read_bytes() for end in ("key", "crt")]
    credentials = grpc.ssl_channel_credentials((pki / "ca.crt").read_bytes(), *own)
    request = rpc_pb2.PutRequest(key=b"a", value=b"1").SerializeToString()
    with grpc.secure_channel(server.endpoint, credentials) as channel:
        try:
            channel.unary_unary("/etcdserverpb.KV/Put")(request, timeout=WAIT_S)
        except grpc.RpcError:
            return False
    return True


@pytest.mark.parametrize("name", ["client", None, "stranger", "expired"])
def test_who_is_let_in(servers: Servers, pki: Path, name: str | None) -> None:
    got = {program: put(server, pki, name) for program, server in servers.items()}
    assert got["jotd"] == got["etcd"]
    assert got["etcd"] or name != "client"


@pytest.mark.parametrize("name", ["client", None])
@pytest.mark.parametrize(
    "offered", [(), ("h2",), ("http/1.1",), ("http/1.1", "h2"), ("spdy/1",), ("spdy/1", "h2")]
)
def test_the_protocol_that_is_agreed_on(
    servers: Servers, pki: Path, name: str | None, offered: tuple[str, ...]
) -> None:
    if peers.transport() == "grpcio" and offered != ("h2",):
        pytest.skip("gRPC core speaks h2 only, and serves HTTP on a port of its own")

    def agreed(server: peers.Process) -> str:
        client = context(pki, name)
        # With 1.3 a client learns only later that its certificate was refused.
        client.maximum_version = ssl.TLSVersion.TLSv1_2
        if offered:
            client.set_alpn_protocols(list(offered))
        with socket.create_connection(("127.0.0.1", server.port), timeout=WAIT_S) as plain:
            try:
                with client.wrap_socket(plain, server_hostname="localhost") as sock:
                    # etcd agrees on nothing with a client of HTTP/1.1, and then speaks it.
                    return sock.selected_alpn_protocol() or "http/1.1"
            except OSError:
                return "refused"

    got = {program: agreed(server) for program, server in servers.items()}
    assert got["jotd"] == got["etcd"]


@pytest.mark.parametrize(
    "opening",
    [b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\0" * 100],
)
def test_what_is_not_tls_is_told_nothing(servers: Servers, opening: bytes) -> None:
    def told(server: peers.Process) -> bytes:
        with socket.create_connection(("127.0.0.1", server.port), timeout=WAIT_S) as sock:
            sock.sendall(opening)
            got = b""
            with contextlib.suppress(ConnectionError):
                while part := sock.recv(1000):
                    got += part
            # An alert, whichever it is.
            return got[:1].replace(b"\x15", b"")

    got = {program: told(server) for program, server in servers.items()}
    assert got["jotd"] == got["etcd"] == b""


@pytest.mark.parametrize("name", ["client", None, "stranger"])
@pytest.mark.parametrize("path", ["/health", "/version", "/nope"])
def test_https_on_the_port_of_clients(
    servers: Servers, pki: Path, name: str | None, path: str
) -> None:
    if peers.transport() == "grpcio":
        pytest.skip("gRPC core serves no HTTP: that has a port of its own")

    def status(server: peers.Process) -> int | None:
        try:
            with httpx.Client(verify=context(pki, name), trust_env=False) as client:
                return client.get(f"https://{server.endpoint}{path}", timeout=WAIT_S).status_code
        except httpx.HTTPError:
            return None

    got = {program: status(server) for program, server in servers.items()}
    assert got["jotd"] == got["etcd"]


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
@pytest.mark.parametrize("path", ["/health", "/livez?verbose", "/version", "/nope", "/health?x=%"])
def test_http2_that_is_not_grpc(servers: Servers, pki: Path, method: str, path: str) -> None:
    """(Without TLS, etcd takes all of HTTP/2 for gRPC; jotd serves this there too.)"""
    if peers.transport() == "grpcio":
        pytest.skip("gRPC core serves no HTTP: that has a port of its own")
    block = field_block(
        (b":method", method.encode()),
        (b":scheme", b"https"),
        (b":path", path.encode()),
        (b":authority", b"localhost"),
    )
    client = context(pki, "client")
    client.set_alpn_protocols(["h2"])

    def said(server: peers.Process) -> tuple[str | None, str | None, str | None, bytes]:
        answer = converse(server.port, frames(block, None), tls=client)
        data = answer.data.replace(b"3.7.3", b"3.7.0")
        kind, allow = answer.headers.get("content-type"), answer.headers.get("allow")
        return answer.headers.get(":status"), kind, allow, data

    got = {program: said(server) for program, server in servers.items()}
    assert got["jotd"] == got["etcd"]
