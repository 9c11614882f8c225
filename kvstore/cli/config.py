"""From parsed flags to one typed configuration, with all checks that need more than one flag."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvstore.cli import values
from kvstore.cli.flags import Parsed, UsageError, parse
from kvstore.transport.address import ListenUrl
from kvstore.transport.options import Tls, TransportOptions

#: What `--transport native` needs.
NATIVE_MODULE = "jotd_native"
#: What a quota of 0 stands for.
QUOTA_DEFAULT_BYTES = 2 << 30
#: etcd warns about requests larger than this.
REQUEST_ADVISED_BYTES = 10 << 20
#: What a progress interval of 0 stands for, and the shortest that there is (etcd's v3rpc/watch.go).
PROGRESS_INTERVAL_DEFAULT_S = 600.0
PROGRESS_INTERVAL_MIN_S = 0.1


@dataclass(frozen=True)
class AutoCompaction:
    """History that is kept. At most one of the two is above 0; none: nothing is compacted."""

    retention_s: float = 0.0
    retention_revisions: int = 0


@dataclass(frozen=True)
class LogConfig:
    level: str
    format: str
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class ServeConfig:
    """What ``jotd serve`` was told. Times are in seconds, sizes in bytes."""

    name: str
    data_dir: Path
    journal: str
    partitions: Path | None
    transport: TransportOptions
    native: bool
    """Whether the native front door serves, and not grpcio."""
    transport_why: str
    """Why that one, for the log."""
    http_urls: tuple[ListenUrl, ...]
    http_apart: bool
    """Whether clients' HTTP has addresses of its own, so that those of gRPC serve none."""
    advertise_client_urls: tuple[str, ...]
    quota_bytes: int
    """Below 0: no limit."""
    max_request_bytes: int
    max_txn_ops: int
    snapshot_count: int
    auto_compaction: AutoCompaction
    watch_progress_notify_interval_s: float
    warning_apply_duration_s: float
    drain_timeout_s: float
    metrics_extensive: bool
    log: LogConfig
    warnings: tuple[str, ...] = ()
    """For the log, once there is one."""


def serve_config(argv: Sequence[str], environ: Mapping[str, str]) -> ServeConfig | None:
    """The configuration, or None if help was asked for. Raises UsageError."""
    parsed = parse(argv, environ)
    return None if parsed.help else _build(parsed)


def choose_transport(wanted: str) -> tuple[bool, str]:
    """Whether the native front door serves, and why. `wanted`: what --transport says.

    Raises UsageError if it is asked for and not there.
    """
    if wanted == "grpcio":
        return False, "--transport grpcio"
    if importlib.util.find_spec(NATIVE_MODULE) is not None:
        return True, "it is installed" if wanted == "auto" else "--transport native"
    why = "the native front door is not installed (pip builds it where Rust is at hand)"
    if wanted == "native":
        raise UsageError(f"--transport native: {why}")
    return False, why


def _build(parsed: Parsed) -> ServeConfig:
    v = parsed.values
    warnings = list(parsed.warnings)
    native, transport_why = choose_transport(v["transport"])
    if v["max-request-bytes"] > REQUEST_ADVISED_BYTES:
        warnings.append(
            f"--max-request-bytes {v['max-request-bytes']} exceeds the recommended "
            f"{REQUEST_ADVISED_BYTES}"
        )
    listen: tuple[ListenUrl, ...] = v["listen-client-urls"]
    http_urls = tuple(dict.fromkeys((*v["listen-metrics-urls"], *v["listen-client-http-urls"])))
    for url in http_urls:
        if url in listen and (url.is_unix or url.port):
            raise UsageError(f"{url} cannot serve both gRPC clients and HTTP")
    tls = _tls(v, (*listen, *http_urls), warnings)
    if "advertise-client-urls" in parsed.given or "listen-client-urls" not in parsed.given:
        advertised = v["advertise-client-urls"]
    else:
        advertised = tuple(map(str, listen))
    return ServeConfig(
        name=v["name"],
        data_dir=Path(v["data-dir"] or f"{v['name']}.jotd"),
        journal=v["journal"],
        partitions=v["partitions"],
        transport=TransportOptions(
            listen=listen,
            tls=tls,
            concurrent_streams_max=v["max-concurrent-streams"],
            keepalive_min_time_s=v["grpc-keepalive-min-time"],
            keepalive_interval_s=v["grpc-keepalive-interval"],
            keepalive_timeout_s=v["grpc-keepalive-timeout"],
        ),
        native=native,
        transport_why=transport_why,
        http_urls=http_urls,
        http_apart=bool(v["listen-client-http-urls"]),
        advertise_client_urls=advertised,
        quota_bytes=v["quota-backend-bytes"] or QUOTA_DEFAULT_BYTES,
        max_request_bytes=v["max-request-bytes"],
        max_txn_ops=v["max-txn-ops"],
        snapshot_count=v["snapshot-count"],
        auto_compaction=auto_compaction(v["auto-compaction-mode"], v["auto-compaction-retention"]),
        watch_progress_notify_interval_s=_progress_interval_s(
            v["watch-progress-notify-interval"], warnings
        ),
        warning_apply_duration_s=v["warning-apply-duration"],
        drain_timeout_s=v["drain-timeout"],
        metrics_extensive=v["metrics"] == "extensive",
        log=LogConfig(v["log-level"], v["log-format"], v["log-outputs"]),
        warnings=tuple(warnings),
    )


def _progress_interval_s(wanted_s: float, warnings: list[str]) -> float:
    """As in etcd 0 stands for the default, and what is too short is made longer."""
    if wanted_s == 0:
        return PROGRESS_INTERVAL_DEFAULT_S
    if wanted_s < PROGRESS_INTERVAL_MIN_S:
        warnings.append("--watch-progress-notify-interval is adjusted to its minimum, 100ms")
    return max(wanted_s, PROGRESS_INTERVAL_MIN_S)


def _tls(v: Mapping[str, Any], urls: Sequence[ListenUrl], warnings: list[str]) -> Tls | None:
    cert, key, ca = v["cert-file"], v["key-file"], v["trusted-ca-file"]
    secure = [url for url in urls if url.secure]
    if (cert is None) != (key is None):
        raise UsageError("--cert-file and --key-file are given together, or not at all")
    if v["client-cert-auth"] and ca is None:
        raise UsageError("--client-cert-auth needs --trusted-ca-file")
    if secure and cert is None:
        raise UsageError(f"{secure[0]} needs --cert-file and --key-file")
    if not secure:
        if ca is not None:
            # In etcd this is a warning. A server that is open although its operator named a CA
            # is not what the operator meant.
            raise UsageError("--trusted-ca-file protects https URLs only, and there is none")
        if cert is not None:
            warnings.append("--cert-file and --key-file are ignored: no URL is https")
        return None
    if ca is not None:
        for url in urls:
            if not url.secure and not url.is_unix:
                warnings.append(f"{url} is open to clients without a certificate")
    for flag, path in (("cert-file", cert), ("key-file", key), ("trusted-ca-file", ca)):
        if path is not None and not path.is_file():
            raise UsageError(f"--{flag}: there is no file {path}")
    return Tls(cert, key, ca)


def auto_compaction(mode: str, retention: str) -> AutoCompaction:
    """What ``--auto-compaction-mode`` and ``-retention`` mean together. Raises UsageError.

    As in etcd a bare number is hours in periodic mode. A duration in revision mode, which etcd
    takes for that many nanoseconds' worth of revisions, is refused.
    """
    source = "--auto-compaction-retention"
    if mode == "revision":
        try:
            return AutoCompaction(retention_revisions=values.unsigned(retention))
        except ValueError:
            raise UsageError(
                f"invalid value {retention!r} for {source}: revision mode takes a number of "
                "revisions"
            ) from None
    try:
        return AutoCompaction(retention_s=values.unsigned(retention) * 3600.0)
    except ValueError:
        pass
    try:
        return AutoCompaction(retention_s=values.duration(retention))
    except ValueError as error:
        raise UsageError(f"invalid value {retention!r} for {source}: {error}") from None
