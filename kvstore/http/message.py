"""A request and an answer, and errors as Go's net/http words them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

TEXT = "text/plain; charset=utf-8"


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    query: Mapping[str, Sequence[str]] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    """By lower-case name; of several with one name the last."""


@dataclass(frozen=True)
class Response:
    status: int = 200
    body: bytes = b""
    content_type: str = TEXT
    headers: Mapping[str, str] = field(default_factory=dict)


Handler = Callable[[Request], Awaitable[Response]]


def error(status: int, text: str, headers: Mapping[str, str] | None = None) -> Response:
    """What http.Error makes: the text and a newline, never sniffed for another type."""
    return Response(
        status,
        text.encode() + b"\n",
        headers={"X-Content-Type-Options": "nosniff", **(headers or {})},
    )


def not_found() -> Response:
    return error(404, "404 page not found")


def method_not_allowed(allowed: str) -> Response:
    return error(405, "Method Not Allowed", {"Allow": allowed})
