"""The recorded conversation of one kube-apiserver with one etcd, as steps in revision order.

The recording has the order in which answers *passed*; calls ran in parallel. What orders them is
the revision in each answer (invariants 1 and 2 of FIELD-NOTES §1): a write answered with revision R
took the store from R-1 to R, and everything else answered with R was evaluated at R. So the
steps, sorted by (revision, writes first, line), are a sequential history with the same answers.
"""

from __future__ import annotations

import base64
import gzip
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kvstore.pb import kv_pb2, rpc_pb2
from tests import wire

DATA = Path(__file__).parent / "data" / "kube-apiserver-1.36-etcd-3.6.jsonl.gz"

WRITE, READ = 0, 1


@dataclass
class Step:
    """One unary call, or one request on a watch stream, and the revision it belongs to."""

    revision: int
    rank: int
    line: int
    method: str
    metadata: list[tuple[str, str]]
    request: Any
    answer: Any = None
    code: Any = None
    message: str = ""
    stream: int = 0

    @property
    def order(self) -> tuple[int, int, int]:
        return self.revision, self.rank, self.line


@dataclass
class Watch:
    """One recorded watch: what was asked for, and all that came."""

    stream: int
    request: rpc_pb2.WatchCreateRequest
    created: rpc_pb2.WatchResponse | None = None
    events: list[kv_pb2.Event] = field(default_factory=list)


@dataclass
class Recording:
    """All steps in revision order, and the watches by stream."""

    steps: list[Step]
    watches: dict[int, Watch]
    stream_metadata: dict[int, list[tuple[str, str]]]
    last_revision: int


def wrote(request: rpc_pb2.TxnRequest, answer: rpc_pb2.TxnResponse) -> bool:
    """Whether a transaction made a revision."""
    operations = request.success if answer.succeeded else request.failure
    for operation, result in zip(operations, answer.responses, strict=True):
        kind = operation.WhichOneof("request")
        if kind == "request_put":
            return True
        if kind == "request_delete_range" and result.response_delete_range.deleted:
            return True
        if kind == "request_txn" and wrote(operation.request_txn, result.response_txn):
            return True
    return False


def _unary(number: int, line: dict[str, Any], last: int) -> Step:
    name = line["m"].rsplit("/", 1)[1]
    method = wire.METHODS[name]
    step = Step(
        last, READ, number, name, [(k, v) for k, v in line.get("md", ())],
        method.request.FromString(base64.b64decode(line["req"])),
    )  # fmt: skip
    if "resp" not in line:
        # A failure has no revision; it belongs where it was seen.
        step.code, step.message = line["code"], line["msg"]
        return step
    step.answer = method.response.FromString(base64.b64decode(line["resp"]))
    step.revision = step.answer.header.revision
    if name == "Txn" and wrote(step.request, step.answer):
        step.rank = WRITE
    elif name in ("Put", "DeleteRange", "LeaseRevoke"):
        raise ValueError(f"line {number}: {name} is not expected of a kube-apiserver")
    return step


def load(path: Path = DATA) -> Recording:
    """Reads a recording. Raises ValueError for what a kube-apiserver is not known to do."""
    steps: list[Step] = []
    watches: dict[int, Watch] = {}
    metadata: dict[int, list[tuple[str, str]]] = {}
    asked: dict[int, list[tuple[int, Any]]] = {}
    last = 1
    with gzip.open(path, "rt") as file:
        for number, text in enumerate(file, 1):
            line = json.loads(text)
            stream = line["id"]
            if not line["m"].endswith("/Watch"):
                steps.append(_unary(number, line, last))
                last = max(last, steps[-1].revision)
            elif "open" in line:
                metadata[stream] = [(k, v) for k, v in line.get("md", ())]
                asked[stream] = []
            elif "req" in line:
                request = rpc_pb2.WatchRequest.FromString(base64.b64decode(line["req"]))
                kind = request.WhichOneof("request_union")
                if kind == "create_request":
                    if stream in watches:
                        raise ValueError(f"line {number}: a second watch on one stream")
                    watches[stream] = Watch(stream, request.create_request)
                elif kind != "progress_request":
                    raise ValueError(f"line {number}: {kind} is not expected of a kube-apiserver")
                asked[stream].append((number, request))
            elif "resp" in line:
                answer = rpc_pb2.WatchResponse.FromString(base64.b64decode(line["resp"]))
                if answer.created or answer.watch_id == -1:
                    # The answer to the oldest request on this stream that has none yet.
                    asked_at, request = asked[stream].pop(0)
                    is_create = request.WhichOneof("request_union") == "create_request"
                    if is_create != answer.created:
                        raise ValueError(f"line {number}: answers line {asked_at}?")
                    steps.append(
                        Step(answer.header.revision, READ, asked_at, "Watch", metadata[stream],
                             request, answer, stream=stream)
                    )  # fmt: skip
                    if answer.created:
                        watches[stream].created = answer
                else:
                    watches[stream].events.extend(answer.events)
    steps.sort(key=lambda step: step.order)
    return Recording(steps, watches, metadata, last)
