"""How the streams of a journal are set up, and what is wrong with one that is there already.

Pure values: dictionaries as the JetStream API has them (ADR-1, ADR-20).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

IDENTITY_KEY = "jotd.identity"
FORMAT_KEY = "jotd.format"
SERVER_VERSION_MIN = (2, 12)
"""Older servers may take messages for a stream before they have applied what was stored before."""

Config = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Names:
    """What belongs to one journal. The kind comes first, so no two journals can share a name."""

    stream: str
    subject: str
    stored: str
    """Where the server tells of every message that it has stored."""


def names(journal: str, kind: str) -> Names:
    """`kind` is ``data`` or ``control``."""
    return Names(
        f"jotd-{kind}-{journal}", f"jotd.{kind}.{journal}", f"jotd.stored.{kind}.{journal}"
    )


def bucket_of(journal: str) -> str:
    """The object store that keeps a journal's snapshots."""
    return f"jotd-{journal}"


def journal_config(of: Names, replicas: int, identity: bytes) -> Config:
    """The stream of a journal.

    Nothing is ever dropped but by `trim`: no limits, no age, and single messages cannot be deleted.
    """
    return {
        "name": of.stream,
        "description": "a journal of jotd: written by jotd only",
        "subjects": [of.subject],
        **_kept(replicas, identity),
        "max_consumers": -1,
        "deny_delete": True,
        "allow_rollup_hdrs": False,
        "republish": {"src": of.subject, "dest": of.stored},
    }


def bucket_config(bucket: str, replicas: int, identity: bytes) -> Config:
    """The stream of an object store, as ADR-20 has it."""
    return {
        "name": f"OBJ_{bucket}",
        "description": "snapshots of a journal of jotd",
        "subjects": [f"$O.{bucket}.C.>", f"$O.{bucket}.M.>"],
        **_kept(replicas, identity),
        "allow_rollup_hdrs": True,
    }


def _kept(replicas: int, identity: bytes) -> Config:
    """What both have: files, replicas, no limit by which anything would go, and whose it is."""
    return {
        "storage": "file",
        "num_replicas": replicas,
        "retention": "limits",
        "discard": "new",
        "max_msgs": -1,
        "max_msgs_per_subject": -1,
        "max_bytes": -1,
        "max_age": 0,
        "max_msg_size": -1,
        "deny_purge": False,
        "allow_direct": True,
        "metadata": {IDENTITY_KEY: identity.hex(), FORMAT_KEY: "1"},
    }


_FREE = {"name", "description", "metadata", "num_replicas", "max_consumers"}
_ABSENT = ("mirror", "sources", "subject_transform", "sealed", "allow_msg_ttl", "allow_msg_counter")


def faults(wanted: Config, actual: Mapping[str, Any]) -> list[str]:
    """What in `actual` would break the journal's promises, one phrase a field; [] if it will do.

    More replicas than wanted are welcome; names of fields are those of the API.
    """
    found = []
    for field, value in wanted.items():
        if field not in _FREE and _plain(actual.get(field)) != _plain(value):
            found.append(f"{field} is {actual.get(field)!r}, has to be {value!r}")
    replicas = int(actual.get("num_replicas") or 1)
    if replicas < wanted["num_replicas"]:
        found.append(f"num_replicas is {replicas}, has to be {wanted['num_replicas']} or more")
    if (mode := actual.get("persist_mode")) not in (None, "", "default"):
        found.append(f"persist_mode is {mode!r}, has to be 'default': acknowledged is synced")
    for field in _ABSENT:
        if actual.get(field):
            found.append(f"{field} is {actual[field]!r}, has to be unset")
    return found


def _plain(value: Any) -> Any:
    """Unset, false and the limits' "none" (-1 or 0) are all told as the API likes."""
    if value in (None, False, -1, 0):
        return 0
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items() if _plain(each) != 0}
    return value


def identity_of(config: Mapping[str, Any]) -> bytes | None:
    """The 16 bytes that were drawn when the journal was made, or None where there are none."""
    text = (config.get("metadata") or {}).get(IDENTITY_KEY, "")
    try:
        identity = bytes.fromhex(text)
    except ValueError:
        return None
    return identity if len(identity) == 16 else None
