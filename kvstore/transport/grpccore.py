"""What every transport on gRPC core shares: its options, credentials, addresses and texts."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

import grpc

from kvstore.transport.address import ListenUrl
from kvstore.transport.options import Tls, TransportOptions
from kvstore.transport.unix import refuse_live

#: grpc-go's words for a call that ends without a request.
NO_REQUEST = "cardinality violation: received no request message from non-client-streaming RPC"

#: gRPC core refuses a message of this many times our own limit before it is read, so that a
#: length field of gigabytes costs nothing (I8). Between the two limits the message is read and
#: refused here, in grpc-go's words.
CORE_LIMIT_FACTOR = 4

#: Calls that gRPC core keeps for the loop before it starts to cancel some at random, and before
#: it cancels all. Its own numbers, 1000 and 3000, are less than one burst of honest clients, which
#: cannot know what became of a cancelled call. Each costs about 7 KB (I8).
CALLS_WAITING_MAX = 20_000
CALLS_WAITING_HARD_MAX = 40_000

#: Adds an address to a server, with credentials or None; 0 or RuntimeError when it cannot.
AddPort = Callable[[str, Any], int]


def too_large(size: int, limit: int) -> str:
    """grpc-go's words for a message over the limit."""
    return f"grpc: received message larger than max ({size} vs. {limit})"


def core_options(options: TransportOptions, request_bytes_max: int) -> list[tuple[str, int]]:
    """gRPC core's own arguments."""
    core: list[tuple[str, int]] = [
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", CORE_LIMIT_FACTOR * request_bytes_max),
        ("grpc.max_send_message_length", -1),
        ("grpc.server.max_pending_requests", CALLS_WAITING_MAX),
        ("grpc.server.max_pending_requests_hard_limit", CALLS_WAITING_HARD_MAX),
        ("grpc.max_metadata_size", options.metadata_soft_bytes),
        ("grpc.absolute_max_metadata_size", options.metadata_hard_bytes),
        # etcd's server has no decompressor: a compressed request is Unimplemented (and cannot be
        # a decompression bomb). 1 is the bit of "identity".
        ("grpc.compression_enabled_algorithms_bitset", 1),
        # Pings are allowed on connections without calls, which etcd refuses (it closes them):
        # nobody depends on being refused.
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", int(options.keepalive_min_time_s * 1000)),
    ]
    if options.keepalive_interval_s > 0 and options.keepalive_timeout_s > 0:
        core.append(("grpc.keepalive_time_ms", _milliseconds(options.keepalive_interval_s)))
        core.append(("grpc.keepalive_timeout_ms", _milliseconds(options.keepalive_timeout_s)))
    if 0 < options.concurrent_streams_max < 2**31:
        core.append(("grpc.max_concurrent_streams", options.concurrent_streams_max))
    return core


def _milliseconds(seconds: float) -> int:
    return min(int(seconds * 1000), 2**31 - 1)


def bind_all(
    add_port: AddPort, urls: tuple[ListenUrl, ...], tls: Tls | None
) -> tuple[ListenUrl, ...]:
    """Binds addresses; returns them with their real ports.

    Raises OSError when one cannot be bound, ValueError when it lacks a certificate.
    """
    credentials = None
    bound = []
    for url in urls:
        if url.secure and credentials is None:
            if tls is None:
                raise ValueError(f"{url} needs a certificate and a key")
            credentials = _credentials(tls)
        bound.append(_bind(add_port, url, credentials if url.secure else None))
    return tuple(bound)


def _credentials(tls: Tls) -> Any:
    roots = tls.trusted_ca_file.read_bytes() if tls.trusted_ca_file else None
    return grpc.ssl_server_credentials(
        [(tls.key_file.read_bytes(), tls.cert_file.read_bytes())],
        root_certificates=roots,
        require_client_auth=roots is not None,
    )


def _bind(add_port: AddPort, url: ListenUrl, credentials: Any) -> ListenUrl:
    if url.is_unix:
        # gRPC core would unlink the socket of a live server and take its place.
        refuse_live(url.path)
        target = f"unix:{url.path}"
    else:
        target = ListenUrl(url.scheme, url.bind_host, url.port).netloc
    try:
        port = add_port(target, credentials)
    except RuntimeError as error:
        raise _bind_error(url, str(error)) from None
    if not port:
        raise _bind_error(url, "gRPC core cannot bind it")
    return url if url.is_unix else ListenUrl(url.scheme, url.host, int(port))


def _bind_error(url: ListenUrl, text: str) -> OSError:
    """gRPC core says only that it failed; the operating system says why."""
    if url.is_unix:
        return OSError(errno.EADDRNOTAVAIL, f"listen unix {url.path}: {text}")
    family = socket.AF_INET6 if ":" in url.bind_host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((url.bind_host, url.port))
        except OSError as why:
            number = why.errno or errno.EADDRNOTAVAIL
            reason = (why.strerror or str(why)).lower()
            return OSError(number, f"listen tcp {url.netloc}: bind: {reason}")
    return OSError(errno.EADDRNOTAVAIL, f"listen tcp {url.netloc}: {text}")


def bare_address(peer: str) -> str:
    """gRPC core's name of a peer ("ipv4:127.0.0.1:5000", "ipv6:%5B::1%5D:5000") for a log."""
    return unquote(peer.partition(":")[2] or peer) or "unknown"
