"""TLS on the native door: who is let in, what is agreed on, and what half a handshake costs."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import pytest

from kvstore.transport.address import parse_listen_url
from kvstore.transport.options import Tls, TransportOptions
from tests.hostile import http2
from tests.peers import require_native
from tests.pki import make_ca, make_certificate, make_pki
from tests.unit.native.test_door import METHODS, WAIT_S, Service, run, until

if TYPE_CHECKING:
    from kvstore.transport.native import NativeTransport

NAMES = "DNS:node.example,IP:10.1.2.3,IP:fd00::1,URI:spiffe://x/y,email:a@b.c"


@pytest.fixture(autouse=True)
def native() -> None:
    require_native()


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = make_pki(tmp_path_factory.mktemp("pki"))
    make_certificate(place, "named", subject="/O=nodes/CN=first/CN=node-1", names=NAMES)
    make_certificate(place, "nameless", subject="/O=nodes")
    make_certificate(place, "expired", days=-1)
    make_ca(place, "other")
    make_certificate(place, "stranger", ca="other")
    return place


def context(pki: Path, name: str | None = None) -> ssl.SSLContext:
    """A client's, with the certificate of `name` if one is given."""
    found = ssl.create_default_context(cafile=str(pki / "ca.crt"))
    if name is not None:
        found.load_cert_chain(pki / f"{name}.crt", pki / f"{name}.key")
    return found


@asynccontextmanager
async def serving(
    pki: Path, *urls: str, mutual: bool = False, **options: Any
) -> AsyncIterator[tuple[NativeTransport, Service]]:
    from kvstore.transport.native import NativeTransport

    service = Service()
    transport = NativeTransport(
        TransportOptions(
            listen=tuple(map(parse_listen_url, urls or ("https://127.0.0.1:0",))),
            tls=Tls(pki / "server.crt", pki / "server.key", pki / "ca.crt" if mutual else None),
            **options,
        ),
        METHODS,
    )
    await transport.start(service)
    try:
        yield transport, service
    finally:
        await transport.drain(0.2)


def credentials(pki: Path, name: str | None = None) -> grpc.ChannelCredentials:
    own = () if name is None else [(pki / f"{name}.{end}").read_bytes() for end in ("key", "crt")]
    return grpc.ssl_channel_credentials((pki / "ca.crt").read_bytes(), *own)


async def echoed(channel: grpc.aio.Channel) -> bool:
    """Whether a call is answered."""
    async with channel:
        try:
            return bytes(await channel.unary_unary("/t.S/Echo")(b"x", timeout=WAIT_S)) == b"x"
        except grpc.aio.AioRpcError:
            return False


@pytest.fixture
def door(pki: Path) -> Iterator[Any]:
    """A bare TLS door that is impatient."""
    import jotd_native

    pem = ((pki / "server.crt").read_bytes(), (pki / "server.key").read_bytes(), None)
    listen = [("tcp", "127.0.0.1", 0, True)]
    found = jotd_native.Door(listen, [], request_bytes_max=100, handshake_max_s=1.0, tls=pem)
    yield found
    found.stop()


def client_hello(pki: Path) -> bytes:
    out = ssl.MemoryBIO()
    session = context(pki).wrap_bio(ssl.MemoryBIO(), out, server_hostname="localhost")
    with contextlib.suppress(ssl.SSLWantReadError):
        session.do_handshake()
    return out.read()


@pytest.mark.parametrize("part", [0, 1, 5, 100, None])
def test_half_a_handshake_is_given_up(pki: Path, door: Any, part: int | None) -> None:
    async def main() -> None:
        with socket.create_connection(("127.0.0.1", door.ports[0])) as sock:
            sock.sendall(client_hello(pki)[:part])
            await until(lambda: door.stats()["handshake_timeouts_total"] == 1)
            await until(lambda: door.stats()["connections_open"] == 0)

    run(main)


@pytest.mark.parametrize("opening", [b"", b"PRI * HT", http2.PREFACE])
def test_a_greeting_inside_of_tls_that_does_not_go_on_is_given_up(
    pki: Path, door: Any, opening: bytes
) -> None:
    async def main() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", door.ports[0], ssl=context(pki))
        writer.write(opening)
        await until(lambda: door.stats()["handshake_timeouts_total"] == 1)
        await until(lambda: door.stats()["connections_open"] == 0)
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await reader.read()

    run(main)


@pytest.mark.parametrize(
    "opening",
    [http2.PREFACE + http2.settings(), b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n", b"\0" * 500],
    ids=["h2", "http1", "noise"],
)
def test_what_is_not_tls_is_refused_at_once(pki: Path, door: Any, opening: bytes) -> None:
    async def main() -> None:
        with socket.create_connection(("127.0.0.1", door.ports[0]), timeout=WAIT_S) as sock:
            sock.sendall(opening)
            got = b""
            with contextlib.suppress(ConnectionError):
                while part := await asyncio.to_thread(sock.recv, 1000):
                    got += part
            # At most a TLS alert, and nothing in the clear.
            assert got[:1] in (b"", b"\x15")
            await until(lambda: door.stats()["handshake_failures_total"] == 1)
        await until(lambda: door.stats()["connections_open"] == 0)

    run(main)


def test_tls_on_a_plain_port_is_refused_at_once(pki: Path) -> None:
    async def main() -> None:
        async with serving(pki, "http://127.0.0.1:0") as (transport, _):
            port = transport.bound[0].port
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await asyncio.open_connection("127.0.0.1", port, ssl=context(pki))
            await until(lambda: transport.stats()["connections_open"] == 0)
            assert transport.stats()["handshake_failures_total"] == 1

    run(main)


def test_old_versions_of_tls_are_refused(pki: Path, door: Any) -> None:
    old = context(pki)
    old.set_ciphers("DEFAULT@SECLEVEL=0")
    with pytest.warns(DeprecationWarning):
        old.minimum_version = ssl.TLSVersion.TLSv1
        old.maximum_version = ssl.TLSVersion.TLSv1_1

    async def main() -> None:
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await asyncio.open_connection("127.0.0.1", door.ports[0], ssl=old)
        await until(lambda: door.stats()["handshake_failures_total"] == 1)

    run(main)


@pytest.mark.parametrize(
    ("offered", "agreed"),
    [
        ([], None),
        (["h2"], "h2"),
        (["http/1.1"], "http/1.1"),
        (["http/1.1", "h2"], "h2"),
        (["spdy/1"], ssl.SSLError),
    ],
)
def test_the_protocol_that_is_agreed_on(
    pki: Path, offered: list[str], agreed: str | type[Exception] | None
) -> None:
    async def main() -> None:
        async with serving(pki) as (transport, service):
            client = context(pki)
            if offered:
                client.set_alpn_protocols(offered)
            opening = asyncio.open_connection("127.0.0.1", transport.bound[0].port, ssl=client)
            if agreed is ssl.SSLError:
                with pytest.raises((ssl.SSLError, ConnectionError)):
                    await opening
                await until(lambda: transport.stats()["handshake_failures_total"] == 1)
                return
            reader, writer = await opening
            session = writer.get_extra_info("ssl_object")
            assert session.selected_alpn_protocol() == agreed
            if agreed == "h2":
                writer.write(http2.PREFACE + http2.settings() + http2.call(1, b"/t.S/Echo", b"x"))
                await until(lambda: service.calls == 1)
            else:
                writer.write(b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n")
                assert (await reader.readline()).startswith(b"HTTP/1.1 404 ")
            writer.transport.abort()

    run(main)


def test_listeners_of_every_kind_at_once(pki: Path, tmp_path: Path) -> None:
    async def main() -> None:
        urls = (
            "http://127.0.0.1:0",
            "https://127.0.0.1:0",
            f"unix://{tmp_path}/plain",
            f"unixs://{tmp_path}/secure",
            "https://127.0.0.1:0",
        )
        async with serving(pki, *urls) as (transport, service):
            assert len({url.netloc for url in transport.bound}) == len(urls)
            for url in transport.bound:
                target = f"unix:{url.path}" if url.is_unix else url.netloc
                options = [("grpc.ssl_target_name_override", "localhost")]
                secure = grpc.aio.secure_channel(target, credentials(pki), options=options)
                assert await echoed(secure) == url.secure
                assert await echoed(grpc.aio.insecure_channel(target)) != url.secure
            assert service.calls == len(urls)

    run(main)


@pytest.mark.parametrize(
    ("name", "let_in"),
    [("client", True), (None, False), ("stranger", False), ("expired", False)],
)
def test_who_is_let_in(pki: Path, name: str | None, let_in: bool) -> None:
    async def main() -> None:
        async with serving(pki, mutual=True) as (transport, service):
            address = transport.bound[0].netloc
            channel = grpc.aio.secure_channel(address, credentials(pki, name))
            assert await echoed(channel) == let_in
            assert service.calls == let_in
            assert (transport.stats()["handshake_failures_total"] > 0) != let_in
            # Whoever was refused costs the next one nothing.
            assert await echoed(grpc.aio.secure_channel(address, credentials(pki, "client")))

    run(main)


@pytest.mark.parametrize(
    ("name", "common", "every"),
    [
        (
            "named",
            "node-1",
            ["node-1", "node.example", "10.1.2.3", "fd00::1", "spiffe://x/y", "a@b.c"],
        ),
        ("nameless", None, ["127.0.0.1", "localhost"]),
    ],
)
def test_the_names_of_a_certificate_reach_the_service(
    pki: Path, name: str, common: str | None, every: list[str]
) -> None:
    async def main() -> None:
        async with serving(pki, mutual=True) as (transport, service):
            own = credentials(pki, name)
            async with grpc.aio.secure_channel(transport.bound[0].netloc, own) as channel:
                held = channel.unary_unary("/t.S/Hold")(b"x")
                stream = channel.stream_stream("/t.S/Bidi")()
                await stream.write(b"a")
                assert await stream.read() == b"a"
                await until(lambda: bool(service.held))
                call = service.held.pop()
                for peer in (call.peer, service.streams[0].stream.peer):
                    assert peer.common_name == common
                    assert sorted(peer.certificate_names) == sorted(every)
                    assert peer.certificate_names[:1] == [common or every[0]]
                call.finish(b"y")
                assert await held == b"y"
                stream.cancel()

    run(main)


def test_a_client_without_a_certificate_has_no_names(pki: Path) -> None:
    async def main() -> None:
        async with serving(pki) as (transport, service):
            address = transport.bound[0].netloc
            async with grpc.aio.secure_channel(address, credentials(pki)) as channel:
                held = channel.unary_unary("/t.S/Hold")(b"x")
                await until(lambda: bool(service.held))
                call = service.held.pop()
                assert (call.peer.common_name, list(call.peer.certificate_names)) == (None, [])
                call.finish(b"y")
                assert await held == b"y"

    run(main)


def test_the_end_of_an_answer_is_not_kept_back(pki: Path, tmp_path: Path) -> None:
    """What TLS has encrypted and the socket did not take goes out once the client reads."""
    window = http2.settings(initial_window=2**31 - 1) + http2.frame(
        http2.WINDOW_UPDATE, 0, 0, (2**31 - 1 - 65535).to_bytes(4, "big")
    )

    def read(sock: ssl.SSLSocket, size: int) -> None:
        got = 0
        while got < size:
            part = sock.recv(1 << 20)
            assert part
            got += len(part)

    async def main() -> None:
        async with serving(pki, f"unixs://{tmp_path}/s") as (transport, service):
            for size in range(64 << 10, 768 << 10, 32 << 10):
                plain = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                plain.settimeout(WAIT_S)
                plain.connect(f"{tmp_path}/s")
                before = service.calls
                with await asyncio.to_thread(
                    context(pki).wrap_socket, plain, server_hostname="localhost"
                ) as sock:
                    sock.sendall(http2.PREFACE + window + http2.call(1, b"/t.S/Big", b"%d" % size))
                    await until(lambda before=before: service.calls > before)  # type: ignore[misc]
                    # Nothing is read until the server can send no more.
                    sent = -1
                    while sent != transport.stats()["sent_bytes_total"]:
                        sent = transport.stats()["sent_bytes_total"]
                        await asyncio.sleep(0.05)
                    await asyncio.to_thread(read, sock, size)

    run(main)


def test_big_requests_and_answers(pki: Path) -> None:
    async def main() -> None:
        async with serving(pki) as (transport, _):
            options = [("grpc.max_receive_message_length", -1)]
            address = transport.bound[0].netloc
            async with grpc.aio.secure_channel(address, credentials(pki), options) as channel:
                echo, big = (channel.unary_unary(f"/t.S/{name}") for name in ("Echo", "Big"))
                requests = [bytes([n]) * (n * 100_000) for n in range(10)]
                assert await asyncio.gather(*map(echo, requests)) == requests
                sizes = [16_384, 1 << 20, 20 << 20]
                answers = await asyncio.gather(*(big(b"%d" % size) for size in sizes))
                assert [len(answer) for answer in answers] == sizes

    run(main)


def test_files_that_cannot_be_used_are_named(pki: Path) -> None:
    import jotd_native

    cert, key = ((pki / f"server.{end}").read_bytes() for end in ("crt", "key"))
    other_key = (pki / "client.key").read_bytes()
    broken = cert.replace(b"\nMII", b"\n%%%", 1)
    for pem, text in [
        ((b"", key, None), "the certificate file: there is no certificate in it"),
        ((key, key, None), "the certificate file: there is no certificate in it"),
        ((broken, key, None), "the certificate file: "),
        ((cert, b"", None), "the key file: there is no key in it"),
        ((cert, cert, None), "the key file: there is no key in it"),
        ((cert, key[:60], None), "the key file: "),
        ((cert, other_key, None), "the certificate and its key do not belong together"),
        ((cert, key, b""), "the trusted CA file: there is no certificate in it"),
    ]:
        with pytest.raises(ValueError, match="^" + text):
            jotd_native.Door([("tcp", "127.0.0.1", 0, True)], [], request_bytes_max=1, tls=pem)
