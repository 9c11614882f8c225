"""Just enough of HTTP/2 to be rude with: frames written by hand on a plain socket."""

from __future__ import annotations

import asyncio
import struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

DATA, HEADERS, RST_STREAM, SETTINGS, PING, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 8, 9
END_STREAM, END_HEADERS, ACK = 1, 4, 1
CANCEL = 8


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One frame."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def literal(name: bytes, value: bytes) -> bytes:
    """A header field, literal and never indexed; both strings shorter than 127 bytes."""
    assert len(name) < 127 and len(value) < 127
    return b"\x10" + bytes([len(name)]) + name + bytes([len(value)]) + value


def request_headers(path: bytes) -> bytes:
    """The header block of a gRPC call."""
    fields = [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", path),
        (b":authority", b"localhost"),
        (b"content-type", b"application/grpc"),
        (b"te", b"trailers"),
    ]
    return b"".join(literal(name, value) for name, value in fields)


def call(stream: int, path: bytes, message: bytes) -> bytes:
    """A whole unary call."""
    body = b"\x00" + struct.pack(">I", len(message)) + message
    return frame(HEADERS, END_HEADERS, stream, request_headers(path)) + frame(
        DATA, END_STREAM, stream, body
    )


def message(text: bytes) -> bytes:
    """A message as gRPC frames it."""
    return b"\x00" + struct.pack(">I", len(text)) + text


def settings(**values: int) -> bytes:
    """A SETTINGS frame; `initial_window` bounds what the other side may send on a stream."""
    numbers = {"header_table": 1, "push": 2, "initial_window": 4, "max_frame": 5}
    body = b"".join(struct.pack(">HI", numbers[name], value) for name, value in values.items())
    return frame(SETTINGS, 0, 0, body)


class Connection:
    """A socket after the preface. What comes back is read only if asked for."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def open(cls, endpoint: str, *, greet: bool = True, window: int = 65535) -> Connection:
        """Connects; with `greet` the preface and settings are sent."""
        host, port = endpoint.rsplit(":", 1)
        # A small buffer: the server's kernel shall not swallow everything for us.
        connection = cls(*await asyncio.open_connection(host, int(port), limit=4096))
        if greet:
            connection.writer.write(PREFACE + settings(initial_window=window))
            connection.writer.write(frame(SETTINGS, ACK, 0))
            await connection.writer.drain()
        return connection

    async def send(self, data: bytes) -> bool:
        """Sends; False when the other side has closed the connection."""
        try:
            self.writer.write(data)
            await self.writer.drain()
        except (ConnectionError, OSError):
            return False
        return True

    def unread(self) -> None:
        """From now on nothing is taken from the socket."""
        transport = self.writer.transport
        assert isinstance(transport, asyncio.Transport)
        transport.pause_reading()

    def close(self) -> None:
        self.writer.transport.abort()


class DeafStream:
    """A two-way call that obeys HTTP/2 to the letter and takes no answers before `listen`.

    Control frames are read, so the server's windows stay open for us; but the window that we
    give the server for the stream is small and does not grow.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._room = {0: 65535, 1: 65535}
        self._initial = 65535
        self._changed = asyncio.Event()
        self._task = asyncio.create_task(self._read())
        self.ended = False
        self.received = bytearray()
        """What came on the stream: answers, as gRPC frames them."""

    @classmethod
    async def open(cls, endpoint: str, path: bytes) -> DeafStream:
        connection = await Connection.open(endpoint, window=100)
        await connection.send(frame(HEADERS, END_HEADERS, 1, request_headers(path)))
        return cls(connection)

    async def send(self, messages: bytes) -> bool:
        """Sends gRPC-framed messages as the windows allow; False once the stream has ended."""
        while messages and not self.ended:
            size = min(16384, len(messages), *self._room.values())
            if size <= 0:
                self._changed.clear()
                await self._changed.wait()
                continue
            part, messages = messages[:size], messages[size:]
            for stream in self._room:
                self._room[stream] -= size
            if not await self._connection.send(frame(DATA, 0, 1, part)):
                self.ended = True
        return not self.ended

    @property
    def window(self) -> int:
        """Bytes that may be sent on the stream."""
        return self._room[1]

    async def half_close(self) -> None:
        """Says that this was all; once everything was sent."""
        await self._connection.send(frame(DATA, END_STREAM, 1))

    async def listen(self) -> None:
        """From now on all answers are taken."""
        grant = struct.pack(">I", 1 << 30)
        await self._connection.send(b"".join(frame(WINDOW_UPDATE, 0, n, grant) for n in (0, 1)))

    async def close(self) -> None:
        self._connection.close()
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _read(self) -> None:
        reader = self._connection.reader
        try:
            while True:
                head = await reader.readexactly(9)
                kind, flags = head[3], head[4]
                stream = int.from_bytes(head[5:9], "big")
                payload = await reader.readexactly(int.from_bytes(head[:3], "big"))
                if kind == DATA:
                    self.received += payload
                elif kind == WINDOW_UPDATE and stream in self._room:
                    self._room[stream] += int.from_bytes(payload, "big")
                elif kind == SETTINGS and not flags & ACK:
                    # `Connection.open` has acknowledged them: twice would be an error.
                    self._settings(payload)
                elif kind == PING and not flags & ACK:
                    await self._connection.send(frame(PING, ACK, 0, payload))
                elif kind == RST_STREAM or (kind == HEADERS and flags & END_STREAM):
                    break
                self._changed.set()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        self.ended = True
        self._changed.set()

    def _settings(self, payload: bytes) -> None:
        for at in range(0, len(payload), 6):
            number, value = struct.unpack(">HI", payload[at : at + 6])
            if number == 4:
                self._room[1] += value - self._initial
                self._initial = value
