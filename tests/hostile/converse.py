"""One gRPC call by hand: any bytes in, and whatever the server makes of them out.

Answers are read with an HPACK decoder, since servers compress them as they like.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from dataclasses import dataclass, field

import hpack

from tests.hostile import http2

WAIT_S = 10.0
GOAWAY = 7
PADDED, PRIORITY = 8, 32

Headers = dict[str, str]


@dataclass
class Answer:
    """What came on one stream, up to its end or that of the connection."""

    headers: Headers = field(default_factory=dict)
    trailers: Headers = field(default_factory=dict)
    data: bytes = b""
    reset: int | None = None
    """The error code of a RST_STREAM."""
    goaway: int | None = None
    """The error code of a GOAWAY."""
    closed: bool = False
    """The server closed the connection before the stream was over."""

    @property
    def status(self) -> tuple[str | None, str | None, str]:
        """The HTTP status, grpc-status and grpc-message, the last as it was sent."""
        last = {**self.headers, **self.trailers}
        return last.get(":status"), last.get("grpc-status"), last.get("grpc-message", "")


def field_block(*fields: tuple[bytes, bytes]) -> bytes:
    """A header block of literals; values of any length."""
    out = b""
    for name, value in fields:
        out += b"\x10" + _string(name) + _string(value)
    return out


def _string(text: bytes) -> bytes:
    if len(text) < 127:
        return bytes([len(text)]) + text
    rest, out = len(text) - 127, b"\x7f"
    while rest >= 128:
        out += bytes([rest & 127 | 128])
        rest >>= 7
    return out + bytes([rest]) + text


def call_headers(
    path: bytes, *more: tuple[bytes, bytes], without: tuple[bytes, ...] = (), **instead: bytes
) -> bytes:
    """The block of a gRPC call; `instead` has values for pseudo-headers, by name."""
    fields = {
        b":method": b"POST",
        b":scheme": b"http",
        b":path": path,
        b":authority": b"localhost",
        b"content-type": b"application/grpc",
        b"te": b"trailers",
        **{b":" + name.encode(): value for name, value in instead.items()},
    }
    return field_block(*((n, v) for n, v in fields.items() if n not in without), *more)


def message(body: bytes, flag: int = 0, length: int | None = None) -> bytes:
    """A gRPC message with its prefix, true or not."""
    size = len(body) if length is None else length
    return bytes([flag]) + size.to_bytes(4, "big") + body


def frames(block: bytes, data: bytes | None, *, end: bool = True) -> bytes:
    """Stream 1: its headers, and its data in frames of the usual size; None for none."""
    last = http2.END_STREAM if end else 0
    first = http2.END_HEADERS | (last if data is None else 0)
    pieces = [block[at : at + 16384] for at in range(0, len(block), 16384)]
    if len(pieces) > 1:
        first &= ~http2.END_HEADERS
    out = http2.frame(http2.HEADERS, first, 1, pieces[0])
    for piece in pieces[1:]:
        flags = http2.END_HEADERS if piece is pieces[-1] else 0
        out += http2.frame(http2.CONTINUATION, flags, 1, piece)
    if data is not None:
        parts = [data[at : at + 16384] for at in range(0, len(data), 16384)] or [b""]
        for part in parts:
            out += http2.frame(http2.DATA, last if part is parts[-1] else 0, 1, part)
    return out


def converse(
    port: int, request: bytes, *, wait_s: float = WAIT_S, tls: ssl.SSLContext | None = None
) -> Answer:
    """Sends frames after the preface, and reads until stream 1 is over."""
    answer = Answer()
    with contextlib.ExitStack() as stack:
        sock = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=wait_s))
        if tls is not None:
            sock = stack.enter_context(tls.wrap_socket(sock, server_hostname="localhost"))
        sock.sendall(http2.PREFACE + http2.settings(initial_window=1 << 24))
        # What follows may be refused half-way.
        try:
            sock.sendall(request)
        except ConnectionError:
            pass
        _read(sock, answer)
    return answer


def _read(sock: socket.socket, answer: Answer) -> None:
    decoder = hpack.Decoder()
    block = b""
    while True:
        try:
            head = _exactly(sock, 9)
            payload = _exactly(sock, int.from_bytes(head[:3], "big"))
        except (ConnectionError, EOFError):
            answer.closed = True
            return
        kind, flags = head[3], head[4]
        if kind == http2.SETTINGS and not flags & http2.ACK:
            sock.sendall(http2.frame(http2.SETTINGS, http2.ACK, 0))
        elif kind == http2.PING and not flags & http2.ACK:
            sock.sendall(http2.frame(http2.PING, http2.ACK, 0, payload))
        elif kind == GOAWAY:
            answer.goaway = int.from_bytes(payload[4:8], "big")
        elif kind == http2.RST_STREAM:
            answer.reset = int.from_bytes(payload, "big")
            return
        elif kind == http2.DATA:
            answer.data += payload
        elif kind in (http2.HEADERS, http2.CONTINUATION):
            block += payload
            if flags & http2.END_HEADERS:
                found = {str(n): str(v) for n, v in decoder.decode(block)}
                block = b""
                (answer.trailers if answer.headers else answer.headers).update(found)
        if kind in (http2.DATA, http2.HEADERS) and flags & http2.END_STREAM:
            return


def _exactly(sock: socket.socket, size: int) -> bytes:
    out = b""
    while len(out) < size:
        part = sock.recv(size - len(out))
        if not part:
            raise EOFError
        out += part
    return out
