"""Log lines have zap's keys, whatever is in them."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import pytest

from kvstore.cli import logs
from kvstore.cli.config import LogConfig


@pytest.fixture(autouse=True)
def root_as_before() -> object:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    for handler in list(root.handlers):
        if handler not in handlers:
            root.removeHandler(handler)
            handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)


def test_json_lines(tmp_path: Path) -> None:
    logs.set_up(LogConfig("info", "json", (f"{tmp_path}/log", f"{tmp_path}/log")))
    log = logging.getLogger("x")
    log.debug("not shown")
    log.warning("two\nlines %s", "ä", extra={"fields": {"path": tmp_path, "n": 1}})
    try:
        raise ValueError("why")
    except ValueError:
        log.exception("failed")
    first, second = map(json.loads, (tmp_path / "log").read_text().splitlines())
    assert (first["level"], first["msg"], first["n"]) == ("warn", "two\nlines ä", 1)
    assert first["caller"].startswith("cli/test_logs.py:")
    assert first["ts"].endswith("Z")
    assert second["level"] == "error"
    assert "ValueError: why" in second["stacktrace"]


def test_console_lines(capsys: pytest.CaptureFixture[str]) -> None:
    logs.set_up(LogConfig("debug", "console", ("stdout",)))
    logging.getLogger("x").debug("hello", extra={"fields": {"n": 1}})
    line = capsys.readouterr().out
    assert line.split("\t")[1:2] == ["DEBUG"]
    assert line.split("\t")[3:] == ["hello", '{"n": 1}\n']


def test_outputs(capsys: pytest.CaptureFixture[str]) -> None:
    logs.set_up(LogConfig("error", "json", ("default", "stderr")))
    assert [handler.stream for handler in logging.getLogger().handlers] == [sys.stderr]  # type: ignore[attr-defined]
    logging.getLogger("x").info("no")
    assert capsys.readouterr().err == ""
    with pytest.raises(OSError, match="no/such"):
        logs.set_up(LogConfig("info", "json", ("/no/such/place",)))
