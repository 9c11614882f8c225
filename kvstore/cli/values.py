"""Values of flags, read as Go's flag package and etcd read them.

Every function takes the text and raises ValueError with what is wrong with it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from kvstore.transport.address import ListenUrl, parse_listen_url, parse_url

_TRUE = frozenset(("1", "t", "T", "TRUE", "true", "True"))
_FALSE = frozenset(("0", "f", "F", "FALSE", "false", "False"))

_UNIT_S = {
    "ns": 1e-9,
    "us": 1e-6,
    "µs": 1e-6,
    "μs": 1e-6,
    "ms": 1e-3,
    "s": 1.0,
    "m": 60.0,
    "h": 3600.0,
}
_DURATION = re.compile(r"(\d+\.?\d*|\.\d+)(ns|us|µs|μs|ms|s|m|h)")


def boolean(text: str) -> bool:
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    raise ValueError(f"{text!r} is not true or false")


def integer(text: str) -> int:
    try:
        return int(text, 0)
    except ValueError:
        raise ValueError(f"{text!r} is not a whole number") from None


def unsigned(text: str) -> int:
    value = integer(text)
    if value < 0:
        raise ValueError(f"{text!r} is negative")
    return value


def uint32(text: str) -> int:
    value = unsigned(text)
    if value >= 2**32:
        raise ValueError(f"{text!r} does not fit into 32 bits")
    return value


def positive(text: str) -> int:
    value = integer(text)
    if value <= 0:
        raise ValueError(f"{text!r} is not above 0")
    return value


def duration(text: str) -> float:
    """Seconds of a Go duration, such as ``1h30m``, ``1.5s`` or ``0``; not a negative one."""
    if text == "0":
        return 0.0
    seconds, end = 0.0, 0
    rest = text.removeprefix("+")
    for match in _DURATION.finditer(rest):
        if match.start() != end:
            break
        seconds += float(match[1]) * _UNIT_S[match[2]]
        end = match.end()
    if not rest or end != len(rest):
        raise ValueError(f"{text!r} is not a duration such as 300ms, 5s or 1h30m")
    return seconds


def listen_urls(text: str) -> tuple[ListenUrl, ...]:
    """One or several URLs to bind, comma-separated; at least one, each once, in order."""
    return _urls(text, parse_listen_url)


def optional_listen_urls(text: str) -> tuple[ListenUrl, ...]:
    return listen_urls(text) if text.strip() else ()


def advertised_urls(text: str) -> tuple[str, ...]:
    return tuple(map(str, _urls(text, parse_url)))


def _urls(text: str, parse: Callable[[str], ListenUrl]) -> tuple[ListenUrl, ...]:
    urls: dict[ListenUrl, None] = {}
    for part in text.split(","):
        urls[parse(part)] = None
    return tuple(urls)


def optional_path(text: str) -> Path | None:
    return Path(text) if text else None


def one_of(*choices: str) -> Callable[[str], str]:
    """A reader that takes exactly these words."""

    def read(text: str) -> str:
        if text not in choices:
            raise ValueError(f"{text!r} is not one of {', '.join(choices)}")
        return text

    return read


def words(text: str) -> tuple[str, ...]:
    return tuple(part for part in text.split(",") if part)
