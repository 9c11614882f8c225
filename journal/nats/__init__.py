"""The distributed journal: streams of NATS JetStream, replicated by consensus that is NATS's own.

    --journal nats://host:port,host:port,host:port/NAME

    stream jotd-data-NAME        the journal
    stream jotd-control-NAME     the small one beside it: leadership and membership
    object store jotd-NAME       snapshots (or ?snapshots=DIR)

Pure: `url` (what the URL says), `config` (how streams have to be set up), `frames` (one message),
`chain` (which messages count), `objects` (a snapshot as an object). With I/O: `credentials` (who
connects), `link` (the connection), `stream` (the JetStream API), `reader` (finding one's place,
walking from there), `appender` (several appends under way, and what became of lost ones),
`placement` (which server leads the stream), `snapshots`, `backend` (the contract).

It needs nats-py, nkeys and xxhash: `pip install jotd[nats]`. It is offered to jotd by the entry
point `nats` of the group `jotd.journals`, as anybody else's would be.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from journal.contract import Journal, JournalError
from journal.nats.url import parse


def open_nats(url: str, data_dir: Path, options: Mapping[str, Any]) -> Journal:
    """A `registry.Factory`. Nothing is kept in `data_dir`. JournalError without nats-py."""
    settings = parse(url)
    if not all(map(find_spec, ("nats", "nkeys", "xxhash"))):
        raise JournalError(
            "the journal `nats` needs nats-py, nkeys and xxhash: pip install jotd[nats]"
        )
    from journal.nats.backend import NatsJournal

    return NatsJournal(settings, **options)
