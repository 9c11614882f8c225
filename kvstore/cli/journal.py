"""``jotd journal verify`` and ``dump``: what is in a journal, for a person or a program."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError

from journal import inspect
from journal.contract import Corrupt, JournalError
from kvstore.pb import record_pb2, rpc_pb2

EXIT_OK = 0
EXIT_DAMAGED = 1
EXIT_USAGE = 2

#: Characters of a key or value that text shows at most.
SHOWN_MAX = 80


def run(options: argparse.Namespace) -> int:
    """Runs the action; 0: intact, 1: damaged, 2: there is no journal, or it cannot be read."""
    directory = _journal_directory(options.directory)
    as_json = options.format == "json"
    try:
        if options.action == "verify":
            return _verify(directory, as_json)
        return _dump(directory, as_json, options.after, options.limit)
    except BrokenPipeError:
        # The reader has seen enough (`| head`). Keep the interpreter from flushing once more.
        sys.stdout = None
        return EXIT_OK


def _journal_directory(given: Path) -> Path:
    """The journal itself; the data directory that holds one stands for it."""
    inner = given / "journal"
    return inner if inner.is_dir() else given


def _verify(directory: Path, as_json: bool) -> int:
    try:
        report = inspect.verify(directory)
    except (JournalError, OSError) as error:
        print(f"jotd journal: {error}", file=sys.stderr)
        return EXIT_USAGE
    if as_json:
        print(
            json.dumps(
                {
                    "directory": str(report.directory),
                    "ok": report.ok,
                    "in_use_by": report.in_use_by,
                    "oldest": report.oldest,
                    "tail": report.tail,
                    "torn": report.torn,
                    "damage": report.damage,
                    "segments": [
                        {
                            "name": segment.name,
                            "first": segment.first,
                            "last": segment.last,
                            "used": segment.used,
                            "size": segment.size,
                            "problem": segment.problem,
                        }
                        for segment in report.segments
                    ],
                    "snapshots": [
                        {
                            "name": snapshot.name,
                            "size": snapshot.size,
                            "chunks": snapshot.chunks,
                            "damage": snapshot.damage,
                        }
                        for snapshot in report.snapshots
                    ],
                }
            )
        )
    else:
        for line in report.lines():
            print(line)
    return EXIT_OK if report.ok else EXIT_DAMAGED


def _dump(directory: Path, as_json: bool, after: int, limit: int) -> int:
    def decode(sequence: int, payload: bytes) -> str:
        return _json_line(sequence, payload) if as_json else _text_lines(payload)

    shown = 0
    try:
        for line in inspect.dump(directory, decode, after=after or None):
            # A line begins with the sequence, which a JSON object carries inside.
            print(line.partition(": ")[2] if as_json else line)
            shown += 1
            if shown == limit:
                break
    except JournalError as error:
        sys.stdout.flush()
        print(f"jotd journal: {error}", file=sys.stderr)
        return EXIT_DAMAGED if isinstance(error, Corrupt) else EXIT_USAGE
    return EXIT_OK


def _records(payload: bytes) -> list[Any] | None:
    """The records of a batch; None if it is not one of ours."""
    try:
        return list(record_pb2.Batch.FromString(payload).records)
    except DecodeError:
        return None


def _text_lines(payload: bytes) -> str:
    records = _records(payload)
    if records is None:
        return f"{len(payload)} bytes that are not records"
    lines = [f"{len(payload)} bytes, {len(records)} records"]
    lines += [f"    {line}" for record in records for line in _describe(record)]
    return "\n".join(lines)


def _describe(record: Any) -> Iterator[str]:
    at = f"revision {record.revision}: " if record.revision else ""
    match record.WhichOneof("change"):
        case "lease_grant":
            yield f"{at}lease {record.lease_grant.id:016x} granted, {record.lease_grant.ttl_s} s"
        case "lease_revoke":
            yield f"{at}lease {record.lease_revoke:016x} revoked, with its keys"
        case "delete_range":
            key_range = record.delete_range
            yield f"{at}delete all from {_shown(key_range.key)} to {_shown(key_range.range_end)}"
        case "compact":
            yield f"{at}compact at revision {record.compact}"
        case "term":
            yield f"{at}term {record.term.term} begins, member {record.term.member_id:x}"
        case "alarm":
            state = "raised" if record.alarm.active else "cleared"
            yield f"{at}alarm {_alarm(record.alarm.type)} {state}"
    for version in record.versions:
        if version.version == 0:
            yield f"{at}delete {_shown(version.key)}"
        else:
            lease = f", lease {version.lease:016x}" if version.lease else ""
            yield (
                f"{at}put {_shown(version.key)} = {_shown(version.value)} "
                f"(version {version.version}, created at {version.create_revision}{lease})"
            )


def _alarm(kind: int) -> str:
    return rpc_pb2.AlarmType.Name(kind) if kind in rpc_pb2.AlarmType.values() else str(kind)


def _shown(value: bytes) -> str:
    """Bytes as a Python literal without its b, cut to what a person reads."""
    if len(value) <= SHOWN_MAX:
        return repr(value)[1:]
    return f"{repr(value[:SHOWN_MAX])[1:]}... ({len(value)} bytes)"


def _json_line(sequence: int, payload: bytes) -> str:
    """All of a batch in one line. Keys and values are latin-1 text, so every byte is kept."""
    records = _records(payload)
    line: dict[str, Any] = {"sequence": sequence, "bytes": len(payload)}
    if records is None:
        line["error"] = "not records"
    else:
        line["records"] = [_plain(record) for record in records]
    return json.dumps(line)


def _plain(record: Any) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    if record.revision:
        plain["revision"] = record.revision
    match record.WhichOneof("change"):
        case "lease_grant":
            plain["lease_grant"] = {"id": record.lease_grant.id, "ttl_s": record.lease_grant.ttl_s}
        case "lease_revoke":
            plain["lease_revoke"] = record.lease_revoke
        case "delete_range":
            plain["delete_range"] = {
                "key": record.delete_range.key.decode("latin-1"),
                "range_end": record.delete_range.range_end.decode("latin-1"),
            }
        case "compact":
            plain["compact"] = record.compact
        case "term":
            plain["term"] = {
                "term": record.term.term,
                "member_id": record.term.member_id,
                "cluster_id": record.term.cluster_id,
            }
        case "alarm":
            plain["alarm"] = {
                "member_id": record.alarm.member_id,
                "type": _alarm(record.alarm.type),
                "active": record.alarm.active,
            }
    if record.versions:
        plain["versions"] = [
            {
                "key": version.key.decode("latin-1"),
                "value": version.value.decode("latin-1"),
                "create_revision": version.create_revision,
                "mod_revision": version.mod_revision,
                "version": version.version,
                "lease": version.lease,
            }
            for version in record.versions
        ]
    return plain
