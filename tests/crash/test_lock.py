"""One data directory, one process; and a restart gives leases their full time again."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from kvstore.pb import rpc_pb2
from tests import peers, wire
from tests.crash.lives import in_thread_restart

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

TTL_S = 600


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    """I6 on one machine: the second one ends with an error that names the directory."""

    async def put(endpoint: str, value: bytes) -> bytes:
        async with wire.Client(endpoint) as client:
            await client.put(b"k", value)
            found: bytes = (await client.get(b"k")).kvs[0].value
            return found

    data = tmp_path / "data"
    with peers.start_jotd(data, journal="file") as first:
        assert asyncio.run(put(first.endpoint, b"1")) == b"1"
        with pytest.raises(peers.StartError, match=r"ended with [1-9]") as refused:
            peers.start_jotd(data, journal="file")
        assert str(data) in str(refused.value)
        assert "Traceback" not in str(refused.value)
        assert asyncio.run(put(first.endpoint, b"2")) == b"2"
        first.kill9()
        # A dead process holds no lock.
        first.restart()
        assert asyncio.run(put(first.endpoint, b"3")) == b"3"


def test_leases_start_anew(tmp_path: Path) -> None:
    """After a restart a lease has its full TTL again, so that no client comes too late."""

    async def time_to_live(client: wire.Client) -> rpc_pb2.LeaseTimeToLiveResponse:
        request = rpc_pb2.LeaseTimeToLiveRequest(ID=77, keys=True)
        answer: rpc_pb2.LeaseTimeToLiveResponse = await client.call("LeaseTimeToLive", request)
        return answer

    async def run(jotd: peers.Process) -> None:
        async with wire.Client(jotd.endpoint) as client:
            await client.call("LeaseGrant", rpc_pb2.LeaseGrantRequest(ID=77, TTL=TTL_S))
            await client.put(b"k", b"v", lease=77)
            async with asyncio.timeout(60):
                while (before := await time_to_live(client)).TTL > TTL_S - 4:
                    await asyncio.sleep(0.2)
        jotd.kill9()
        await in_thread_restart(jotd)
        async with wire.Client(jotd.endpoint) as client:
            after = await time_to_live(client)
        assert before.TTL < after.TTL <= TTL_S
        assert (after.grantedTTL, list(after.keys)) == (TTL_S, [b"k"])

    with peers.start_jotd(tmp_path / "data", journal="file") as jotd:
        asyncio.run(run(jotd))
