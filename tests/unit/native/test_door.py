"""The native door against frames that no gRPC library would send, and what it counts of them."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import pytest
import uvloop

from kvstore.transport.address import parse_listen_url
from kvstore.transport.options import TransportOptions
from kvstore.transport.seam import Call, Code, Kind, Stream, StreamHandler
from tests.hostile import http2
from tests.hostile.http2 import Connection, DeafStream, request_headers
from tests.peers import require_native

if TYPE_CHECKING:
    from kvstore.transport.native import NativeTransport

ECHO = b"/t.S/Echo"
BIDI = b"/t.S/Bidi"
LIMIT = 1 << 20
WAIT_S = 10.0


@pytest.fixture(autouse=True)
def native() -> None:
    require_native()


class Echo:
    """A stream that answers each message with itself."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.closed = asyncio.Event()

    def on_messages(self, messages: Sequence[bytes]) -> None:
        for message in messages:
            self.stream.send(message)

    def on_half_close(self) -> None:
        self.stream.close()

    def on_room(self) -> None:
        pass

    def on_closed(self) -> None:
        self.closed.set()


class Service:
    max_request_bytes = LIMIT

    def __init__(self) -> None:
        self.held: list[Call] = []
        self.calls = 0
        self.streams: list[Echo] = []

    def kind(self, method: str) -> Kind | None:
        return Kind.BIDI_STREAM if method.endswith("Bidi") else Kind.UNARY

    def unimplemented(self, method: str) -> str:
        return f"no {method}"

    def on_calls(self, calls: Sequence[Call]) -> None:
        self.calls += len(calls)
        for call in calls:
            if call.method == "/t.S/Hold":
                self.held.append(call)
            elif call.method == "/t.S/Big":
                call.finish(b"x" * int(call.request))
            else:
                call.finish(call.request)

    def on_stream(self, stream: Stream) -> StreamHandler:
        self.streams.append(Echo(stream))
        return self.streams[-1]


METHODS = ["/t.S/Echo", "/t.S/Hold", "/t.S/Big", "/t.S/Bidi"]


@asynccontextmanager
async def serving(**options: Any) -> AsyncIterator[tuple[str, NativeTransport, Service]]:
    from kvstore.transport.native import NativeTransport

    service = options.pop("service", None) or Service()
    url = options.pop("url", "http://127.0.0.1:0")
    transport = NativeTransport(
        TransportOptions(listen=(parse_listen_url(url),), **options), METHODS
    )
    await transport.start(service)
    try:
        yield transport.bound[0].netloc, transport, service
    finally:
        await transport.drain(0.2)


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(asyncio.wait_for(main(), 60))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():
            await asyncio.sleep(0.01)


async def answer(connection: Connection, within_s: float = WAIT_S) -> bytes:
    """Everything that comes until the server closes, or that time is over."""
    out = b""
    try:
        async with asyncio.timeout(within_s):
            while part := await connection.reader.read(65536):
                out += part
    except (TimeoutError, ConnectionError):
        pass
    return out


def goaway(data: bytes) -> tuple[int, bytes] | None:
    """Error code and debug data of the first GOAWAY."""
    at = 0
    while at + 9 <= len(data):
        length = int.from_bytes(data[at : at + 3], "big")
        if data[at + 3] == 7:
            payload = data[at + 9 : at + 9 + length]
            return int.from_bytes(payload[4:8], "big"), payload[8:]
        at += 9 + length
    return None


PING = http2.frame(http2.PING, 0, 0, b"12345678")


@pytest.mark.parametrize(
    ("flood", "counter", "text"),
    [
        (PING * 10, "ping_floods_total", b"too_many_pings"),
        (http2.settings() * 300, "settings_floods_total", b"too_many_settings"),
        (http2.frame(2, 0, 1, b"\0" * 5) * 3000, "idle_floods_total", b"too_many_idle_frames"),
        (http2.frame(99, 0, 0, b"x") * 3000, "idle_floods_total", b"too_many_idle_frames"),
        (
            b"".join(
                http2.frame(http2.HEADERS, 4, 2 * n + 1, http2.request_headers(ECHO))
                + http2.frame(http2.RST_STREAM, 0, 2 * n + 1, b"\0\0\0\x08")
                for n in range(12_000)
            ),
            "reset_floods_total",
            b"too_many_resets",
        ),
    ],
    ids=["pings", "settings", "priority", "unknown", "resets"],
)
def test_a_flood_ends_its_connection_and_is_counted(
    flood: bytes, counter: str, text: bytes
) -> None:
    async def main() -> None:
        async with serving() as (address, transport, _):
            connection = await Connection.open(address)
            sending = asyncio.ensure_future(connection.send(flood))
            said = goaway(await answer(connection))
            await sending
            assert said == (11, text)
            assert transport.stats()[counter] == 1
            connection.close()
            await until(lambda: transport.stats()["connections_open"] == 0)
            assert transport.stats()["live_open"] == 0

    run(main)


def test_header_blocks_without_end_are_counted_too() -> None:
    async def main() -> None:
        async with serving() as (address, transport, _):
            connection = await Connection.open(address)
            await connection.send(http2.frame(http2.HEADERS, 0, 1, http2.request_headers(ECHO)))
            field = http2.literal(b"x-more", b"y" * 120) * 100
            for _ in range(1000):
                if not await connection.send(http2.frame(http2.CONTINUATION, 0, 1, field)):
                    break
            await until(
                lambda: (
                    transport.stats()["calm_total"] + transport.stats()["connection_errors_total"]
                    == 1
                )
            )
            connection.close()

    run(main)


def test_pings_in_step_with_data_are_no_flood() -> None:
    async def main() -> None:
        async with serving() as (address, transport, service):
            connection = await Connection.open(address)
            for n in range(50):
                await connection.send(http2.call(2 * n + 1, ECHO, b"x") + PING)
                await until(lambda n=n: service.calls == n + 1)  # type: ignore[misc]
                await asyncio.sleep(0.002)
            assert transport.stats()["ping_floods_total"] == 0
            connection.close()

    run(main)


def test_too_many_connections_are_closed_at_once() -> None:
    async def main() -> None:
        import jotd_native

        door = jotd_native.Door(
            [("tcp", "127.0.0.1", 0, False)], [], request_bytes_max=100, connections_max=3
        )
        try:
            (port,) = door.ports
            held = [socket.create_connection(("127.0.0.1", port)) for _ in range(3)]
            await until(lambda: door.stats()["connections_open"] == 3)
            with socket.create_connection(("127.0.0.1", port)) as extra:
                extra.settimeout(WAIT_S)
                assert extra.recv(1) == b""
            assert door.stats()["connections_refused_total"] == 1
            for sock in held:
                sock.close()
            await until(lambda: door.stats()["connections_open"] == 0)
        finally:
            door.stop()

    run(main)


@pytest.mark.parametrize("opening", [b"", b"PRI * HT", http2.PREFACE, b"GET / HTTP/1.1\r\nX"])
def test_a_greeting_that_does_not_go_on_is_given_up(opening: bytes) -> None:
    async def main() -> None:
        import jotd_native

        door = jotd_native.Door(
            [("tcp", "127.0.0.1", 0, False)], [], request_bytes_max=100, handshake_max_s=0.3
        )
        try:
            with socket.create_connection(("127.0.0.1", door.ports[0])) as sock:
                sock.sendall(opening)
                counted = "handshake_timeouts_total"
                if opening[:3] != b"GET":
                    await until(lambda: door.stats()[counted] == 1)
                    await until(lambda: door.stats()["connections_open"] == 0)
                else:
                    # An HTTP request has a time of its own; half of one ends with its client.
                    sock.close()
                    await until(lambda: door.stats()["connections_open"] == 0)
        finally:
            door.stop()

    run(main)


@pytest.mark.slow
def test_a_dead_peer_is_found_by_a_ping() -> None:
    async def main() -> None:
        async with serving(keepalive_interval_s=0.3, keepalive_timeout_s=0.3) as (
            address,
            transport,
            _,
        ):
            connection = await Connection.open(address)
            await until(lambda: transport.stats()["keepalive_timeouts_total"] == 1)
            connection.close()
        # A client that answers stays.
        async with serving(keepalive_interval_s=0.3, keepalive_timeout_s=5) as (
            address,
            transport,
            _,
        ):
            async with grpc.aio.insecure_channel(address) as channel:
                echo = channel.unary_unary("/t.S/Echo")
                assert await echo(b"a") == b"a"
                await asyncio.sleep(1.5)
                assert await echo(b"b") == b"b"
            assert not transport.stats()["keepalive_timeouts_total"]

    run(main)


@pytest.mark.slow
def test_a_peer_that_dies_after_a_late_pong_is_found_too() -> None:
    """Other frames are a sign of life; the pong behind them must not be left lying about."""

    async def main() -> None:
        async with serving(keepalive_interval_s=0.3, keepalive_timeout_s=0.6) as (
            address,
            transport,
            _,
        ):
            connection = await Connection.open(address)
            ping = b""
            while not ping:
                head = await connection.reader.readexactly(9)
                payload = await connection.reader.readexactly(int.from_bytes(head[:3], "big"))
                if head[3] == http2.PING and not head[4] & http2.ACK:
                    ping = payload
            await asyncio.sleep(0.05)
            await connection.send(http2.frame(http2.WINDOW_UPDATE, 0, 0, b"\0\0\0\1"))
            # Longer than the server takes to see the sign of life and to forget its ping.
            await asyncio.sleep(0.5)
            await connection.send(http2.frame(http2.PING, http2.ACK, 0, ping))
            await until(lambda: transport.stats()["keepalive_timeouts_total"] == 1)
            connection.close()

    run(main)


@pytest.mark.slow
def test_a_greeting_that_trickles_is_given_up() -> None:
    async def main() -> None:
        import jotd_native

        door = jotd_native.Door(
            [("tcp", "127.0.0.1", 0, False)], [], request_bytes_max=100, handshake_max_s=0.5
        )
        try:
            connection = await Connection.open(f"127.0.0.1:{door.ports[0]}", greet=False)
            await connection.send(http2.PREFACE + http2.frame(99, 0, 0, b"x" * 10_000)[:9])
            async with asyncio.timeout(WAIT_S):
                while await connection.send(b"x"):
                    await asyncio.sleep(0.02)
            assert door.stats()["handshake_timeouts_total"] == 1
        finally:
            door.stop()

    run(main)


def test_a_fault_in_an_event_costs_only_that_event() -> None:
    class Faulty(Service):
        def unimplemented(self, method: str) -> str:
            raise RuntimeError("a fault in the service")

    async def main() -> None:
        async with (
            serving(service=Faulty()) as (address, _, _),
            grpc.aio.insecure_channel(address) as channel,
        ):
            for _ in range(3):
                unknown = channel.unary_unary("/t.S/Nope")(b"", timeout=WAIT_S)
                assert await unknown.code() is grpc.StatusCode.INTERNAL
                assert await channel.unary_unary("/t.S/Echo")(b"a", timeout=WAIT_S) == b"a"

    run(main)


def test_calls_that_are_never_answered_take_nothing_with_them() -> None:
    """I8: dropped by the service, cancelled by the client, or cut off with the connection."""

    async def main() -> None:
        async with serving() as (address, transport, service):
            async with grpc.aio.insecure_channel(address) as channel:
                await channel.channel_ready()
                hold = channel.unary_unary("/t.S/Hold")
                dropped, cancelled, expired = hold(b"a"), hold(b"b"), hold(b"c", timeout=1)
                await until(lambda: len(service.held) == 3)
                held = {call.request: call for call in service.held}
                service.held.clear()
                cancelled.cancel()
                await until(lambda: held[b"b"].cancelled)
                await until(lambda: held[b"c"].cancelled)
                assert await expired.code() is grpc.StatusCode.DEADLINE_EXCEEDED
                assert not held[b"a"].cancelled
                held.clear()
                assert await dropped.code() is grpc.StatusCode.INTERNAL
                last = hold(b"d")
                await until(lambda: bool(service.held))
            await until(lambda: service.held[0].cancelled)
            service.held[0].finish(b"nobody is there")
            await asyncio.gather(last, return_exceptions=True)
            await until(lambda: transport.stats()["live_open"] == 0)
            stats = transport.stats()
            assert stats["calls_total"] == 4
            # The client's own clock may have been quicker and have cancelled it.
            assert stats["deadlines_total"] + stats["cancelled_total"] >= 2

    run(main)


def test_cancelled_calls_never_reach_the_service() -> None:
    async def main() -> None:
        async with serving() as (address, transport, service):
            connection = await Connection.open(address)
            one = b"".join(
                http2.call(2 * n + 1, ECHO, b"x")
                + http2.frame(http2.RST_STREAM, 0, 2 * n + 1, b"\0\0\0\x08")
                for n in range(100)
            )
            await connection.send(one + http2.call(201, ECHO, b"y"))
            await until(lambda: service.calls >= 1)
            assert transport.stats()["calls_total"] == 101
            assert service.calls == 1
            ((_, totals, codes), *_) = transport.counts()
            assert (totals[0], codes[Code.OK], codes[Code.CANCELLED]) == (101, 1, 100)
            connection.close()

    run(main)


def test_big_answers_are_cut_to_the_windows_and_whole() -> None:
    async def main() -> None:
        async with serving() as (address, _, _):
            options = [("grpc.max_receive_message_length", -1)]
            async with grpc.aio.insecure_channel(address, options=options) as channel:
                big = channel.unary_unary("/t.S/Big")
                sizes = [0, 1, 16_379, 16_384, 16_385, 65_530, 1 << 20, 30 << 20]
                answers = await asyncio.gather(*(big(b"%d" % size) for size in sizes))
                assert [len(a) for a in answers] == sizes
                assert all(set(a) <= {ord("x")} for a in answers)

    run(main)


def test_requests_that_are_over_leave_no_hole_in_the_window() -> None:
    """Streams may stay open for long behind their client's last message."""

    async def main() -> None:
        async with serving() as (address, _, service):
            connection = await Connection.open(address, window=0)

            async def opened() -> int:
                """By how much the next frame opens the connection's window."""
                head = await connection.reader.readexactly(9)
                payload = await connection.reader.readexactly(int.from_bytes(head[:3], "big"))
                ours = head[3] == http2.WINDOW_UPDATE and head[5:] == bytes(4)
                return int.from_bytes(payload, "big") if ours else 0

            async with asyncio.timeout(WAIT_S):
                while not await opened():
                    pass
            message = b"\0" + (16_000).to_bytes(4, "big") + b"x" * 16_000
            headers = request_headers(BIDI)
            for stream in range(1, 301, 2):
                await connection.send(
                    http2.frame(http2.HEADERS, http2.END_HEADERS, stream, headers)
                    + http2.frame(http2.DATA, http2.END_STREAM, stream, message)
                )
            await until(lambda: len(service.streams) == 150)
            total = 0
            async with asyncio.timeout(WAIT_S):
                # Of these 2.4 MB at once or in two parts: h2 opens it by half of what is left.
                while total < 1 << 19:
                    total += await opened()
            assert not any(echo.closed.is_set() for echo in service.streams)
            connection.close()

    run(main)


def test_a_client_that_takes_no_answers_gets_no_more_served() -> None:
    """I8: what waits for its windows is bounded, and its connection's other calls wait."""

    async def main() -> None:
        async with serving() as (address, transport, service):
            connection = await Connection.open(address, window=10)
            for n in range(50):
                await connection.send(http2.call(2 * n + 1, b"/t.S/Big", b"1000000"))
            await until(lambda: service.calls == 50)
            for n in range(50, 100):
                await connection.send(http2.call(2 * n + 1, b"/t.S/Big", b"1000000"))
            await until(lambda: transport.stats()["unsent_full_total"] > 0)
            await asyncio.sleep(0.3)
            # What it had asked for before its answers piled up, and no more.
            assert service.calls == 50
            # Others are served.
            async with grpc.aio.insecure_channel(address) as channel:
                assert await channel.unary_unary("/t.S/Echo")(b"a") == b"a"
            connection.close()
            await until(lambda: transport.stats()["live_open"] == 0)

    run(main)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({b":method": b"GET"}, b"13"),
        ({b"grpc-timeout": b"1x"}, b"13"),
        ({b"grpc-encoding": b"gzip"}, b"12"),
        ({b"x-big": b"y" * 126}, b"0"),
    ],
)
def test_calls_that_are_made_wrongly(headers: dict[bytes, bytes], status: bytes) -> None:
    async def main() -> None:
        async with serving() as (address, _, _):
            every = {
                b":method": b"POST",
                b":scheme": b"http",
                b":path": ECHO,
                b":authority": b"x",
                b"content-type": b"application/grpc",
                **headers,
            }
            block = b"".join(http2.literal(name, value) for name, value in every.items())
            connection = await Connection.open(address)
            await connection.send(
                http2.frame(http2.HEADERS, 4, 1, block)
                + http2.frame(http2.DATA, 1, 1, b"\0\0\0\0\0")
            )
            said = await answer(connection, 1.0)
            assert b"grpc-status" in said or status == b"0" or len(said) > 50
            connection.close()
            # By a library, for the texts.
            async with grpc.aio.insecure_channel(address) as channel:
                echo = channel.unary_unary("/t.S/Echo")
                call = echo(b"x", compression=grpc.Compression.Gzip)
                assert await call.code() is grpc.StatusCode.UNIMPLEMENTED
                assert await call.details() == (
                    'grpc: Decompressor is not installed for grpc-encoding "gzip"'
                )

    run(main)


def test_http_on_the_same_port(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving() as (address, transport, _):
            seen = []

            async def handler(method: str, target: str, headers: Sequence[tuple[str, str]]) -> Any:
                seen.append((method, target, dict(headers)["host"]))
                return 200, [("X-Y", "z"), ("Bad\r\nName", "a"), ("B", "c\r\nd")], b"hello"

            transport.http = handler

            async def ask(raw: bytes) -> bytes:
                connection = await Connection.open(address, greet=False)
                for at in range(0, len(raw), 7):
                    await connection.send(raw[at : at + 7])
                got = await answer(connection)
                connection.close()
                return got

            one = b"HTTP/1.1 200 OK\r\nX-Y: z\r\nContent-Length: 5\r\n"
            last = one + b"Connection: close\r\n\r\n"
            get = b"GET /a?b=c HTTP/1.1\r\nHost: h\r\n\r\n"
            got = await ask(get + b"HEAD / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n" + get)
            assert got == one + b"\r\nhello" + last
            assert seen == [("GET", "/a?b=c", "h"), ("HEAD", "/", "h")]
            for bad, status in [
                (b"\x16\x03\x01\x02\x00\x01", 400),
                (b"GET / HTTP/1.1\r\n\r\n", 400),
                (b"GET / HTTP/1.1\r\nHost: h\r\nContent-Length: -1\r\n\r\n", 400),
                (b"GET / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: x\r\n\r\n", 501),
                (b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 300 + b"\r\n", 431),
                (b"GET / HTTP/1.1\r\nA: " + b"b" * 20_000, 431),
            ]:
                got = await ask(bad)
                assert got.startswith(b"HTTP/1.1 %d " % status), (bad[:60], got)
            assert len(seen) == 2
            # Nobody reads a body: one that is long, or may be, ends the connection.
            for unread in (b"Content-Length: 99999999999", b"Transfer-Encoding: chunked"):
                got = await ask(b"PUT / HTTP/1.1\r\nHost: h\r\n" + unread + b"\r\n\r\n" + get)
                assert got == last + b"hello"
            assert len(seen) == 4

    run(main)


class Verbose(Echo):
    """Answers each message with a long one."""

    SIZE = 10_000

    def __init__(self, stream: Stream) -> None:
        super().__init__(stream)
        self.got: list[bytes] = []
        self.half_closed = False

    def on_messages(self, messages: Sequence[bytes]) -> None:
        for message in messages:
            assert not self.half_closed
            self.got.append(message[:4])
            self.stream.send(b"y" * self.SIZE)

    def on_half_close(self) -> None:
        self.half_closed = True
        super().on_half_close()


class VerboseService(Service):
    def on_stream(self, stream: Stream) -> StreamHandler:
        self.streams.append(Verbose(stream))
        return self.streams[-1]


@pytest.mark.parametrize("half_close", [False, True])
def test_messages_that_were_read_too_soon_wait_for_room(half_close: bool) -> None:
    """I8: the room fills only when Python answers, and the door may have read on until then."""
    names = [b"%04d" % n for n in range(1500)]
    first, *rest = (names[:16], names[16:1000], names[1000:])

    def sized(some: Sequence[bytes]) -> bytes:
        return b"".join(http2.message(name + b"x" * 1000) for name in some)

    async def main() -> None:
        service = VerboseService()
        async with serving(service=service, stream_room_bytes=100_000) as (address, _, _):
            stream = await DeafStream.open(address, BIDI)
            # One frame, which the door hands over at once: there is room for ten of its answers.
            assert len(sized(first)) < 16_384
            await stream.send(sized(first))
            await until(lambda: bool(service.streams))
            handler = service.streams[0]
            assert isinstance(handler, Verbose)
            await until(lambda: bool(handler.got))
            assert handler.got == first[:10]
            assert handler.stream.room > -2 * Verbose.SIZE
            # The window is not given back for what waits.
            await until(lambda: stream.window > 1 << 19)
            window = stream.window
            await stream.send(sized(rest[0]))
            await asyncio.sleep(0.2)
            assert stream.window == window - len(sized(rest[0]))
            assert handler.got == first[:10]
            sending = asyncio.ensure_future(stream.send(sized(rest[1])))
            await until(lambda: stream.window == 0)
            # All of it is served, in order, as soon as there is somebody who listens.
            await stream.listen()
            assert await sending
            if half_close:
                await stream.half_close()
                await until(lambda: stream.ended)
            await until(lambda: len(stream.received) == len(names) * (5 + Verbose.SIZE))
            assert handler.got == names
            assert handler.half_closed == half_close
            await stream.close()
            await asyncio.wait_for(handler.closed.wait(), WAIT_S)

    run(main)


@pytest.mark.parametrize("half_close", [False, True])
def test_what_waits_for_room_goes_with_its_stream(half_close: bool) -> None:
    async def main() -> None:
        service = VerboseService()
        async with serving(service=service, stream_room_bytes=100_000) as (address, transport, _):
            stream = await DeafStream.open(address, BIDI)
            await stream.send(http2.message(b"x" * 1000) * 100)
            if half_close:
                await stream.half_close()
            await until(lambda: bool(service.streams))
            handler = service.streams[0]
            assert isinstance(handler, Verbose)
            await until(lambda: bool(handler.got))
            await stream.close()
            await asyncio.wait_for(handler.closed.wait(), WAIT_S)
            assert len(handler.got) == 10
            assert not handler.half_closed
            await until(lambda: transport.stats()["live_open"] == 0)

    run(main)


def test_a_drain_says_goaway_and_answers_what_is_under_way() -> None:
    async def main() -> None:
        async with serving() as (address, transport, service):
            connection = await Connection.open(address)
            await connection.send(http2.call(1, b"/t.S/Hold", b"x"))
            await until(lambda: bool(service.held))
            draining = asyncio.ensure_future(transport.drain(WAIT_S))
            # First that nothing new shall come (and a ping, to know when that was read), ...
            head = b""
            while head[3:4] != b"\x07":
                head = await connection.reader.readexactly(9)
                payload = await connection.reader.readexactly(int.from_bytes(head[:3], "big"))
                if head[3] == http2.PING and not head[4] & http2.ACK:
                    await connection.send(http2.frame(http2.PING, http2.ACK, 0, payload))
            assert payload == (2**31 - 1).to_bytes(4, "big") + bytes(4)
            with pytest.raises(OSError, match=r"refused|reset"):
                await Connection.open(address)
            # ... then the answer, though it took its time.
            await asyncio.sleep(0.5)
            assert not draining.done()
            service.held.pop().finish(b"late")
            assert b"late" in await answer(connection)
            await draining
            connection.close()

    run(main)


def test_the_last_answer_of_a_drain_outlives_what_its_client_still_says() -> None:
    """A socket that is closed on unread data takes from the peer what was sent before."""
    size = 16 << 20

    async def main() -> None:
        async with serving() as (address, transport, service):
            connection = await Connection.open(address, window=2**31 - 1)
            widen = http2.frame(http2.WINDOW_UPDATE, 0, 0, (1 << 30).to_bytes(4, "big"))
            await connection.send(widen + http2.call(1, b"/t.S/Hold", b"x"))
            await until(lambda: bool(service.held))
            draining = asyncio.ensure_future(transport.drain(WAIT_S))
            service.held.pop().finish(b"x" * size)
            received = 0
            more = http2.frame(http2.WINDOW_UPDATE, 0, 0, (1).to_bytes(4, "big"))
            while part := await connection.reader.read(65536):
                received += len(part)
                await connection.send(more)
                await asyncio.sleep(0.001)
                if b"\0\0\x08\x06\0" in part:
                    at = part.index(b"\0\0\x08\x06\0")
                    pong = http2.frame(http2.PING, http2.ACK, 0, part[at + 9 : at + 17])
                    await connection.send(pong)
            assert received > size
            await draining
            connection.close()

    run(main)


def test_a_unix_socket_goes_with_its_server(tmp_path: Path) -> None:
    async def main() -> None:
        path = tmp_path / "s.sock"
        stale = socket.socket(socket.AF_UNIX)
        stale.bind(str(path))
        stale.close()
        async with (
            serving(url=f"unix://{path}") as (_, _, service),
            grpc.aio.insecure_channel(f"unix:{path}") as channel,
        ):
            assert await channel.unary_unary("/t.S/Echo")(b"a") == b"a"
            stream = channel.stream_stream("/t.S/Bidi")()
            await stream.write(b"b")
            assert await stream.read() == b"b"
            await stream.done_writing()
            assert await stream.read() is grpc.aio.EOF
            await asyncio.wait_for(service.streams[0].closed.wait(), WAIT_S)
        assert not path.exists()

    run(main)


def test_bad_arguments_have_reasons() -> None:
    import jotd_native

    make = jotd_native.Door
    for listen, methods in [
        ([("tcp", "localhost", 0, False)], []),
        ([("udp", "127.0.0.1", 0, False)], []),
        ([("tcp", "127.0.0.1", 0, True)], []),
        ([("tcp", "127.0.0.1", 0, False)], [("/a/B", "duplex")]),
    ]:
        with pytest.raises(ValueError, match=r"."):
            make(listen, methods, request_bytes_max=1)
    pem = (b"-----BEGIN", b"nothing", None)
    with pytest.raises(ValueError, match="certificate"):
        make([("tcp", "127.0.0.1", 0, True)], [], request_bytes_max=1, tls=pem)
    with pytest.raises(OSError, match=r"listen unix /nope/s: bind: no such file") as caught:
        make([("unix", "/nope/s", 0, False)], [], request_bytes_max=1)
    assert caught.value.errno == 2


def test_the_load_generator_reports_what_it_did() -> None:
    import jotd_native

    with pytest.raises(ValueError, match="unknown field"):
        jotd_native.load('{"scenari": "put"}')
    with pytest.raises(RuntimeError, match="refused"):
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            port = sock.getsockname()[1]
        jotd_native.load(json.dumps({"endpoints": [f"127.0.0.1:{port}"], "duration-s": 0.1}))
