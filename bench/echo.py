"""The yardstick: bare grpc.aio handlers that parse nothing and answer fixed bytes.

No server on grpc.aio can be faster than this, so what jotd does is measured as a part of it. The
answers have the shape and size that jotd's have; list answers are not here, since for those the
work is in the store.
"""

from __future__ import annotations

import argparse
from typing import Any

import grpc
import grpc.aio
import uvloop

from kvstore.pb import kv_pb2, rpc_pb2


def _header() -> rpc_pb2.ResponseHeader:
    return rpc_pb2.ResponseHeader(
        cluster_id=1 << 62, member_id=1 << 61, revision=1 << 20, raft_term=2
    )


def _put() -> bytes:
    return rpc_pb2.PutResponse(header=_header()).SerializeToString()


def _txn() -> bytes:
    put = rpc_pb2.PutResponse(header=rpc_pb2.ResponseHeader(revision=1 << 20))
    return rpc_pb2.TxnResponse(
        header=_header(), succeeded=True, responses=[rpc_pb2.ResponseOp(response_put=put)]
    ).SerializeToString()


def _range(value_bytes: int) -> bytes:
    kv = kv_pb2.KeyValue(
        key=b"/registry/pods/load/00000000",
        value=b"x" * value_bytes,
        create_revision=1 << 20,
        mod_revision=1 << 20,
        version=1,
    )
    return rpc_pb2.RangeResponse(header=_header(), kvs=[kv], count=1).SerializeToString()


def _echo(response: bytes) -> Any:
    async def answer(_request: bytes, _context: Any) -> bytes:
        return response

    return grpc.unary_unary_rpc_method_handler(answer)


async def serve(address: str, value_bytes: int) -> None:
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    handlers = {"Put": _echo(_put()), "Txn": _echo(_txn()), "Range": _echo(_range(value_bytes))}
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("etcdserverpb.KV", handlers),)
    )
    server.add_insecure_port(address)
    await server.start()
    print(f"ready on {address}", flush=True)
    await server.wait_for_termination()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--listen", default="127.0.0.1:2390", metavar="HOST:PORT")
    parser.add_argument("--value-size", type=int, default=1024, metavar="BYTES")
    options = parser.parse_args()
    uvloop.run(serve(options.listen, options.value_size))


if __name__ == "__main__":
    main()
