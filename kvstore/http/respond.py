"""From the head of a request to its answer, whatever carried them."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from urllib.parse import parse_qs, unquote, urlsplit

from kvstore.http.message import Handler, Request, Response, error

log = logging.getLogger(__name__)


async def respond(
    handler: Handler, method: str, target: str, headers: Iterable[tuple[str, str]]
) -> Response:
    """The handler's answer, or why there is none. `headers`: by lower-case name."""
    try:
        parts = urlsplit(target, allow_fragments=False)
        query = parse_qs(parts.query, keep_blank_values=True, max_num_fields=100)
    except ValueError:
        return error(400, "400 Bad Request")
    request = Request(method, unquote(parts.path), query, dict(headers))
    try:
        return await handler(request)
    except Exception:
        log.exception("%s %s failed", request.method, request.path)
        return error(500, "500 Internal Server Error")
