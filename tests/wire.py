"""A plain asyncio client of etcd's API, and the knobs that long-running tests share.

The methods come from the descriptors of our own wire contract, so that everything the contract has
can be called, raw bytes included. It retries nothing and hides nothing: tests want to see each
answer as it came.

    JOTD_TEST_SEED    the seed of random workloads; printed by every failing test
    JOTD_TEST_SCALE   multiplies the size of random workloads (default 1)
"""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
from google.protobuf import message_factory

from kvstore.pb import kv_pb2, rpc_pb2

CALL_SECONDS_MAX = 30.0
MESSAGE_BYTES_MAX = 256 << 20

Metadata = Sequence[tuple[str, str]]


def scale() -> int:
    """How many times the default work a random test does."""
    return max(1, int(os.environ.get("JOTD_TEST_SCALE", "1")))


def seeds(count: int) -> list[int]:
    """Seeds for a random test: the one of the environment, or `count` fresh ones."""
    if given := os.environ.get("JOTD_TEST_SEED"):
        return [int(given)]
    return [random.SystemRandom().randrange(1 << 31) for _ in range(count * scale())]


@dataclass(frozen=True)
class Method:
    """One RPC of the contract."""

    name: str
    path: str
    request: Any
    response: Any
    client_streams: bool
    server_streams: bool


def _methods() -> dict[str, Method]:
    found = {}
    for service in rpc_pb2.DESCRIPTOR.services_by_name.values():
        for method in service.methods:
            found[method.name] = Method(
                method.name,
                f"/{service.full_name}/{method.name}",
                message_factory.GetMessageClass(method.input_type),
                message_factory.GetMessageClass(method.output_type),
                method.client_streaming,
                method.server_streaming,
            )
    return found


METHODS = _methods()


class Client:
    """One connection to an endpoint (``host:port``), shared with nobody.

    Each RPC of the contract is a method: unary ones are awaited, streaming ones return the grpc
    call object. `timeout` is a safety net, not an assertion.
    """

    def __init__(self, endpoint: str, options: Sequence[tuple[str, Any]] = ()) -> None:
        self.endpoint = endpoint
        self.channel = grpc.aio.insecure_channel(
            endpoint,
            options=[
                # Else all clients of one process would share a connection.
                ("grpc.use_local_subchannel_pool", 1),
                ("grpc.enable_retries", 0),
                ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
                ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
                ("grpc.initial_reconnect_backoff_ms", 50),
                # Also the time that a connection has to come about.
                ("grpc.min_reconnect_backoff_ms", 10_000),
                ("grpc.max_reconnect_backoff_ms", 200),
                *options,
            ],
        )

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self.channel.close()

    async def call(
        self,
        name: str,
        request: Any,
        *,
        timeout: float = CALL_SECONDS_MAX,
        metadata: Metadata | None = None,
        wait_for_ready: bool = False,
    ) -> Any:
        """One unary call by its name. Raises `grpc.aio.AioRpcError`."""
        method = METHODS[name]
        return await self.channel.unary_unary(
            method.path, method.request.SerializeToString, method.response.FromString
        )(request, timeout=timeout, metadata=metadata, wait_for_ready=wait_for_ready)

    async def raw(self, path: str, request: bytes, *, timeout: float = CALL_SECONDS_MAX) -> bytes:
        """One unary call of bytes. Raises `grpc.aio.AioRpcError`."""
        answer: bytes = await self.channel.unary_unary(path)(request, timeout=timeout)
        return answer

    def stream(self, name: str, *, metadata: Metadata | None = None, raw: bool = False) -> Any:
        """Opens a two-way stream; `raw` takes and gives bytes."""
        method = METHODS[name]
        if raw:
            return self.channel.stream_stream(method.path)(metadata=metadata)
        return self.channel.stream_stream(
            method.path, method.request.SerializeToString, method.response.FromString
        )(metadata=metadata)

    def server_stream(self, name: str, request: Any, *, timeout: float = CALL_SECONDS_MAX) -> Any:
        """Opens a stream of answers to one request."""
        method = METHODS[name]
        return self.channel.unary_stream(
            method.path, method.request.SerializeToString, method.response.FromString
        )(request, timeout=timeout)

    # The calls that most tests make.

    async def put(
        self, key: bytes, value: bytes = b"", lease: int = 0, **options: Any
    ) -> rpc_pb2.PutResponse:
        return await self.call(
            "Put", rpc_pb2.PutRequest(key=key, value=value, lease=lease), **options
        )

    async def get(self, key: bytes, end: bytes = b"", **fields: Any) -> rpc_pb2.RangeResponse:
        return await self.call("Range", rpc_pb2.RangeRequest(key=key, range_end=end, **fields))

    async def delete(self, key: bytes, end: bytes = b"") -> rpc_pb2.DeleteRangeResponse:
        return await self.call(
            "DeleteRange", rpc_pb2.DeleteRangeRequest(key=key, range_end=end, prev_kv=True)
        )

    async def revision(self) -> int:
        """The current revision, from a linearizable read."""
        answer = await self.get(b"\x00", count_only=True)
        return int(answer.header.revision)

    async def hash_kv(self, revision: int = 0) -> rpc_pb2.HashKVResponse:
        return await self.call("HashKV", rpc_pb2.HashKVRequest(revision=revision))

    async def everything(self, revision: int = 0) -> dict[bytes, kv_pb2.KeyValue]:
        """All keys at a revision, in pages."""
        found: dict[bytes, kv_pb2.KeyValue] = {}
        key = b"\x00"
        while True:
            page = await self.get(key, b"\x00", limit=1000, revision=revision)
            revision = revision or page.header.revision
            found.update((kv.key, kv) for kv in page.kvs)
            if not page.more:
                return found
            key = page.kvs[-1].key + b"\x00"


async def messages(call: Any) -> AsyncIterator[Any]:
    """What a stream sends until it ends; its status is left to the caller."""
    while (message := await call.read()) is not grpc.aio.EOF:
        yield message
