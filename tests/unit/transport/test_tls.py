"""TLS on every kind of listener, with certificates that openssl makes for the test."""

from __future__ import annotations

import ssl
from pathlib import Path

import grpc
import httpx
import pytest

from bench.programs import free_ports
from kvstore.pb import rpc_pb2
from tests.peers import (
    START_TRIES_MAX,
    Process,
    StartError,
    jotd_command,
    require_native,
)
from tests.pki import make_pki


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pki(tmp_path_factory.mktemp("pki"))


@pytest.mark.parametrize("transport", ["grpcio", "native"])
@pytest.mark.parametrize("mutual", [False, True])
def test_tls(pki: Path, tmp_path: Path, transport: str, mutual: bool) -> None:
    if transport == "native":
        require_native()
    extra = [f"--trusted-ca-file={pki}/ca.crt", "--client-cert-auth"] if mutual else []
    with _serve(pki, tmp_path, [f"--transport={transport}", *extra]) as server:
        assert server.metrics_url is not None
        ca = (pki / "ca.crt").read_bytes()
        own = ((pki / "client.key").read_bytes(), (pki / "client.crt").read_bytes())
        trusted = grpc.ssl_channel_credentials(ca, *own)
        anonymous = grpc.ssl_channel_credentials(ca)
        assert _put(grpc.secure_channel(server.endpoint, trusted)) is None
        refused = _put(grpc.secure_channel(server.endpoint, anonymous))
        assert (refused is not None) == mutual
        assert _put(grpc.insecure_channel(server.endpoint)) is not None

        url = server.metrics_url + "/health"
        assert _health(url, pki, "client") == 200
        assert (_health(url, pki, None) == 200) == (not mutual)
        assert server.stop() == 0


def _put(channel: grpc.Channel) -> str | None:
    """None if a put succeeds, else why it does not."""
    request = rpc_pb2.PutRequest(key=b"a", value=b"1").SerializeToString()
    with channel:
        try:
            channel.unary_unary("/etcdserverpb.KV/Put")(request, timeout=10)
        except grpc.RpcError as error:
            return str(error)
    return None


def _health(url: str, pki: Path, name: str | None) -> int | None:
    """The status of a health check with the certificate of `name`; None if it is refused."""
    context = ssl.create_default_context(cafile=str(pki / "ca.crt"))
    if name is not None:
        context.load_cert_chain(pki / f"{name}.crt", pki / f"{name}.key")
    try:
        return httpx.get(url, verify=context, trust_env=False).status_code
    except httpx.HTTPError:
        return None


def _serve(pki: Path, tmp_path: Path, extra: list[str]) -> Process:
    for last in range(START_TRIES_MAX - 1, -1, -1):
        client, metrics = (f"https://127.0.0.1:{port}" for port in free_ports(2))
        server = Process(
            "jotd",
            [
                *jotd_command(),
                "serve",
                f"--data-dir={tmp_path}/data",
                "--journal=memory",
                f"--listen-client-urls={client}",
                f"--listen-metrics-urls={metrics}",
                f"--cert-file={pki}/server.crt",
                f"--key-file={pki}/server.key",
                *extra,
            ],
            tmp_path / f"{last}.log",
            url=client,
            metrics_url=metrics,
        )
        try:
            return server.start()
        except StartError as error:
            if not last or "address already in use" not in str(error).lower():
                raise
    raise AssertionError("not reached")
