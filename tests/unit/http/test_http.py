"""The HTTP side over real sockets: etcd's answers, and limits on what a client may do."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
import uvloop

from kvstore.http import listener
from kvstore.http.endpoints import Endpoints
from kvstore.http.listener import HttpServer
from kvstore.http.local import LocalClient
from kvstore.http.message import Request, Response
from kvstore.metrics.collector import Metrics
from kvstore.metrics.histogram import Histogram
from kvstore.metrics.rpc import RpcCounters
from kvstore.metrics.sources import HealthCounts, ServerStats
from kvstore.metrics.stalls import LoopStalls
from kvstore.pb import rpc_pb2
from kvstore.transport.address import ListenUrl, parse_listen_url
from kvstore.transport.seam import Call, Code, Kind, Stream, StreamHandler

ANY = parse_listen_url("http://127.0.0.1:0")


class Service:
    """Answers what health checks ask, as healthy as it is told to be."""

    max_request_bytes = 1000

    def __init__(self) -> None:
        self.alarms: list[int] = []
        self.leader = 7
        self.learner = False
        self.refuse_reads: set[bool] = set()

    def kind(self, method: str) -> Kind | None:
        return Kind.UNARY

    def unimplemented(self, method: str) -> str:
        return method

    def on_stream(self, stream: Stream) -> StreamHandler:
        raise NotImplementedError

    def on_calls(self, calls: Sequence[Call]) -> None:
        for call in calls:
            name = call.method.rpartition("/")[2]
            if name == "Range":
                request = rpc_pb2.RangeRequest.FromString(call.request)
                if request.serializable in self.refuse_reads:
                    call.fail(Code.UNAVAILABLE, "etcdserver: request timed out")
                else:
                    call.finish(b"")
            elif name == "Alarm":
                members = [rpc_pb2.AlarmMember(memberID=1, alarm=alarm) for alarm in self.alarms]
                call.finish(rpc_pb2.AlarmResponse(alarms=members).SerializeToString())
            else:
                status = rpc_pb2.StatusResponse(
                    version="3.7.2",
                    leader=self.leader,
                    isLearner=self.learner,
                    storageVersion="3.7.0",
                )
                call.finish(status.SerializeToString())


@asynccontextmanager
async def serving(service: Service) -> AsyncIterator[tuple[httpx.AsyncClient, HealthCounts]]:
    counts = HealthCounts()
    stalls = LoopStalls(asyncio.get_running_loop())
    metrics = Metrics(
        lambda: ServerStats(version="3.7.2"), RpcCounters(), counts, stalls, Histogram()
    )
    server = HttpServer(Endpoints(LocalClient(service), counts, metrics).handle)
    await server.start([ANY], None)
    try:
        async with httpx.AsyncClient(base_url=str(server.bound[0]), trust_env=False) as client:
            yield client, counts
    finally:
        await server.stop()


def run(main: object) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(asyncio.wait_for(main(), 60))  # type: ignore[operator]


def test_health_says_what_etcd_says() -> None:
    async def main() -> None:
        service = Service()
        async with serving(service) as (client, counts):
            good = await client.get("/health")
            assert (good.status_code, good.text) == (200, '{"health":"true","reason":""}')

            service.alarms = [rpc_pb2.NOSPACE]
            bad = await client.get("/health")
            assert bad.status_code == 503
            assert bad.text == '{"health":"false","reason":"ALARM NOSPACE"}\n'
            assert (await client.get("/health?exclude=NOSPACE")).status_code == 200
            assert (await client.get("/health?exclude=CORRUPT")).status_code == 503

            service.alarms = []
            service.leader = 0
            bad = await client.get("/health")
            assert bad.json()["reason"] == "RAFT NO LEADER"
            assert (await client.get("/health?serializable=true")).status_code == 200

            service.leader = 7
            service.refuse_reads = {False}
            bad = await client.get("/health")
            assert bad.json()["reason"] == "RANGE ERROR:etcdserver: request timed out"
            assert (await client.get("/health?serializable=true")).status_code == 200
            assert (counts.successes, counts.failures) == (4, 4)

            refused = await client.post("/health")
            assert refused.status_code == 405

    run(main)


def test_livez_and_readyz_run_named_checks() -> None:
    async def main() -> None:
        service = Service()
        async with serving(service) as (client, counts):
            for path in (
                "/livez",
                "/readyz",
                "/livez/serializable_read",
                "/readyz/data_corruption",
                "/readyz/serializable_read",
                "/readyz/linearizable_read",
                "/readyz/non_learner",
            ):
                good = await client.get(path)
                assert (good.status_code, good.text) == (200, "ok\n"), path
            assert (await client.get("/livez/linearizable_read")).status_code == 404
            verbose = await client.get("/livez?verbose")
            assert verbose.text == "[+]serializable_read ok\nok\n"

            service.refuse_reads = {False}
            assert (await client.get("/livez")).status_code == 200
            bad = await client.get("/readyz")
            assert bad.status_code == 503
            assert "[-]linearizable_read failed: etcdserver: request timed out\n" in bad.text
            assert "[+]serializable_read ok\n" in bad.text
            assert (await client.get("/readyz?exclude=linearizable_read")).status_code == 200
            assert (await client.get("/readyz?exclude=nosuch&exclude=")).status_code == 503

            service.refuse_reads = set()
            service.alarms = [rpc_pb2.CORRUPT]
            bad = await client.get("/readyz/data_corruption")
            assert bad.status_code == 503
            assert bad.text == "[-]data_corruption failed: alarm activated: CORRUPT\n\n"
            assert (await client.get("/livez")).status_code == 200

            assert counts.last["readyz", "data_corruption"] is False
            assert counts.checks["readyz", "linearizable_read", "error"] == 2

    run(main)


def test_version_metrics_and_nothing_else() -> None:
    async def main() -> None:
        async with serving(Service()) as (client, _):
            version = await client.get("/version")
            assert version.json() == {
                "etcdserver": "3.7.2",
                "etcdcluster": "3.7.0",
                "storage": "3.7.0",
            }
            scrape = await client.get("/metrics")
            assert scrape.headers["content-type"].startswith("text/plain; version=0.0.4")
            assert 'etcd_server_version{server_version="3.7.2"} 1.0' in scrape.text
            head = await client.head("/metrics")
            assert (head.status_code, head.content) == (200, b"")
            assert int(head.headers["content-length"]) > 1000
            missing = await client.get("/nowhere")
            assert (missing.status_code, missing.text) == (404, "404 page not found\n")

    run(main)


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n", b"200"),
        (b"GET /health HTTP/1.0\r\n\r\n", b"200"),
        (b"POST /health HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", b"405"),
        (b"GET /health HTTP/1.1\r\n\r\n", b"400"),
        (b"\xff\xff\r\n\r\n", b"400"),
        (b"GET /h HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 60_000 + b"\r\n\r\n", b"431"),
        (b"GET http://[ HTTP/1.1\r\nHost: x\r\n\r\n", b"400"),
        (b"GET /health?" + b"a=1&" * 200 + b" HTTP/1.1\r\nHost: x\r\n\r\n", b"400"),
    ],
)
def test_malformed_requests_get_an_answer(sent: bytes, status: bytes) -> None:
    async def main() -> None:
        async with serving(Service()) as (client, _):
            url = client.base_url
            reader, writer = await asyncio.open_connection(url.host, url.port)
            writer.write(sent)
            got = await reader.read()
            writer.close()
            assert got.split(b" ", 2)[1] == status
            assert (await client.get("/health")).status_code == 200

    run(main)


def test_a_client_that_says_nothing_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "REQUEST_S_MAX", 0.1)

    async def main() -> None:
        async with serving(Service()) as (client, _):
            url = client.base_url
            reader, writer = await asyncio.open_connection(url.host, url.port)
            writer.write(b"GET /hea")
            assert await asyncio.wait_for(reader.read(), 10) == b""
            writer.close()

    run(main)


def test_connections_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "CONNECTIONS_MAX", 3)

    async def main() -> None:
        async with serving(Service()) as (client, _):
            url = client.base_url
            idle = [await asyncio.open_connection(url.host, url.port) for _ in range(3)]
            reader, writer = await asyncio.open_connection(url.host, url.port)
            assert await asyncio.wait_for(reader.read(), 10) == b""
            writer.close()
            for _, open_writer in idle:
                open_writer.close()
            for _ in range(100):
                try:
                    assert (await client.get("/health")).status_code == 200
                    return
                except httpx.HTTPError:
                    await asyncio.sleep(0.05)
            raise AssertionError("the places of closed connections never came free")

    run(main)


def test_a_fault_in_a_handler_is_a_500() -> None:
    async def broken(request: Request) -> Response:
        raise RuntimeError("a fault")

    async def main() -> None:
        server = HttpServer(broken)
        await server.start([ANY], None)
        async with httpx.AsyncClient(base_url=str(server.bound[0]), trust_env=False) as client:
            assert (await client.get("/")).status_code == 500
        await server.stop()

    run(main)


def test_a_port_in_use_is_refused_and_a_unix_socket_served(tmp_path: Path) -> None:
    async def hello(request: Request) -> Response:
        return Response(body=json.dumps(dict(request.query)).encode())

    async def main() -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            url = ListenUrl("http", "127.0.0.1", taken.getsockname()[1])
            with pytest.raises(OSError, match="address already in use"):
                await HttpServer(hello).start([ANY, url], None)
        server = HttpServer(hello)
        await server.start([ListenUrl("unix", path=f"{tmp_path}/http.sock")], None)
        transport = httpx.AsyncHTTPTransport(uds=f"{tmp_path}/http.sock")
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            assert (await client.get("/?a=1&b")).json() == {"a": ["1"], "b": [""]}
        await server.stop()

    run(main)
