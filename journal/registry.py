"""From a backend's name or URL to a journal: built-ins first, then installed entry points.

A third party offers a backend as an entry point of the group `jotd.journals`. The entry
point's name is the scheme, its object a `Factory`; the journal it returns is not opened yet.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, cast

from journal.contract import Journal, JournalError

ENTRY_POINT_GROUP = "jotd.journals"

Factory = Callable[[str, Path, Mapping[str, Any]], Journal]
"""(the URL as given, the data directory, options) to a journal that is not opened yet."""


def _memory(url: str, data_dir: Path, options: Mapping[str, Any]) -> Journal:
    from journal.memory import MemoryJournal

    return MemoryJournal(**options)


def _file(url: str, data_dir: Path, options: Mapping[str, Any]) -> Journal:
    from journal.file import FileJournal

    path = url.partition(":")[2].removeprefix("//")
    return FileJournal(Path(path) if path else data_dir / "journal", **options)


_BUILT_IN: dict[str, Factory] = {"memory": _memory, "file": _file}


def open_journal(
    url_or_name: str, data_dir: str | Path, options: Mapping[str, Any] | None = None
) -> Journal:
    """The journal that `url_or_name` stands for; call its `open` next.

    `memory`, `file` (in `data_dir`/journal), `file:///some/dir`, or the scheme of an installed
    backend. `options` are the backend's own keyword arguments. JournalError for a scheme that
    nobody offers, TypeError for an option that the backend does not know.
    """
    scheme = url_or_name.partition(":")[0]
    factory = _BUILT_IN.get(scheme)
    if factory is None:
        found = entry_points(group=ENTRY_POINT_GROUP, name=scheme)
        if not found:
            offered = sorted({*_BUILT_IN, *(p.name for p in entry_points(group=ENTRY_POINT_GROUP))})
            raise JournalError(f"no journal backend {scheme!r}; there are: {', '.join(offered)}")
        factory = cast(Factory, next(iter(found)).load())
    return factory(url_or_name, Path(data_dir), options or {})
