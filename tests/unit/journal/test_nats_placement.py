"""What an attempt to move a stream's leader costs where it does not work out: next to nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest

from journal.nats import placement
from journal.nats.link import Unreachable
from journal.nats.placement import Placement
from journal.nats.stream import ApiError, Info


def led_by(leader: str, *replicas: dict[str, Any]) -> Info:
    state = {"first_seq": 1, "last_seq": 1, "messages": 1, "bytes": 1}
    cluster = {"leader": leader, "replicas": replicas}
    return Info.of({"config": {}, "created": "", "state": state, "cluster": cluster})


class Servers:
    """Stands for stream and link: three servers, one of which leads."""

    name = "s"
    server = "here"

    def __init__(self, step_down: Callable[[Servers], None]) -> None:
        self.leader = "there"
        self.asked = 0
        self._step_down = step_down

    async def info(self, *, patience_s: float) -> Info:
        names = {"here", "there", "elsewhere"} - {self.leader}
        return led_by(self.leader, *({"name": name, "current": True} for name in sorted(names)))

    async def call(self, verb: str, body: Any, *, patience_s: float) -> None:
        assert body == {"placement": {"preferred": "here"}}
        self.asked += 1
        self._step_down(self)


def leads(name: str) -> Callable[[Servers], None]:
    return lambda servers: setattr(servers, "leader", name)


def fails(error: Exception) -> Callable[[Servers], None]:
    def fail(servers: Servers) -> None:
        raise error

    return fail


async def tried(servers: Servers) -> Placement:
    """A placement after one attempt."""
    made = Placement(servers, servers)  # type: ignore[arg-type]
    made.appended(1.0)
    while made.target is None:
        await asyncio.sleep(0)
    await made.move()
    return made


@pytest.mark.parametrize(
    ("replica", "may"),
    [
        ({"name": "here", "current": True}, True),
        ({"name": "here", "current": True, "lag": 3}, False),
        ({"name": "here", "current": False}, False),
        ({"name": "here", "current": True, "offline": True}, False),
        ({"name": "elsewhere", "current": True}, False),
    ],
)
def test_who_may_lead(replica: dict[str, Any], may: bool) -> None:
    info = led_by("there", replica)
    assert placement.may_lead(info, "here") is may
    assert not placement.may_lead(info, "there")


def test_where_it_works() -> None:
    async def main() -> None:
        servers = Servers(leads("here"))
        made = await tried(servers)
        assert servers.leader == "here" and made._pause_s == placement.PAUSE_S
        made.appended(1e9)
        await asyncio.sleep(0.01)
        assert made.target is None and servers.asked == 1

    asyncio.run(main())


@pytest.mark.parametrize(
    "step_down",
    [
        leads("elsewhere"),
        leads("there"),
        fails(Unreachable("no answer, since that is not permitted")),
        fails(ApiError({"err_code": 10005, "description": "no suitable peers for placement"})),
        fails(ValueError("no JSON")),
    ],
    ids=["another leads", "it stays", "not permitted", "refused", "nonsense"],
)
def test_where_it_does_not_work(step_down: Callable[[Servers], None]) -> None:
    async def main() -> None:
        servers = Servers(step_down)
        made = await tried(servers)
        assert servers.asked == 1 and made.target is None
        # Nor is it tried again soon, though another server leads as before.
        assert made._pause_s == 4 * placement.PAUSE_S
        made.appended(time.monotonic() + placement.LOOK_S)
        await asyncio.sleep(0.01)
        assert made.target is None
        made.connected()
        assert made._pause_s == placement.PAUSE_S

    asyncio.run(main())
