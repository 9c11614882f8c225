"""Running out of room: a full disk, and the quota. Writes are refused; all else goes on.

The order of things is etcd's: a NOSPACE alarm is raised, requests that add data are refused with
`etcdserver: mvcc: database space exceeded`, deletes, reads and compaction go on. What the quota
raised the operator disarms once there is room again; what the disk raised goes with its cause.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import grpc
import grpc.aio
import pytest

from kvstore.pb import rpc_pb2
from tests import peers, wire
from tests.crash.lives import in_thread_restart

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

NO_SPACE = "etcdserver: mvcc: database space exceeded"
QUOTA_BYTES = 4 << 20
DISK_MIB = 160
VALUE_BYTES = 64 << 10
FILL_WRITES_MAX = 6000


async def _refused(client: wire.Client, method: str, request: object) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as info:
        await client.call(method, request)
    error = info.value
    assert (error.code(), error.details()) == (grpc.StatusCode.RESOURCE_EXHAUSTED, NO_SPACE), (
        f"{method}: {error.code()} {error.details()}"
    )


async def _fill(client: wire.Client) -> int:
    """Puts until there is no more room. Returns how many were acknowledged."""
    for n in range(FILL_WRITES_MAX):
        try:
            await client.put(b"fill/%06d" % n, os.urandom(VALUE_BYTES))
        except grpc.aio.AioRpcError as error:
            assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED, error
            assert error.details() == NO_SPACE, error
            return n
    raise AssertionError("the store never ran out of room")


async def _alarms(client: wire.Client) -> list[int]:
    answer = await client.call("Alarm", rpc_pb2.AlarmRequest())
    return [member.alarm for member in answer.alarms]


async def _disarm(client: wire.Client) -> None:
    """What `etcdctl alarm disarm` does."""
    listed = await client.call("Alarm", rpc_pb2.AlarmRequest())
    for member in listed.alarms:
        request = rpc_pb2.AlarmRequest(
            action=rpc_pb2.AlarmRequest.DEACTIVATE, memberID=member.memberID, alarm=member.alarm
        )
        await client.call("Alarm", request)
    assert await _alarms(client) == []


async def _what_goes_on(client: wire.Client, filled: int) -> None:
    """With the alarm on: what adds data is refused, the rest works."""
    assert await _alarms(client) == [rpc_pb2.AlarmType.NOSPACE]
    revision = await client.revision()
    await _refused(client, "Put", rpc_pb2.PutRequest(key=b"small", value=b"x"))
    txn = rpc_pb2.TxnRequest()
    txn.success.add().request_put.key = b"small"
    await _refused(client, "Txn", txn)
    await _refused(client, "LeaseGrant", rpc_pb2.LeaseGrantRequest(TTL=100))
    assert await client.revision() == revision

    answer = await client.get(b"fill/", b"fill0", count_only=True)
    assert answer.count == filled
    value = (await client.get(b"fill/%06d" % (filled - 1))).kvs[0].value
    assert len(value) == VALUE_BYTES
    assert (await client.delete(b"fill/000000")).deleted == 1
    txn = rpc_pb2.TxnRequest()
    txn.success.add().request_delete_range.key = b"fill/000001"
    txn.success.add().request_range.key = b"fill/000002"
    assert (await client.call("Txn", txn)).responses[0].response_delete_range.deleted == 1
    status = await client.call("Status", rpc_pb2.StatusRequest())
    assert any("NOSPACE" in text for text in status.errors), status


async def _free(client: wire.Client) -> None:
    """What etcd's documentation says: delete, compact, defragment, disarm."""
    await client.delete(b"fill/", b"fill0")
    revision = await client.revision()
    await client.call("Compact", rpc_pb2.CompactionRequest(revision=revision, physical=True))
    await client.call("Defragment", rpc_pb2.DefragmentRequest())
    await _disarm(client)
    await client.put(b"after", b"room again")


async def _over_quota(process: peers.Process, *, late: bool = False) -> None:
    """`late`: the last request may have been carried out before it was refused, as etcd does when
    its size has grown since it let the request in."""
    async with wire.Client(process.endpoint) as client:
        filled = await _fill(client)
        if late:
            there = (await client.get(b"fill/", b"fill0", count_only=True)).count
            assert there - filled in (0, 1)
            filled = there
        assert filled * VALUE_BYTES > QUOTA_BYTES // 4
        await _what_goes_on(client, filled)
        # The alarm outlives the process.
        process.kill9()
        await in_thread_restart(process)
    async with wire.Client(process.endpoint) as client:
        assert await _alarms(client) == [rpc_pb2.AlarmType.NOSPACE]
        await _refused(client, "Put", rpc_pb2.PutRequest(key=b"small", value=b"x"))
        await _free(client)
        # There was room, and there is an end to it again.
        assert await _fill(client) > 0
        assert await _alarms(client) == [rpc_pb2.AlarmType.NOSPACE]


def test_jotd_over_its_quota(tmp_path: Path) -> None:
    args = [f"--quota-backend-bytes={QUOTA_BYTES}"]
    with peers.start_jotd(tmp_path / "data", args, journal="file") as jotd:
        asyncio.run(_over_quota(jotd))


@pytest.mark.once
def test_etcd_over_its_quota(tmp_path: Path) -> None:
    """The expectations are etcd's."""
    with peers.start_etcd(tmp_path, [f"--quota-backend-bytes={QUOTA_BYTES}"]) as etcd:
        asyncio.run(_over_quota(etcd, late=True))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, small; needs the right to mount."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", str(place)]
    with contextlib.suppress(FileNotFoundError):
        if subprocess.run(mount, capture_output=True, check=False).returncode == 0:
            try:
                yield place
            finally:
                subprocess.run(["umount", "-l", str(place)], check=True)
            return
    pytest.skip("no tmpfs can be mounted here")


def test_a_full_disk(small_disk: Path) -> None:
    """Writes are refused before they are proposed; nothing that was acknowledged is lost.

    The alarm is there as long as there is no room; after that writes work again, in the same life
    of the server, and nobody has to disarm anything.
    """

    async def run(jotd: peers.Process) -> None:
        async with wire.Client(jotd.endpoint) as client:
            await client.put(b"before", b"x")
            filled = await _fill(client)
            assert filled > 100
            await _what_goes_on(client, filled)
            revision = await client.revision()
            await client.call("Compact", rpc_pb2.CompactionRequest(revision=revision))
            before = await client.hash_kv(revision)
            # The room comes from elsewhere: a larger disk.
            resize = ["mount", "-o", f"remount,size={4 * DISK_MIB}m", str(small_disk)]
            subprocess.run(resize, check=True, capture_output=True)
            async with asyncio.timeout(30):
                # The journal notices by itself, but not in the same instant.
                while True:
                    try:
                        await client.put(b"after", b"room again")
                        break
                    except grpc.aio.AioRpcError as error:
                        assert error.details() == NO_SPACE
                        await asyncio.sleep(0.2)
            assert await _alarms(client) == []
        jotd.kill9()
        await in_thread_restart(jotd)
        async with wire.Client(jotd.endpoint) as client:
            assert (await client.hash_kv(revision)).hash == before.hash
            answer = await client.get(b"fill/", b"fill0", count_only=True)
            assert answer.count == filled - 2
            assert (await client.get(b"after")).kvs[0].value == b"room again"

    with peers.start_jotd(small_disk / "data", journal="file") as jotd:
        asyncio.run(run(jotd))


def test_a_restart_on_a_full_disk(small_disk: Path) -> None:
    """A store whose disk filled up starts again, and serves at least reads and deletes."""

    async def fill(jotd: peers.Process) -> int:
        async with wire.Client(jotd.endpoint) as client:
            return await _fill(client)

    async def look(jotd: peers.Process, filled: int) -> None:
        async with wire.Client(jotd.endpoint) as client:
            answer = await client.get(b"fill/", b"fill0", count_only=True)
            assert answer.count == filled
            assert (await client.delete(b"fill/000000")).deleted == 1

    with peers.start_jotd(small_disk / "data", journal="file") as jotd:
        filled = asyncio.run(fill(jotd))
        jotd.kill9()
        free = os.statvfs(small_disk)
        # The log of the process shares the disk; leave it its page or two.
        spare = max(0, free.f_bavail * free.f_frsize - (1 << 20))
        (small_disk / "ballast").write_bytes(b"x" * spare)
        jotd.restart()
        asyncio.run(look(jotd, filled))
