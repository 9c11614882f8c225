"""What a journal's URL says.

    nats://[USER[:PASSWORD]@]HOST[:PORT][,HOST[:PORT]...]/NAME[?OPTION=VALUE&...]

USER without a password is a token. `nats-tls://`, or `?tls=true`, insists on TLS, and so does any
of the options for it. Users and passwords are percent-encoded where they have to be.

Pure; nothing of it is ever put into an error text or a log but NAME, the servers' addresses and the
paths of files.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

from journal.contract import JournalError

DEFAULT_PORT = 4222
REPLICAS = 3
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_SCHEMES = ("nats", "nats-tls")


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything about one journal that its URL or its options can say."""

    name: str
    servers: tuple[str, ...]
    """``host:port`` each."""
    user: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)
    creds: Path | None = None
    """A file with a user's JWT and seed."""
    nkey: Path | None = None
    """A file with a seed."""
    tls: bool = False
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    replicas: int = REPLICAS
    snapshots: Path | None = None
    """A directory that all nodes share; None for the object store of JetStream."""
    unknown_s: float = 15.0
    """After how long an append whose outcome cannot be found out raises Unknown."""


def _flag(text: str) -> bool:
    if text.lower() in ("true", "1", "yes"):
        return True
    if text.lower() in ("false", "0", "no"):
        return False
    raise ValueError(text)


def _replicas(text: str) -> int:
    if (number := int(text)) not in range(1, 6):
        raise ValueError(text)
    return number


def _seconds(text: str) -> float:
    if not 0 < (number := float(text)) < 3600:
        raise ValueError(text)
    return number


_OPTIONS: dict[str, Callable[[str], object]] = {
    "replicas": _replicas,
    "tls": _flag,
    "creds": Path,
    "nkey": Path,
    "ca": Path,
    "cert": Path,
    "key": Path,
    "snapshots": Path,
    "unknown_s": _seconds,
}


def parse(url: str) -> Settings:
    """JournalError, which names what is wrong and no secret."""
    parts = urlsplit(url)
    if parts.scheme not in _SCHEMES:
        raise JournalError(f"not a URL of a NATS journal: it begins with {parts.scheme!r}")
    credentials, _, hosts = parts.netloc.rpartition("@")
    values: dict[str, object] = {"tls": parts.scheme == "nats-tls"}
    if credentials:
        user, colon, password = credentials.partition(":")
        if colon:
            values["user"], values["password"] = unquote(user), unquote(password)
        else:
            values["token"] = unquote(user)
    name = parts.path.removeprefix("/")
    if not _NAME.fullmatch(name):
        raise JournalError(
            f"a NATS journal needs a name of letters, digits, '_' and '-' behind its servers "
            f"(nats://host:port/NAME), not {name!r}"
        )
    for option, text in parse_qsl(parts.query, keep_blank_values=True):
        convert = _OPTIONS.get(option)
        if convert is None:
            known = ", ".join(sorted(_OPTIONS))
            raise JournalError(f"a NATS journal has no option {option!r}; there are: {known}")
        try:
            if not text:
                raise ValueError
            values[option] = convert(text)
        except ValueError:
            raise JournalError(f"?{option}={text} is not a value of that option") from None
    if bool(values.get("cert")) != bool(values.get("key")):
        raise JournalError("?cert= and ?key= go together")
    if values.get("creds") and values.get("nkey"):
        raise JournalError("?creds= and ?nkey= are two users; there can be one")
    if values.get("ca") or values.get("cert"):
        values["tls"] = True
    return Settings(name=name, servers=_servers(hosts), **values)  # type: ignore[arg-type]


def _servers(hosts: str) -> tuple[str, ...]:
    servers = []
    for host in hosts.split(","):
        try:
            address = urlsplit(f"nats://{host}")
            port = address.port or DEFAULT_PORT
        except ValueError:
            raise JournalError(f"not the address of a NATS server: {host!r}") from None
        if not address.hostname or "@" in host:
            raise JournalError("a NATS journal needs servers: nats://host:port,host:port/NAME")
        named = f"[{address.hostname}]" if ":" in address.hostname else address.hostname
        servers.append(f"{named}:{port}")
    return tuple(servers)
