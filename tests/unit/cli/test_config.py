"""Flags, variables and what they mean together: etcd's, where etcd has them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kvstore.cli import flags, values
from kvstore.cli.config import AutoCompaction, ServeConfig, auto_compaction, serve_config
from kvstore.cli.flags import FLAGS, IGNORED, REFUSED, UsageError


def config(*argv: str, **environ: str) -> ServeConfig:
    found = serve_config(argv, environ)
    assert found is not None
    return found


def test_defaults_are_etcds() -> None:
    found = config()
    assert found.warnings == ()
    assert found.data_dir == Path("default.jotd")
    assert [str(url) for url in found.transport.listen] == ["http://localhost:2379"]
    assert found.advertise_client_urls == ("http://localhost:2379",)
    assert [str(url) for url in found.http_urls] == ["http://127.0.0.1:2381"]
    assert not found.http_apart
    assert found.quota_bytes == 2 << 30
    assert (found.max_request_bytes, found.max_txn_ops) == (1572864, 128)
    assert found.auto_compaction == AutoCompaction()
    assert found.watch_progress_notify_interval_s == 600
    assert found.transport.keepalive_min_time_s == 5
    assert found.journal == "file"


@pytest.mark.parametrize(
    "argv",
    [
        ("--name", "a", "--data-dir=/d", "--quota-backend-bytes", "-1"),
        ("-name", "a", "-data-dir=/d", "-quota-backend-bytes=-1"),
        ("-name=b", "--name=a", "--data-dir", "/d", "--quota-backend-bytes=-0x1"),
    ],
)
def test_gos_flag_syntax(argv: tuple[str, ...]) -> None:
    found = config(*argv)
    assert (found.name, found.data_dir, found.quota_bytes) == ("a", Path("/d"), -1)


def test_a_boolean_takes_no_word_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'false' is not a flag"):
        config("--pre-vote", "false")
    with pytest.raises(UsageError, match="--client-cert-auth needs --trusted-ca-file"):
        config("--client-cert-auth", "--name=x")
    assert config("--client-cert-auth=false").name == "default"


def test_variables_mirror_flags_and_flags_win() -> None:
    found = config("--name=flag", JOTD_NAME="variable", JOTD_DATA_DIR="/v", ETCD_NAME="no")
    assert (found.name, found.data_dir) == ("flag", Path("/v"))
    assert found.warnings == ()
    assert config(JOTD_NAME="").name == "default"
    found = config(JOTD_NO_SUCH_FLAG="1", JOTD_ELECTION_TIMEOUT="5")
    assert found.name == "default"
    assert any("unrecognized environment variable JOTD_NO_SUCH_FLAG" in w for w in found.warnings)
    assert any(w.startswith("JOTD_ELECTION_TIMEOUT is ignored") for w in found.warnings)
    with pytest.raises(UsageError, match="for JOTD_MAX_TXN_OPS"):
        config(JOTD_MAX_TXN_OPS="many")


@pytest.mark.parametrize("name", sorted(IGNORED))
def test_flags_without_a_meaning_here_are_ignored_with_one_warning(name: str) -> None:
    value = "true" if flags._is_bool(name) else "x"
    for argv in ((f"--{name}={value}",), (f"-{name}={value}",)):
        found = config(*argv, "--name=n")
        assert found.name == "n"
        assert [w for w in found.warnings if w.startswith(f"--{name} is ignored: ")] != []
        assert len(found.warnings) == 1
    words = (f"--{name}",) if flags._is_bool(name) else (f"--{name}", value)
    assert len(config(*words, *words, "--name=n").warnings) == 1


def test_the_old_names_of_experimental_flags_work() -> None:
    found = config("--experimental-watch-progress-notify-interval=5s")
    assert found.watch_progress_notify_interval_s == 5
    assert len(config("--experimental-initial-corrupt-check").warnings) == 1


@pytest.mark.parametrize(
    ("text", "seconds", "warns"),
    [("0", 600, False), ("0s", 600, False), ("1ms", 0.1, True), ("100ms", 0.1, False)],
)
def test_a_progress_interval_is_never_none_and_never_tiny(
    text: str, seconds: float, warns: bool
) -> None:
    """As in etcd 3.7, where 0 leaves the default in its place."""
    found = config(f"--watch-progress-notify-interval={text}", "--name=n")
    assert found.watch_progress_notify_interval_s == seconds
    assert bool(found.warnings) == warns


@pytest.mark.parametrize(
    ("argv", "why"),
    [
        (("--unsafe-no-fsync",), "--journal=memory"),
        (("--unsafe-no-fsync=true",), "--journal=memory"),
        (("--auth-token=jwt,pub-key=x",), "no users or roles"),
        (("--auto-tls",), "makes no certificates"),
        (("--client-crl-file=x",), "revocation"),
        (("--client-cert-allowed-hostname", "a"), "must not pretend"),
        (("--cipher-suites=TLS_AES_128_GCM_SHA256",), "must not pretend"),
        (("--tls-min-version=TLS1.3",), "must not pretend"),
        (("--host-whitelist=a",), "host names"),
        (("--config-file=x",), "YAML"),
    ],
)
def test_a_promise_that_would_not_be_kept_is_refused(argv: tuple[str, ...], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        config(*argv)


def test_refused_flags_may_say_what_is_so_anyway() -> None:
    for name, refused in REFUSED.items():
        for value in refused.harmless:
            assert config(f"--{name}={value}").warnings == ()


@pytest.mark.parametrize(
    ("argv", "why"),
    [
        (("--no-such-flag",), "flag provided but not defined: -no-such-flag"),
        (("--data-dirr=x",), "did you mean --data-dir"),
        (("--name",), "flag needs an argument: -name"),
        (("serve",), "'serve' is not a flag"),
        (("--",), "is not a flag"),
        (("--max-txn-ops=0",), "not above 0"),
        (("--max-txn-ops=-1",), "not above 0"),
        (("--max-request-bytes=1.5",), "not a whole number"),
        (("--max-concurrent-streams=4294967296",), "32 bits"),
        (("--listen-client-urls=127.0.0.1:2379",), "URL scheme must be"),
        (("--listen-client-urls=",), "URL scheme must be"),
        (("--listen-client-urls=http://example.com:1",), "expected IP in URL for binding"),
        (("--listen-client-urls=https://127.0.0.1:1",), "needs --cert-file and --key-file"),
        (("--listen-metrics-urls=https://127.0.0.1:1",), "needs --cert-file and --key-file"),
        (("--listen-metrics-urls=http://localhost:2379",), "cannot serve both"),
        (("--cert-file=x",), "given together"),
        (("--trusted-ca-file=x",), "https URLs only"),
        (("--log-level=loud",), "is not one of debug, info"),
        (("--log-format=xml",), "is not one of json, console"),
        (("--metrics=all",), "is not one of basic, extensive"),
        (("--auto-compaction-mode=daily",), "is not one of periodic, revision"),
        (("--auto-compaction-retention=soon",), "is not a duration"),
        (("--grpc-keepalive-interval=2",), "is not a duration"),
        (("--transport=quic",), "is not one of auto, native, grpcio"),
    ],
)
def test_what_cannot_be_used_is_refused_with_a_reason(argv: tuple[str, ...], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        config(*argv)


@pytest.mark.parametrize(
    ("mode", "retention", "seconds", "revisions"),
    [
        ("periodic", "0", 0, 0),
        ("periodic", "1", 3600, 0),
        ("periodic", "72h", 72 * 3600, 0),
        ("periodic", "5m", 300, 0),
        ("periodic", "1h30m", 5400, 0),
        ("revision", "0", 0, 0),
        ("revision", "1000", 0, 1000),
    ],
)
def test_auto_compaction(mode: str, retention: str, seconds: float, revisions: int) -> None:
    assert auto_compaction(mode, retention) == AutoCompaction(seconds, revisions)


@pytest.mark.parametrize(
    ("mode", "retention"),
    [("revision", "1h"), ("revision", "-1"), ("periodic", "-1"), ("periodic", "-5m")],
)
def test_an_absurd_retention_is_refused(mode: str, retention: str) -> None:
    with pytest.raises(UsageError, match="--auto-compaction-retention"):
        auto_compaction(mode, retention)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0), ("0s", 0), ("1.5s", 1.5), ("300ms", 0.3), ("1h0m1s", 3601), (".5m", 30), ("+2s", 2)],
)
def test_durations(text: str, seconds: float) -> None:
    assert values.duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", ["", "5", "s", "1 s", "-1s", "1h5", "1d", "1s ", "+", "..5s", "1..s"]
)
def test_no_durations(text: str) -> None:
    with pytest.raises(ValueError, match="not a duration"):
        values.duration(text)


def test_tls_files_are_checked(tmp_path: Path) -> None:
    cert, key, ca = (tmp_path / name for name in ("cert", "key", "ca"))
    argv = [
        "--listen-client-urls=https://127.0.0.1:1,http://127.0.0.1:2",
        f"--cert-file={cert}",
        f"--key-file={key}",
        f"--trusted-ca-file={ca}",
        "--client-cert-auth",
        "--listen-metrics-urls=",
    ]
    with pytest.raises(UsageError, match="--cert-file: there is no file"):
        config(*argv)
    for path in (cert, key, ca):
        path.write_text("x")
    found = config(*argv)
    assert found.transport.tls is not None
    assert found.transport.tls.trusted_ca_file == ca
    assert found.http_urls == ()
    assert any("http://127.0.0.1:2 is open to clients without" in w for w in found.warnings)
    found = config(f"--cert-file={cert}", f"--key-file={key}")
    assert found.transport.tls is None
    assert any("no URL is https" in w for w in found.warnings)


def test_urls_come_in_lists_without_repeats() -> None:
    found = config("--listen-client-urls=http://127.0.0.1:1,unix:///s, http://127.0.0.1:1")
    assert [str(url) for url in found.transport.listen] == ["http://127.0.0.1:1", "unix:///s"]
    assert found.advertise_client_urls == ("http://127.0.0.1:1", "unix:///s")
    found = config(
        "--listen-client-urls=http://0.0.0.0:1", "--advertise-client-urls=http://example.com:1"
    )
    assert found.advertise_client_urls == ("http://example.com:1",)


def test_help_names_every_flag_that_is_served_or_refused() -> None:
    assert serve_config(["--help"], {}) is None
    assert serve_config(["--name", "x", "-h"], {}) is None
    text = flags.help_text()
    assert all(f"  --{name} '" in text for name in FLAGS)
    refused = text[text.index("Refused") :]
    assert REFUSED.keys() <= set(re.split(r"[,\s]+", refused))


def test_no_flag_is_in_two_lists() -> None:
    assert not FLAGS.keys() & IGNORED.keys()
    assert not FLAGS.keys() & REFUSED.keys()
    assert not IGNORED.keys() & REFUSED.keys()


@pytest.mark.parametrize("installed", [True, False])
def test_the_transport_is_native_where_it_can_be(
    installed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object() if installed else None)
    assert not config("--transport=grpcio").native
    assert config("--transport=auto").native is installed
    assert ("not installed" in config().transport_why) is not installed
    if installed:
        assert config("--transport=native").native
    else:
        with pytest.raises(UsageError, match="is not installed"):
            config("--transport=native")
