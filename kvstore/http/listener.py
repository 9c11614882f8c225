"""A small HTTP/1.1 server: h11 for the protocol, asyncio for the connections.

It serves probes and scrapes, not the public: one request a connection, GET and HEAD only, and a
limit on everything that a client chooses (I8).
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Sequence

import h11

from kvstore.http.message import Handler, Response, error
from kvstore.http.respond import respond
from kvstore.transport.address import ListenUrl
from kvstore.transport.options import Tls

log = logging.getLogger(__name__)

CONNECTIONS_MAX = 256
HEADERS_BYTES_MAX = 16 << 10
#: A request has to be here this long after its connection.
REQUEST_S_MAX = 10.0
#: An answer has to be made and taken in this time.
ANSWER_S_MAX = 30.0


class HttpServer:
    """Serves one handler on several addresses."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._servers: list[asyncio.Server] = []
        self._connections: set[asyncio.Task[None]] = set()
        self.bound: tuple[ListenUrl, ...] = ()
        """The addresses in use, with the ports that the operating system chose."""

    async def start(self, urls: Sequence[ListenUrl], tls: Tls | None) -> None:
        """Binds all addresses and serves. Raises OSError when one cannot be bound."""
        context = None
        bound = []
        for url in urls:
            if url.secure and context is None:
                context = _context(url, tls)
            secure = context if url.secure else None
            try:
                if url.is_unix:
                    server = await asyncio.start_unix_server(
                        self._connected, url.path, ssl=secure, limit=HEADERS_BYTES_MAX
                    )
                    bound.append(url)
                else:
                    server = await asyncio.start_server(
                        self._connected,
                        url.bind_host,
                        url.port,
                        ssl=secure,
                        limit=HEADERS_BYTES_MAX,
                        reuse_port=False,
                    )
                    port = int(server.sockets[0].getsockname()[1])
                    bound.append(ListenUrl(url.scheme, url.host, port))
            except OSError as why:
                await self.stop()
                reason = (why.strerror or str(why)).lower()
                raise OSError(why.errno, f"listen {url.netloc}: bind: {reason}") from None
            self._servers.append(server)
        self.bound = tuple(bound)

    async def stop(self) -> None:
        """Closes the addresses and what is open."""
        for server in self._servers:
            server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        self._servers.clear()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if len(self._connections) >= CONNECTIONS_MAX:
            writer.close()
            return
        self._connections.add(task)
        try:
            await self._serve(reader, writer)
        except (TimeoutError, ConnectionError, ssl.SSLError) as why:
            log.debug("connection ended: %r", why)
        finally:
            self._connections.discard(task)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=HEADERS_BYTES_MAX)
        try:
            async with asyncio.timeout(REQUEST_S_MAX):
                head = await _request(connection, reader)
        except h11.RemoteProtocolError as bad:
            response = error(bad.error_status_hint, str(bad))
            head = None
        else:
            if head is None:
                return
            async with asyncio.timeout(ANSWER_S_MAX):
                response = await respond(
                    self._handler,
                    head.method.decode("ascii"),
                    head.target.decode("latin-1"),
                    [
                        (name.decode("latin-1"), value.decode("latin-1"))
                        for name, value in head.headers
                    ],
                )
        if connection.our_state not in (h11.SEND_RESPONSE, h11.IDLE):
            return
        async with asyncio.timeout(ANSWER_S_MAX):
            bare = head is not None and head.method == b"HEAD"
            writer.write(_encode(connection, response, bare))
            await writer.drain()
            if writer.can_write_eof():
                writer.write_eof()


async def _request(connection: h11.Connection, reader: asyncio.StreamReader) -> h11.Request | None:
    """The head of the next request; None if the client leaves without one."""
    while True:
        event = connection.next_event()
        if isinstance(event, h11.Request):
            return event
        if event is not h11.NEED_DATA:
            return None
        connection.receive_data(await reader.read(HEADERS_BYTES_MAX))


def _encode(connection: h11.Connection, response: Response, bare: bool) -> bytes:
    """The bytes of an answer; `bare`: without its body, as HEAD wants it."""
    headers = [
        ("Content-Type", response.content_type),
        ("Content-Length", str(len(response.body))),
        ("Connection", "close"),
        *response.headers.items(),
    ]
    parts = (
        connection.send(h11.Response(status_code=response.status, headers=headers)),
        None if bare else connection.send(h11.Data(data=response.body)),
        connection.send(h11.EndOfMessage()),
    )
    return b"".join(part for part in parts if part)


def _context(url: ListenUrl, tls: Tls | None) -> ssl.SSLContext:
    if tls is None:
        raise ValueError(f"{url} needs a certificate and a key")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(tls.cert_file, tls.key_file)
    if tls.trusted_ca_file is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(tls.trusted_ca_file)
    return context
