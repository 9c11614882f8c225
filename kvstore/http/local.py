"""A client of the service in the same process: health checks ask what any client would."""

from __future__ import annotations

import asyncio
from typing import Any

from kvstore.pb import rpc_pb2
from kvstore.transport.pieces import Pieces
from kvstore.transport.seam import Call, Code, Peer, Service

#: etcd's own time limit on requests, and on the reads of its health checks.
REQUEST_S_MAX = 7.0
TIMED_OUT = "etcdserver: request timed out"


def alarm_name(kind: int) -> str:
    """The name of an AlarmType; its number, if it has none."""
    return rpc_pb2.AlarmType.Name(kind) if kind in rpc_pb2.AlarmType.values() else str(kind)


class LocalError(Exception):
    """The service refused; the text is its message."""


class _LocalPeer:
    address = "local"
    common_name = None
    certificate_names = ()

    def metadata(self, key: str) -> str | None:
        return None


class _LocalCall:
    def __init__(self, method: str, request: bytes) -> None:
        self.method = method
        self.request = request
        self.peer: Peer = _LocalPeer()
        self.answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._pieces = Pieces()

    @property
    def cancelled(self) -> bool:
        return self.answer.cancelled()

    def write(self, parts: list[bytes]) -> None:
        self._pieces.write(parts)

    def finish(self, response: bytes) -> None:
        if not self.answer.done():
            self.answer.set_result(self._pieces.joined(response))

    def fail(self, code: Code, message: str) -> None:
        if not self.answer.done():
            self.answer.set_exception(LocalError(message))


class LocalClient:
    """Unary calls, past the transport. All raise LocalError."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def read(self, *, serializable: bool) -> None:
        """Reads one key, or finds that there is none."""
        request = rpc_pb2.RangeRequest(
            key=b"\0", limit=1, keys_only=True, serializable=serializable
        )
        await self._call("/etcdserverpb.KV/Range", request)

    async def alarms(self) -> list[str]:
        """Names of the active alarms."""
        answer = rpc_pb2.AlarmResponse.FromString(
            await self._call("/etcdserverpb.Maintenance/Alarm", rpc_pb2.AlarmRequest())
        )
        return [alarm_name(member.alarm) for member in answer.alarms]

    async def status(self) -> Any:
        """The StatusResponse."""
        return rpc_pb2.StatusResponse.FromString(
            await self._call("/etcdserverpb.Maintenance/Status", rpc_pb2.StatusRequest())
        )

    async def has_leader(self) -> bool:
        return bool((await self.status()).leader)

    async def is_learner(self) -> bool:
        return bool((await self.status()).isLearner)

    async def _call(self, method: str, request: Any) -> bytes:
        call = _LocalCall(method, request.SerializeToString())
        calls: list[Call] = [call]
        self._service.on_calls(calls)
        try:
            return await asyncio.wait_for(call.answer, REQUEST_S_MAX)
        except TimeoutError:
            raise LocalError(TIMED_OUT) from None
