"""Listen URLs, read by etcd's rules, for everything here that binds an address."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from urllib.parse import urlsplit

SCHEMES = ("http", "https", "unix", "unixs")


@dataclass(frozen=True)
class ListenUrl:
    """One place to listen on: a host and port, or the path of a unix socket."""

    scheme: str
    host: str = ""
    """An IP address without brackets, or ``localhost``; empty for a unix socket."""
    port: int = 0
    """0 asks the operating system for a free one."""
    path: str = ""

    @property
    def secure(self) -> bool:
        return self.scheme in ("https", "unixs")

    @property
    def is_unix(self) -> bool:
        return self.scheme in ("unix", "unixs")

    @property
    def netloc(self) -> str:
        """``host:port``, or the path of the socket."""
        if self.is_unix:
            return self.path
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def bind_host(self) -> str:
        """The host to bind: as Go's net.Listen does, ``localhost`` means IPv4 first."""
        return "127.0.0.1" if self.host == "localhost" else self.host

    def __str__(self) -> str:
        return f"{self.scheme}://{self.netloc}"


def parse_url(text: str) -> ListenUrl:
    """A URL of the forms that etcd takes for clients. Raises ValueError in etcd's words."""
    text = text.strip()
    try:
        parts = urlsplit(text)
    except ValueError as error:
        raise ValueError(f"{error}: {text}") from None
    if parts.scheme not in SCHEMES:
        raise ValueError(f"URL scheme must be http, https, unix, or unixs: {text}")
    if parts.scheme in ("unix", "unixs"):
        path = parts.netloc + parts.path
        if not path:
            raise ValueError(f"URL names no socket: {text}")
        return ListenUrl(parts.scheme, path=path)
    try:
        port = parts.port
    except ValueError:
        port = None
    if port is None or "@" in parts.netloc:
        raise ValueError(f'URL address does not have the form "host:port": {text}')
    if parts.path or parts.query or parts.fragment:
        raise ValueError(f"URL must not contain a path: {text}")
    return ListenUrl(parts.scheme, host=parts.hostname or "", port=port)


def parse_listen_url(text: str) -> ListenUrl:
    """A URL to bind: its host has to be an IP address or ``localhost``. Raises ValueError."""
    url = parse_url(text)
    if not url.is_unix and url.host != "localhost":
        try:
            ipaddress.ip_address(url.host)
        except ValueError:
            raise ValueError(f"expected IP in URL for binding ({text.strip()})") from None
    return url
