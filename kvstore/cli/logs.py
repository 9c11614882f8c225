"""Log lines as etcd writes them: one JSON object a line (zap's keys), or columns for people.

Fields beyond the message are given as `extra={"fields": {...}}`.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from kvstore.cli.config import LogConfig

_LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "error": logging.ERROR,
    "panic": logging.CRITICAL,
    "fatal": logging.CRITICAL,
}
_NAMES = {
    logging.DEBUG: "debug",
    logging.INFO: "info",
    logging.WARNING: "warn",
    logging.ERROR: "error",
    logging.CRITICAL: "fatal",
}


class JsonFormatter(logging.Formatter):
    """One line of JSON: level, ts, caller, msg, the fields, and the stack of an exception."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "level": _NAMES.get(record.levelno, "info"),
            "ts": _timestamp(record),
            "caller": _caller(record),
            "msg": record.getMessage(),
        }
        line.update(getattr(record, "fields", {}))
        if record.exc_info:
            line["stacktrace"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


class ConsoleFormatter(logging.Formatter):
    """Columns by tabs, the fields as JSON in the last one."""

    def format(self, record: logging.LogRecord) -> str:
        level = _NAMES.get(record.levelno, "info").upper()
        line = "\t".join((_timestamp(record), level, _caller(record), record.getMessage()))
        if fields := getattr(record, "fields", None):
            line += "\t" + json.dumps(fields, ensure_ascii=False, default=str)
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


def _timestamp(record: logging.LogRecord) -> str:
    when = datetime.fromtimestamp(record.created, UTC)
    return when.strftime("%Y-%m-%dT%H:%M:%S.%f") + "Z"


def _caller(record: logging.LogRecord) -> str:
    path = Path(record.pathname)
    return f"{path.parent.name}/{path.name}:{record.lineno}"


def set_up(config: LogConfig) -> None:
    """Sends all logging where the configuration says. Raises OSError for a file it cannot open."""
    handlers = _handlers(config.outputs)
    formatter = JsonFormatter() if config.format == "json" else ConsoleFormatter()
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    for handler in handlers:
        handler.setFormatter(formatter)
        root.addHandler(handler)
    root.setLevel(_LEVELS[config.level])
    # The tracebacks of grpc.aio: of metadata that is not text, of clients that left in the middle
    # of an answer. A client must not be able to fill the log with them; faults of our own are
    # caught and logged before grpc.aio sees them.
    logging.getLogger("grpc").setLevel(logging.CRITICAL)
    logging.getLogger("asyncio").setLevel(max(root.level, logging.WARNING))


def _handlers(outputs: Sequence[str]) -> list[logging.Handler]:
    handlers: list[logging.Handler] = []
    names = ("stderr" if name == "default" else name for name in outputs or ("default",))
    for output in dict.fromkeys(names):
        if output == "stderr":
            handlers.append(logging.StreamHandler(sys.stderr))
        elif output == "stdout":
            handlers.append(logging.StreamHandler(sys.stdout))
        else:
            handlers.append(logging.FileHandler(output, encoding="utf-8"))
    return handlers
