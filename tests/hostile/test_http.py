"""I8 on the HTTP side: /health and /metrics listen to strangers too."""

from __future__ import annotations

import asyncio
import random
import urllib.request
from collections.abc import Iterator

import pytest

from tests import peers
from tests.hostile import guard
from tests.hostile.guard import guarding, open_files, resident_bytes
from tests.hostile.http2 import Connection

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

MIB = 1 << 20


@pytest.fixture(scope="module")
def jotd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[peers.Process]:
    with peers.start_jotd(tmp_path_factory.mktemp("hostile") / "data") as process:
        asyncio.run(guard.prepare(process))
        yield process


def _address(jotd: peers.Process) -> str:
    assert jotd.metrics_url is not None
    return jotd.metrics_url.split("//", 1)[1]


def _healthy(jotd: peers.Process) -> None:
    with urllib.request.urlopen(f"{jotd.metrics_url}/health", timeout=15) as answer:
        assert answer.status == 200
        assert b'"health":"true"' in answer.read()


def test_requests_that_are_not_requests(jotd: peers.Process) -> None:
    rng = random.Random(3)
    openings = [
        b"GET /health HTTP/9.9\r\n\r\n",
        b"GET /health HTTP/1.1\r\n\r\n",
        b"GET " + b"/" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: x\r\n" + b"x: y\r\n" * 20_000 + b"\r\n",
        b"GET /health HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /health HTTP/1.1\r\nHost: x\r\nContent-Length: 999999999999\r\n\r\n" + b"x" * 10_000,
        b"POST /health HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nfffffffff\r\nx",
        b"GET /%00/../../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nHost: \xff\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 200,
        *(rng.randbytes(rng.randrange(1, 5000)) for _ in range(50)),
    ]

    async def run() -> None:
        async with guarding(jotd):
            before = resident_bytes(jotd)
            for data in openings:
                connection = await Connection.open(_address(jotd), greet=False)
                await connection.send(data)
                try:
                    async with asyncio.timeout(0.05):
                        await connection.reader.read(1000)
                except (TimeoutError, ConnectionError):
                    pass
                connection.close()
            assert resident_bytes(jotd) - before < 64 * MIB

    asyncio.run(run())
    _healthy(jotd)


def test_endless_bodies_and_slow_headers(jotd: peers.Process) -> None:
    """What is sent without end is not kept, and what never comes is not waited for in vain."""

    async def run() -> None:
        async with guarding(jotd):
            files, before = open_files(jotd), resident_bytes(jotd)
            slow = []
            for n in range(200):
                connection = await Connection.open(_address(jotd), greet=False)
                await connection.send(b"GET /health HTTP/1.1\r\nHost: x\r\nx-%d: " % n)
                slow.append(connection)
            endless = await Connection.open(_address(jotd), greet=False)
            await endless.send(
                b"POST /health HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000000\r\n\r\n"
            )
            for _ in range(200):
                try:
                    async with asyncio.timeout(0.5):
                        if not await endless.send(b"x" * 100_000):
                            break
                except TimeoutError:
                    break
            await asyncio.to_thread(_healthy, jotd)
            assert resident_bytes(jotd) - before < 64 * MIB
            for connection in [*slow, endless]:
                connection.close()
            async with asyncio.timeout(20):
                while open_files(jotd) > files + 20:
                    await asyncio.sleep(0.1)

    asyncio.run(run())


def test_answers_that_nobody_reads(jotd: peers.Process) -> None:
    """Thousands of scrapes, one after the other, whose answers nobody takes."""

    async def run() -> None:
        async with guarding(jotd):
            before = resident_bytes(jotd)
            connection = await Connection.open(_address(jotd), greet=False)
            connection.unread()
            for _ in range(100):
                try:
                    async with asyncio.timeout(0.5):
                        if not await connection.send(
                            b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 100
                        ):
                            break
                except TimeoutError:
                    break
            await asyncio.to_thread(_healthy, jotd)
            assert resident_bytes(jotd) - before < 64 * MIB
            connection.close()

    asyncio.run(run())
