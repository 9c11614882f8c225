"""What an attack may not change: the server lives, the data stands, another client is served."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import grpc.aio

from tests import wire
from tests.peers import Process

GUARDED = b"guarded/"
GUARDED_KEYS = 200
#: A healthy client waits this long at most; a safety net, far from what is usual.
ANSWER_SECONDS_MAX = 15.0
#: What calls get that reach gRPC core while it has no accept loop.
HICCUPS = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}


def resident_bytes(process: Process) -> int:
    """Memory of the process (VmRSS)."""
    for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) << 10
    raise AssertionError("no VmRSS")


def open_files(process: Process) -> int:
    """Number of open file descriptors of the process."""
    return len(os.listdir(f"/proc/{process.pid}/fd"))


async def prepare(process: Process) -> None:
    """Writes the guarded data."""
    async with wire.Client(process.endpoint) as client:
        for n in range(GUARDED_KEYS):
            await client.put(GUARDED + b"%d" % n, b"value %d" % n)


async def _guarded(client: wire.Client) -> list[object]:
    answer = await client.get(GUARDED, GUARDED + b"\xff")
    return list(answer.kvs)


@contextlib.asynccontextmanager
async def guarding(process: Process, *, hiccups: bool = False) -> AsyncIterator[wire.Client]:
    """Around an attack: a second client is served all along, and nothing changed at the end.

    Gives a well-behaved client on a connection of its own. `hiccups` lets the second client be
    told so by `HICCUPS`, and the log hold what the attack provoked in the gRPC library.
    """
    served = 0
    logged = len(process.log_text())

    async def live() -> None:
        nonlocal served
        async with wire.Client(process.endpoint) as canary:
            while True:
                value = b"%d" % served
                try:
                    await canary.call("Put", _put(value), timeout=ANSWER_SECONDS_MAX)
                    answer = await canary.get(b"canary")
                except grpc.aio.AioRpcError as error:
                    if not hiccups or error.code() not in HICCUPS:
                        raise
                else:
                    assert answer.kvs[0].value == value, answer
                    served += 1
                await asyncio.sleep(0.02)

    async with wire.Client(process.endpoint) as client:
        before = await _guarded(client)
        assert len(before) == GUARDED_KEYS
        task = asyncio.create_task(live())
        try:
            yield client
            # It is served still, and not only before the attack.
            target = served + 3
            async with asyncio.timeout(ANSWER_SECONDS_MAX):
                while served < target and not task.done():
                    await asyncio.sleep(0.01)
        finally:
            task.cancel()
            results = await asyncio.gather(task, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise AssertionError("the other client was not served") from result
        assert process.alive, process.log_text()[-3000:]
    async with wire.Client(process.endpoint) as client:
        assert await _guarded(client) == before
    log = process.log_text()[logged:]
    assert hiccups or "Traceback" not in log, log[log.index("Traceback") - 500 :][:5000]


def _put(value: bytes) -> object:
    return wire.METHODS["Put"].request(key=b"canary", value=value)
