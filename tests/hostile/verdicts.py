"""Sends the same bytes to etcd and to jotd and compares what they say of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import grpc

from tests import wire
from tests.history import without_headers

CALL_SECONDS_MAX = 20.0

#: Methods whose answers are the server's own affair; only the verdict is compared.
OWN_AFFAIRS = {"Status", "Hash", "HashKV", "MemberList", "Alarm", "LeaseLeases"}

MALFORMED = "malformed"


@dataclass(frozen=True)
class Verdict:
    """A status, its message, and the answer without what is the server's own."""

    code: grpc.StatusCode
    text: str
    revision: int = 0
    answer: Any = None

    def __str__(self) -> str:
        return f"{self.code.name} {self.text!r} at {self.revision}: {self.answer}"


def channel(endpoint: str) -> grpc.Channel:
    """A connection of its own that sends and takes anything."""
    return grpc.insecure_channel(
        endpoint,
        options=[
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.enable_retries", 0),
            ("grpc.max_receive_message_length", wire.MESSAGE_BYTES_MAX),
            ("grpc.max_send_message_length", wire.MESSAGE_BYTES_MAX),
        ],
    )


def ask(connection: grpc.Channel, name: str, data: bytes) -> Verdict:
    """One unary call of raw bytes."""
    method = wire.METHODS[name]
    try:
        raw = connection.unary_unary(method.path)(data, timeout=CALL_SECONDS_MAX)
    except grpc.RpcError as error:
        text = error.details() or ""
        if error.code() == grpc.StatusCode.INTERNAL and "unmarshal" in text:
            # Each library has its own words for what is wrong with the bytes.
            text = MALFORMED
        return Verdict(error.code(), text)
    answer = method.response.FromString(raw)
    revision = answer.header.revision
    if name in OWN_AFFAIRS:
        return Verdict(grpc.StatusCode.OK, "", revision)
    return Verdict(grpc.StatusCode.OK, "", revision, without_headers(answer))
