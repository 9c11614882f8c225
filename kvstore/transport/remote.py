"""The way from one node to another: a gRPC client that knows bytes only."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import grpc
import grpc.aio

from kvstore.transport.options import Tls
from kvstore.transport.seam import Code, RemoteError

OPTIONS = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # Nodes find each other again as soon as they can, not after minutes of back-off.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # A machine that is gone says nothing: ask.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
)

UNSENT = ("failed to connect to all addresses",)
"""What grpc says of a call for which there was no connection at all."""


class GrpcRemote:
    """Channels to other nodes, by URL. A seam `Remote`."""

    def __init__(self, tls: Tls | None) -> None:
        """`tls`: this node's own; its CA is believed, and its certificate shown."""
        self._tls = tls
        self._channels: dict[str, grpc.aio.Channel] = {}

    async def unary(
        self,
        url: str,
        method: str,
        request: bytes,
        metadata: list[tuple[str, str]],
        within_s: float,
    ) -> bytes:
        """See `Remote`."""
        try:
            response: bytes = await self._channel(url).unary_unary(method)(
                request, timeout=within_s, metadata=metadata
            )
        except grpc.aio.AioRpcError as error:
            raise _translated(error) from None
        return response

    async def stream(
        self,
        url: str,
        method: str,
        requests: AsyncIterator[bytes],
        metadata: list[tuple[str, str]],
    ) -> AsyncIterator[bytes]:
        """See `Remote`."""
        call = self._channel(url).stream_stream(method)(requests, metadata=metadata)
        try:
            async for message in call:
                yield message
        except grpc.aio.AioRpcError as error:
            raise _translated(error) from None
        finally:
            call.cancel()

    async def close(self) -> None:
        """Close all channels."""
        channels, self._channels = list(self._channels.values()), {}
        await asyncio.gather(*(channel.close() for channel in channels))

    def _channel(self, url: str) -> grpc.aio.Channel:
        channel = self._channels.get(url)
        if channel is None:
            parts = urlsplit(url)
            target = f"unix:{parts.path}" if parts.scheme.startswith("unix") else parts.netloc
            if parts.scheme in ("https", "unixs"):
                channel = grpc.aio.secure_channel(target, self._credentials(), OPTIONS)
            else:
                channel = grpc.aio.insecure_channel(target, OPTIONS)
            self._channels[url] = channel
        return channel

    def _credentials(self) -> grpc.ChannelCredentials:
        tls = self._tls
        if tls is None:
            return grpc.ssl_channel_credentials()
        ca = tls.trusted_ca_file
        return grpc.ssl_channel_credentials(
            ca.read_bytes() if ca is not None else None,
            tls.key_file.read_bytes(),
            tls.cert_file.read_bytes(),
        )


def _translated(error: grpc.aio.AioRpcError) -> RemoteError:
    details = error.details() or ""
    unsent = error.code() is grpc.StatusCode.UNAVAILABLE and details.startswith(UNSENT)
    return RemoteError(Code(error.code().value[0]), details, unsent=unsent)
