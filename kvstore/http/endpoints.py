"""Which path is answered by what."""

from __future__ import annotations

import asyncio
import json

from kvstore.http import health
from kvstore.http.local import LocalClient, LocalError
from kvstore.http.message import Handler, Request, Response, error, method_not_allowed, not_found
from kvstore.metrics.collector import CONTENT_TYPE, Metrics, render
from kvstore.metrics.sources import HealthCounts


class Endpoints:
    """All of the HTTP side as one handler."""

    def __init__(self, client: LocalClient, counts: HealthCounts, metrics: Metrics) -> None:
        self._client = client
        self._metrics = metrics
        self._rendering = asyncio.Lock()
        self._routes: dict[str, Handler] = {
            **health.routes(client, counts),
            "/version": self._version,
            "/metrics": self._scrape,
        }

    async def handle(self, request: Request) -> Response:
        route = self._routes.get(request.path)
        return not_found() if route is None else await route(request)

    async def _version(self, request: Request) -> Response:
        if request.method != "GET":
            return method_not_allowed("GET")
        try:
            status = await self._client.status()
        except LocalError as why:
            return error(503, str(why))
        cluster = ".".join(status.version.split(".")[:2]) + ".0"
        body = {
            "etcdserver": status.version,
            "etcdcluster": cluster,
            "storage": status.storageVersion or cluster,
        }
        return Response(
            body=json.dumps(body, separators=(",", ":")).encode(), content_type="application/json"
        )

    async def _scrape(self, request: Request) -> Response:
        # One at a time: the text takes milliseconds of the interpreter, whoever asks.
        async with self._rendering:
            text = await asyncio.to_thread(render, self._metrics.freeze())
        return Response(body=text, content_type=CONTENT_TYPE)
