"""What a transport is told when it is made, whichever it is."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from kvstore.transport.address import ListenUrl

#: Bytes that a stream may have queued before its service has to wait (I8).
STREAM_ROOM_BYTES = 1 << 20


@dataclass(frozen=True)
class Tls:
    """Files (PEM) of a TLS listener. They are read once, when the transport starts."""

    cert_file: Path
    key_file: Path
    trusted_ca_file: Path | None = None
    """With it, every client has to show a certificate that it signed, as in etcd."""


@dataclass(frozen=True)
class TransportOptions:
    """Limits and addresses of a transport. The defaults are etcd's, where it has one."""

    listen: tuple[ListenUrl, ...]
    tls: Tls | None = None
    concurrent_streams_max: int = 16_384
    """Calls and streams open at once on one connection; further ones wait in the client.

    etcd's default is 2^32-1. A bound is needed against a client that opens streams without end
    (I8), and this one is far above what any client of etcd's does. 0 means no limit, as in etcd.
    """
    keepalive_min_time_s: float = 5.0
    keepalive_interval_s: float = 2 * 3600.0
    keepalive_timeout_s: float = 20.0
    metadata_soft_bytes: int = 8 << 10
    metadata_hard_bytes: int = 16 << 10
    stream_room_bytes: int = field(default=STREAM_ROOM_BYTES)
