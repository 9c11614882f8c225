"""``jotd bench``: its arguments, what it shows, and real loads on a real server."""

from __future__ import annotations

import contextlib
import io
import json
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kvstore.cli import bench
from tests.peers import Process, require_native, start_jotd


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    require_native()
    with start_jotd(tmp_path_factory.mktemp("bench") / "data", ["--quota-backend-bytes=-1"]) as one:
        yield one


def run(server: Process, capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    argv = [*words, f"--endpoints={server.endpoint}", "--warmup=0", "--json"]
    assert bench.main(argv) == 0, capsys.readouterr().err
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert report["errors"] == {}
    return report


def test_options_have_the_generators_names() -> None:
    words = ["list", "--endpoints=http://a:1,b:2/", "--limit=9", "--no-fill", "--server-pid=7"]
    options = bench.generator_options(bench.parser().parse_args(words))
    assert options["endpoints"] == ["a:1", "b:2"]
    wanted = {"scenario": "list", "limit": 9, "fill": False, "pid": 7, "duration-s": 5.0}
    assert wanted.items() <= options.items()
    assert "json" not in options
    require_native()
    import jotd_native

    options["endpoints"] = ["127.0.0.1:1"]
    with pytest.raises(RuntimeError, match="refused"):
        jotd_native.load(json.dumps(options))


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([], "SCENARIO"),
        (["nonsense"], "invalid choice: 'nonsense'"),
        (["put", "--rate=-1"], "--rate"),
        (["put", "--rate=nan"], "--rate"),
        (["put", "--conns=0"], "--conns"),
        (["put", "--endpoints=nonsense"], "not HOST:PORT"),
        (["put", "--keys=many"], "--keys"),
    ],
)
def test_wrong_usage_is_exit_code_2(
    words: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        bench.main(words)
    assert ended.value.code == 2
    assert text in capsys.readouterr().err


def test_without_the_native_module_it_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "jotd_native", None)
    assert bench.main(["put"]) == 1
    shown = capsys.readouterr()
    assert "jotd_native is not installed" in shown.err and "make native" in shown.err
    assert shown.out == ""


def test_a_server_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    require_native()
    assert bench.main(["put", "--endpoints=127.0.0.1:1"]) == 1
    assert "127.0.0.1:1: Connection refused" in capsys.readouterr().err


def test_tls_is_refused_rather_than_tried(capsys: pytest.CaptureFixture[str]) -> None:
    require_native()
    assert bench.main(["put", "--endpoints=https://127.0.0.1:1"]) == 1
    assert "no TLS" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("us", "text"), [(850.4, "850 us"), (12_340.0, "12.3 ms"), (4_200_000.0, "4.20 s")]
)
def test_durations_are_shown_in_the_unit_that_fits(us: float, text: str) -> None:
    assert bench.duration(us) == text


def test_there_is_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rich")

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    with bench._progress("txn") as progress:
        progress(12_345, 0.5)
    for text in ("txn", "50%", "12,345 done"):
        assert text in terminal.getvalue()


def test_an_interrupt_ends_it(
    server: Process, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(done: int, part: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(bench, "_progress", lambda name: contextlib.nullcontext(interrupt))
    # Longer than a test may take.
    assert bench.main(["put", f"--endpoints={server.endpoint}", "--duration=3600"]) == 1
    assert "ended before it was done" in capsys.readouterr().err


def test_puts_are_shown_for_a_person(server: Process, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["put", f"--endpoints={server.endpoint}", "--duration=0.4", "--warmup=0.1"]
    assert bench.main([*words, f"--server-pid={server.pid}"]) == 0
    shown = capsys.readouterr()
    for text in ("put on 127.0.0.1:", "p99.9", "us of CPU a request", "MiB", "errors", "none"):
        assert text in shown.out
    # No terminal, no bar.
    assert shown.err == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ["txn", "--prefix=/txn/"],
        ["range", "--keys=200"],
        ["count", "--keys=200"],
        ["list", "--keys=700", "--prefix=/list/"],
        ["range-stream", "--keys=700", "--prefix=/stream/"],
        ["mixed", "--keys=200", "--prefix=/mixed/"],
        ["keepalive", "--concurrency=8"],
        ["watch", "--watchers=3", "--rate=200", "--prefix=/watch/"],
    ],
    ids=lambda words: words[0],
)
def test_every_scenario_does_its_work(
    words: list[str], server: Process, capsys: pytest.CaptureFixture[str]
) -> None:
    report = run(server, capsys, *words, "--duration=0.4", "--threads=2")
    assert report["requests"] > 0
    if words[0] == "watch":
        assert report["events"] > 0 and report["event_lag"]["count"] == report["events"]


@pytest.mark.slow
def test_watchers_of_another_server_see_what_is_written_there(
    server: Process, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Events of the second server would not follow from puts to the first: they are none."""
    words = ["watch", "--watchers=3", "--rate=200", "--prefix=/apart/", "--duration=0.4"]
    same = run(server, capsys, *words, f"--watch-endpoints={server.endpoint}")
    assert same["events"] > 0 and same["event_delay"]["count"] == same["events"]
    # The put began before it was answered.
    assert same["event_delay"]["max_us"] <= same["event_lag"]["max_us"]
    assert "after answer" in bench.text(same)
    with start_jotd(tmp_path / "other") as other:
        apart = run(server, capsys, *words, f"--watch-endpoints={other.endpoint}")
    assert apart["requests"] > 0 and apart["events"] == 0
    assert apart["options"]["watch-endpoints"] == [other.endpoint]


def test_a_fill_writes_every_key_once(server: Process, capsys: pytest.CaptureFixture[str]) -> None:
    report = run(server, capsys, "fill", "--keys=1000", "--prefix=/fill/", "--value-bytes=10")
    assert report["requests"] == 1000
    counted = run(server, capsys, "list", "--no-fill", "--prefix=/fill/", "--duration=0.2")
    assert counted["requests"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
def test_kube_does_all_that_a_cluster_does(
    threads: int, server: Process, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["kube", "--nodes=700", "--rate=4000", "--duration=1.5", f"--threads={threads}"]
    # Fewer at once than there are objects: a server that does not keep up would have all of one
    # resource under way, and some of them twice.
    report = run(server, capsys, *words, "--concurrency=64")
    assert set(report["classes"]) == {"renew", "status", "pod", "event", "list"}
    assert sum(one["count"] for one in report["classes"].values()) == report["requests"]
    # The nodes' objects stood before they were renewed, and threads have objects of their own.
    assert report["conflicts"] == 0
    assert report["events"] > 0


def test_renewals_take_up_where_an_earlier_run_has_ended(
    server: Process, capsys: pytest.CaptureFixture[str]
) -> None:
    for fill in ([], ["--no-fill"]):
        words = ["renew", "--nodes=300", "--rate=500", "--duration=0.5", "--watchers=3"]
        report = run(server, capsys, *words, *fill)
        assert report["requests"] > 0
        assert (report["conflicts"], report["classes"]) == (0, {})


def test_what_was_due_and_not_done_is_told(
    server: Process, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["put", "--rate=1000000", "--concurrency=2", "--duration=0.3", "--prefix=/late/"]
    report = run(server, capsys, *words)
    assert report["unfinished"] > report["requests"] > 0
    assert "were due and not done" in bench.text(report)


@pytest.mark.slow
def test_an_open_loop_charges_a_stalled_server_for_all_that_had_to_wait(
    tmp_path: Path,
) -> None:
    """A closed loop would count one slow request a worker, however long the server stood still."""
    require_native()
    import jotd_native

    stall_s, rate = 1.0, 200.0
    with start_jotd(tmp_path / "data") as server:

        def stall() -> None:
            server.signal(signal.SIGSTOP)
            time.sleep(stall_s)
            server.signal(signal.SIGCONT)

        stalling = threading.Thread(target=stall)

        def progress(done: int, part: float) -> None:
            if part > 0.2 and stalling.ident is None:
                stalling.start()

        options = {"endpoints": [server.endpoint], "rate": rate, "concurrency": 4, "warmup-s": 0.0}
        report = json.loads(jotd_native.load(json.dumps({**options, "duration-s": 3.0}), progress))
        stalling.join()
    assert report["errors"] == {}
    half_us = stall_s / 2 * 1e6
    waited = report["requests"] - max(
        (seen for bound, seen in report["latency"]["cumulative"] if bound < half_us), default=0
    )
    # Those that were due in the first half of the stall, by far more than the workers are.
    assert waited >= rate * stall_s / 2 * 0.8
