"""/health, /livez and /readyz, with etcd's checks, answers and switches.

/health is etcd's old one (alarms, leader, a read). /livez and /readyz run named checks, each of
which has an address of its own below them.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Protocol

from kvstore.http.local import LocalError
from kvstore.http.message import (
    Handler,
    Request,
    Response,
    error,
    method_not_allowed,
)
from kvstore.metrics.sources import HealthCounts

log = logging.getLogger(__name__)

SUCCESS = "success"
ERROR = "error"


class HealthSource(Protocol):
    """What is asked about. `LocalClient` is one; every method may raise LocalError."""

    async def read(self, *, serializable: bool) -> None: ...

    async def alarms(self) -> list[str]: ...

    async def has_leader(self) -> bool: ...

    async def is_learner(self) -> bool: ...


Check = Callable[[], Awaitable[None]]


def routes(source: HealthSource, counts: HealthCounts) -> dict[str, Handler]:
    """Path to handler, of everything that this module serves."""
    corrupt = _alarm_check(source, "CORRUPT")
    local, linearizable = _read_check(source, True), _read_check(source, False)
    livez = {"serializable_read": local}
    readyz = {
        "data_corruption": corrupt,
        "serializable_read": local,
        "linearizable_read": linearizable,
        "non_learner": _learner_check(source),
    }
    found: dict[str, Handler] = {"/health": _health(source, counts)}
    for kind, checks in (("livez", livez), ("readyz", readyz)):
        found[f"/{kind}"] = _root(kind, checks, counts)
        for name in checks:
            found[f"/{kind}/{name}"] = _single(kind, name, checks, counts)
    return found


def _health(source: HealthSource, counts: HealthCounts) -> Handler:
    async def handle(request: Request) -> Response:
        if request.method != "GET":
            return method_not_allowed("GET")
        serializable = request.query.get("serializable", [""])[0] == "true"
        excluded = _non_empty(request.query.get("exclude", ()))
        reason = await _health_reason(source, excluded, serializable)
        body = json.dumps(
            {"health": "false" if reason else "true", "reason": reason},
            separators=(",", ":"),
            ensure_ascii=False,
        )
        if reason:
            counts.failures += 1
            log.warning("/health error", extra={"fields": {"output": body, "status-code": 503}})
            return error(503, body)
        counts.successes += 1
        return Response(body=body.encode())

    return handle


async def _health_reason(source: HealthSource, excluded: set[str], serializable: bool) -> str:
    """Why the server is not healthy; empty if it is."""
    try:
        for alarm in await source.alarms():
            if alarm not in excluded:
                return f"ALARM {alarm if alarm in ('NOSPACE', 'CORRUPT') else 'UNKNOWN'}"
        if not serializable and not await source.has_leader():
            return "RAFT NO LEADER"
        await source.read(serializable=serializable)
    except LocalError as why:
        return f"RANGE ERROR:{why}"
    return ""


def _root(kind: str, checks: Mapping[str, Check], counts: HealthCounts) -> Handler:
    async def handle(request: Request) -> Response:
        if request.method != "GET":
            return method_not_allowed("GET")
        excluded = _non_empty(request.query.get("exclude", ()))
        if missing := excluded - checks.keys():
            # Not an error: a probe may name checks of another version.
            log.warning(
                "some health checks cannot be excluded",
                extra={"fields": {"missing-health-checks": sorted(missing)}},
            )
        return await _run(
            kind, [name for name in checks if name not in excluded], checks, counts, request
        )

    return handle


def _single(kind: str, name: str, checks: Mapping[str, Check], counts: HealthCounts) -> Handler:
    async def handle(request: Request) -> Response:
        if request.method != "GET":
            return method_not_allowed("GET")
        return await _run(kind, [name], checks, counts, request)

    return handle


async def _run(
    kind: str,
    names: Sequence[str],
    checks: Mapping[str, Check],
    counts: HealthCounts,
    request: Request,
) -> Response:
    lines, failed = [], False
    for name in names:
        try:
            await checks[name]()
        except LocalError as why:
            failed = True
            lines.append(f"[-]{name} failed: {why}\n")
            _count(counts, kind, name, ERROR)
        else:
            lines.append(f"[+]{name} ok\n")
            _count(counts, kind, name, SUCCESS)
    reason = "".join(lines)
    if failed:
        log.error("Health check error", extra={"fields": {"path": request.path, "reason": reason}})
        return error(503, reason)
    return Response(
        body=(reason if "verbose" in request.query else "").encode() + b"ok\n",
        headers={"X-Content-Type-Options": "nosniff"},
    )


def _count(counts: HealthCounts, kind: str, name: str, status: str) -> None:
    counts.last[kind, name] = status == SUCCESS
    key = (kind, name, status)
    counts.checks[key] = counts.checks.get(key, 0) + 1


def _read_check(source: HealthSource, serializable: bool) -> Check:
    async def check() -> None:
        await source.read(serializable=serializable)

    return check


def _alarm_check(source: HealthSource, alarm: str) -> Check:
    async def check() -> None:
        if alarm in await source.alarms():
            raise LocalError(f"alarm activated: {alarm}")

    return check


def _learner_check(source: HealthSource) -> Check:
    async def check() -> None:
        if await source.is_learner():
            raise LocalError("not supported for learner")

    return check


def _non_empty(texts: Iterable[str]) -> set[str]:
    return {text for text in texts if text}
