"""The flags of ``jotd serve``: which there are, what etcd's others mean here, how they are read.

A flag is served, ignored with a warning, or refused. Ignored are etcd's flags about what jotd
does not have (peers, elections, bbolt). Refused are those that promise a safety or a protection
that jotd would not give: to ignore them would be to lie to the operator.

The syntax is that of Go's flag package: ``--flag value``, ``--flag=value``, the same with one
dash, and booleans without a value. ``JOTD_FLAG_NAME`` in the environment does what
``--flag-name`` does, and the command line wins.
"""

from __future__ import annotations

import difflib
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kvstore.cli import values
from kvstore.runtime.sources import VARIABLE as PURE_PYTHON

ENV_PREFIX = "JOTD_"

Reader = Callable[[str], Any]


class UsageError(Exception):
    """What the user gave cannot be used; the text says what and why. Exit code 2."""


@dataclass(frozen=True)
class Flag:
    """A flag that is served."""

    name: str
    read: Reader
    default: str
    help: str
    group: str
    is_bool: bool = False


@dataclass(frozen=True)
class Parsed:
    """What a command line and an environment say."""

    values: Mapping[str, Any]
    """The value of every served flag, defaults included."""
    given: frozenset[str]
    """Names that were given, by flag or by variable."""
    warnings: tuple[str, ...] = ()
    help: bool = False


@dataclass(frozen=True)
class _Given:
    text: str
    source: str


def _flag(
    group: str, name: str, read: Reader, default: str, help: str, *, is_bool: bool = False
) -> Flag:
    return Flag(name, read, default, help, group, is_bool)


_SERVED = (
    # --- Member
    _flag("Member", "name", str, "default", "Name of this member, for people."),
    _flag("Member", "data-dir", str, "", "Where the data is. Default: ${name}.jotd"),
    _flag(
        "Member",
        "listen-client-urls",
        values.listen_urls,
        "http://localhost:2379",
        "URLs to serve clients on (http, https, unix, unixs), comma-separated.",
    ),
    _flag(
        "Member",
        "advertise-client-urls",
        values.advertised_urls,
        "http://localhost:2379",
        "URLs that member lists name. Default: those of --listen-client-urls",
    ),
    _flag(
        "Member",
        "listen-metrics-urls",
        values.optional_listen_urls,
        "http://127.0.0.1:2381",
        "URLs for /metrics, /health, /livez, /readyz and /version; empty for none.",
    ),
    _flag(
        "Member",
        "listen-client-http-urls",
        values.optional_listen_urls,
        "",
        "More URLs for the same HTTP endpoints; those of --listen-client-urls then serve none.",
    ),
    _flag(
        "Member",
        "snapshot-count",
        values.unsigned,
        "0",
        "Write requests after which a snapshot is taken and the journal trimmed; 0: when the "
        "journal has grown by as much as the last snapshot has.",
    ),
    _flag(
        "Member",
        "quota-backend-bytes",
        values.integer,
        "0",
        "Size of the data above which writes are refused with the NOSPACE alarm; 0 for 2 GiB, "
        "negative for no limit.",
    ),
    _flag(
        "Member",
        "max-txn-ops",
        values.positive,
        "128",
        "Operations permitted in one transaction.",
    ),
    _flag(
        "Member",
        "max-request-bytes",
        values.positive,
        str(3 << 19),
        "Bytes permitted in one request.",
    ),
    _flag(
        "Member",
        "max-concurrent-streams",
        values.uint32,
        "16384",
        "Calls and streams open at once on one connection; 0 for no limit.",
    ),
    _flag(
        "Member",
        "grpc-keepalive-min-time",
        values.duration,
        "5s",
        "How often a client may ping at most.",
    ),
    _flag(
        "Member",
        "grpc-keepalive-interval",
        values.duration,
        "2h",
        "How often the server pings a client; 0 for never.",
    ),
    _flag(
        "Member",
        "grpc-keepalive-timeout",
        values.duration,
        "20s",
        "How long it waits for the answer before it closes the connection.",
    ),
    _flag(
        "Member",
        "drain-timeout",
        values.duration,
        "10s",
        "How long SIGTERM waits for requests that are under way (jotd's own flag).",
    ),
    # --- Journal and shards
    _flag(
        "Journal and shards (jotd's own)",
        "journal",
        str,
        "file",
        "Where writes become durable: file, memory (nothing survives), or a backend's URL.",
    ),
    _flag(
        "Journal and shards (jotd's own)",
        "partitions",
        values.optional_path,
        "",
        "Partition table (TOML) to use in place of the built-in one for Kubernetes.",
    ),
    _flag(
        "Journal and shards (jotd's own)",
        "transport",
        values.one_of("auto", "native", "grpcio"),
        "auto",
        "What serves gRPC: native (the front door in Rust), grpcio, or auto: native if it is "
        "installed.",
    ),
    # --- Compaction and watches
    _flag(
        "Compaction and watches",
        "auto-compaction-mode",
        values.one_of("periodic", "revision"),
        "periodic",
        "What --auto-compaction-retention counts: periodic (time) or revision.",
    ),
    _flag(
        "Compaction and watches",
        "auto-compaction-retention",
        str,
        "0",
        "History to keep: hours or a duration (1, 30m), or revisions (1000); 0 for all.",
    ),
    _flag(
        "Compaction and watches",
        "watch-progress-notify-interval",
        values.duration,
        "10m",
        "How often a watch that asked for it is told about progress; 0 for 10m, 100ms at least.",
    ),
    # --- Security
    _flag("Security", "cert-file", values.optional_path, "", "Certificate (PEM) for https URLs."),
    _flag("Security", "key-file", values.optional_path, "", "Key (PEM) of that certificate."),
    _flag(
        "Security",
        "trusted-ca-file",
        values.optional_path,
        "",
        "CA (PEM) that must have signed the certificate which every client then has to show.",
    ),
    _flag(
        "Security",
        "client-cert-auth",
        values.boolean,
        "false",
        "Ask clients for certificates; needs --trusted-ca-file.",
        is_bool=True,
    ),
    # --- Logging and metrics
    _flag(
        "Logging and metrics",
        "log-level",
        values.one_of("debug", "info", "warn", "error", "panic", "fatal"),
        "info",
        "debug, info, warn, error, panic or fatal.",
    ),
    _flag(
        "Logging and metrics",
        "log-format",
        values.one_of("json", "console"),
        "json",
        "json or console.",
    ),
    _flag(
        "Logging and metrics",
        "log-outputs",
        values.words,
        "default",
        "stderr (the default), stdout, or files, comma-separated.",
    ),
    _flag(
        "Logging and metrics",
        "metrics",
        values.one_of("basic", "extensive"),
        "basic",
        "basic, or extensive to add latency histograms of every method.",
    ),
    _flag(
        "Logging and metrics",
        "warning-apply-duration",
        values.duration,
        "100ms",
        "A write that takes longer from durable to visible counts as slow, and is logged.",
    ),
)

FLAGS: Mapping[str, Flag] = {flag.name: flag for flag in _SERVED}

_PEERS = "jotd has no peers"
_RAFT = "jotd has no elections, its journal does"
_MEMBERS = "members of a jotd are not configured"
_BBOLT = "jotd has no bbolt"
_AUTH = "jotd has no users or roles yet"
_TRACING = "jotd does not trace"
_NEVER = "jotd has nothing to do for it"
_SLICES = "jotd compacts in slices of its own size"

#: etcd's flags that are taken and do nothing, by name, with the reason. See `_IGNORED_BOOLS`.
IGNORED: Mapping[str, str] = {
    "compaction-batch-limit": _SLICES,
    "compaction-sleep-interval": _SLICES,
    "warning-unary-request-duration": "--metrics=extensive has histograms of every method",
    "listen-peer-urls": _PEERS,
    "initial-advertise-peer-urls": _PEERS,
    "raft-read-timeout": _PEERS,
    "raft-write-timeout": _PEERS,
    "peer-cert-file": _PEERS,
    "peer-key-file": _PEERS,
    "peer-client-cert-file": _PEERS,
    "peer-client-key-file": _PEERS,
    "peer-client-cert-auth": _PEERS,
    "peer-trusted-ca-file": _PEERS,
    "peer-cert-allowed-cn": _PEERS,
    "peer-cert-allowed-hostname": _PEERS,
    "peer-auto-tls": _PEERS,
    "peer-crl-file": _PEERS,
    "peer-skip-client-san-verification": _PEERS,
    "heartbeat-interval": _RAFT,
    "election-timeout": _RAFT,
    "initial-election-tick-advance": _RAFT,
    "pre-vote": _RAFT,
    "snapshot-catchup-entries": _RAFT,
    "initial-cluster": _MEMBERS,
    "initial-cluster-state": _MEMBERS,
    "initial-cluster-token": _MEMBERS,
    "strict-reconfig-check": _MEMBERS,
    "force-new-cluster": _MEMBERS,
    "max-learners": _MEMBERS,
    "wait-cluster-ready-timeout": _MEMBERS,
    "discovery": _MEMBERS,
    "discovery-token": _MEMBERS,
    "discovery-endpoints": _MEMBERS,
    "discovery-dial-timeout": _MEMBERS,
    "discovery-request-timeout": _MEMBERS,
    "discovery-keepalive-time": _MEMBERS,
    "discovery-keepalive-timeout": _MEMBERS,
    "discovery-insecure-transport": _MEMBERS,
    "discovery-insecure-skip-tls-verify": _MEMBERS,
    "discovery-cert": _MEMBERS,
    "discovery-key": _MEMBERS,
    "discovery-cacert": _MEMBERS,
    "discovery-user": _MEMBERS,
    "discovery-password": _MEMBERS,
    "discovery-fallback": _MEMBERS,
    "discovery-proxy": _MEMBERS,
    "discovery-srv": _MEMBERS,
    "discovery-srv-name": _MEMBERS,
    "proxy": _MEMBERS,
    "wal-dir": "the journal is in --data-dir, or where --journal says",
    "max-wals": "the journal is trimmed after each snapshot",
    "max-snapshots": "old snapshots are removed after each new one",
    "backend-bbolt-freelist-type": _BBOLT,
    "backend-batch-interval": _BBOLT,
    "backend-batch-limit": _BBOLT,
    "bootstrap-defrag-threshold-megabytes": _BBOLT,
    "memory-mlock": _BBOLT,
    "txn-mode-write-with-shared-buffer": _BBOLT,
    "stop-grpc-service-on-defrag": _BBOLT,
    "corrupt-check-time": "jotd has no members to compare, and checks its journal as it reads",
    "initial-corrupt-check": "jotd has no members to compare, and checks its journal as it reads",
    "compact-hash-check-enabled": "jotd has no members to compare",
    "compact-hash-check-time": "jotd has no members to compare",
    "downgrade-check-time": "jotd has no downgrade in steps",
    "enable-lease-checkpoint": "a lease has its full time again after a restart",
    "enable-lease-checkpoint-persist": "a lease has its full time again after a restart",
    "feature-gates": "jotd has none of etcd's feature gates",
    "enable-v2": "jotd speaks the v3 API only",
    "enable-v2v3": "jotd speaks the v3 API only",
    "v2-deprecation": "jotd speaks the v3 API only",
    "enable-grpc-gateway": "jotd has no JSON gateway yet",
    "cors": "jotd has no JSON gateway yet",
    "client-cert-file": "jotd has no JSON gateway that needs it",
    "client-key-file": "jotd has no JSON gateway that needs it",
    "bcrypt-cost": _AUTH,
    "auth-token-ttl": _AUTH,
    "self-signed-cert-validity": "jotd signs no certificates",
    "socket-reuse-port": "a second server on a port in use is always refused",
    "socket-reuse-address": "jotd always does this",
    "enable-pprof": _NEVER,
    "logger": "there is one logger, and it writes what zap would",
    "enable-log-rotation": "leave that to logrotate or the journal of systemd",
    "log-rotation-config-json": "leave that to logrotate or the journal of systemd",
    "log-package-levels": _NEVER,
    "debug": "use --log-level=debug",
    "enable-distributed-tracing": _TRACING,
    "distributed-tracing-address": _TRACING,
    "distributed-tracing-service-name": _TRACING,
    "distributed-tracing-instance-id": _TRACING,
    "distributed-tracing-sampling-rate": _TRACING,
}

_IGNORED_BOOLS = frozenset(
    (
        "peer-client-cert-auth",
        "peer-auto-tls",
        "peer-skip-client-san-verification",
        "initial-election-tick-advance",
        "pre-vote",
        "strict-reconfig-check",
        "force-new-cluster",
        "discovery-insecure-transport",
        "discovery-insecure-skip-tls-verify",
        "memory-mlock",
        "txn-mode-write-with-shared-buffer",
        "stop-grpc-service-on-defrag",
        "initial-corrupt-check",
        "compact-hash-check-enabled",
        "enable-lease-checkpoint",
        "enable-lease-checkpoint-persist",
        "enable-v2",
        "enable-grpc-gateway",
        "socket-reuse-port",
        "socket-reuse-address",
        "enable-pprof",
        "enable-log-rotation",
        "debug",
        "enable-distributed-tracing",
    )
)


@dataclass(frozen=True)
class Refused:
    """A flag that must not be passed over: any value but a harmless one is an error."""

    why: str
    harmless: tuple[str, ...] = ("",)
    is_bool: bool = False


_NO_TLS_CHOICE = "jotd cannot restrict TLS that way, and must not pretend to"
_OFF = ("0", "f", "F", "FALSE", "false", "False")

REFUSED: Mapping[str, Refused] = {
    "unsafe-no-fsync": Refused(
        "an acknowledged write is always on disk; for data that may go use --journal=memory",
        _OFF,
        is_bool=True,
    ),
    "config-file": Refused("jotd reads flags and JOTD_ variables, not etcd's YAML"),
    "auth-token": Refused(
        "jotd has no users or roles yet, so tokens would protect nothing", ("", "simple")
    ),
    "auto-tls": Refused(
        "jotd makes no certificates; give --cert-file and --key-file", _OFF, is_bool=True
    ),
    "client-crl-file": Refused("jotd checks no revocation lists, and must not pretend to"),
    "client-cert-allowed-hostname": Refused(
        "jotd does not compare names in client certificates, and must not pretend to"
    ),
    "client-cert-allowed-cn": Refused(
        "jotd does not compare names in client certificates, and must not pretend to"
    ),
    "cipher-suites": Refused(_NO_TLS_CHOICE),
    "tls-min-version": Refused(_NO_TLS_CHOICE, ("", "TLS1.2")),
    "tls-max-version": Refused(_NO_TLS_CHOICE, ("", "TLS1.3")),
    "host-whitelist": Refused("jotd does not check host names in HTTP requests", ("", "*")),
}


def parse(argv: Sequence[str], environ: Mapping[str, str]) -> Parsed:
    """Reads flags and variables. Raises UsageError; does not look at what values mean together."""
    given: dict[str, _Given] = {}
    warnings: list[str] = []
    for name, text, source in _from_environ(environ, warnings):
        given[name] = _Given(text, source)
    flagged: dict[str, _Given] = {}
    for name, text in _from_argv(argv):
        if name in ("help", "h"):
            return Parsed({}, frozenset(), help=True)
        flagged[name] = _Given(text, f"--{name}")
    given.update(flagged)

    taken: dict[str, Any] = {}
    for name, what in given.items():
        if (flag := FLAGS.get(name)) is not None:
            taken[name] = _read(flag.read, what.text, what.source)
        elif (refused := REFUSED.get(name)) is not None:
            if what.text not in refused.harmless:
                raise UsageError(f"{what.source}: {refused.why}")
        else:
            warnings.append(f"{what.source} is ignored: {IGNORED[name]}")
    for name, flag in FLAGS.items():
        if name not in taken:
            taken[name] = flag.read(flag.default)
    return Parsed(taken, frozenset(given), tuple(warnings))


def _read(read: Reader, text: str, source: str) -> Any:
    try:
        return read(text)
    except ValueError as error:
        raise UsageError(f"invalid value {text!r} for {source}: {error}") from None


def _from_environ(
    environ: Mapping[str, str], warnings: list[str]
) -> Iterable[tuple[str, str, str]]:
    for variable in sorted(environ):
        if not variable.startswith(ENV_PREFIX) or not environ[variable]:
            continue
        if variable == PURE_PYTHON:
            continue
        name = _canonical(variable.removeprefix(ENV_PREFIX).lower().replace("_", "-"))
        if name is None:
            # Not an error, as in etcd: orchestrators put variables of their own in there.
            warnings.append(f"unrecognized environment variable {variable}")
        else:
            yield name, environ[variable], variable


def _from_argv(argv: Sequence[str]) -> Iterable[tuple[str, str]]:
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        if not word.startswith("-") or word in ("-", "--"):
            raise UsageError(f"{word!r} is not a flag; serve takes flags only")
        name, equals, text = word.removeprefix("-").removeprefix("-").partition("=")
        if name in ("help", "h"):
            yield name, ""
            continue
        known = _canonical(name)
        if known is None:
            raise UsageError(f"flag provided but not defined: -{name}{_suggestion(name)}")
        if not equals:
            if _is_bool(known):
                text = "true"
            elif rest:
                text = rest.pop(0)
            else:
                raise UsageError(f"flag needs an argument: -{name}")
        yield known, text


def _canonical(name: str) -> str | None:
    """The flag's own name, or None if there is no such flag.

    etcd had many flags as ``experimental-...`` first, and took them so for some versions.
    """
    for candidate in (name, name.removeprefix("experimental-")):
        if candidate in FLAGS or candidate in IGNORED or candidate in REFUSED:
            return candidate
    return None


def _is_bool(name: str) -> bool:
    if name in FLAGS:
        return FLAGS[name].is_bool
    if name in REFUSED:
        return REFUSED[name].is_bool
    return name in _IGNORED_BOOLS


def _suggestion(name: str) -> str:
    near = difflib.get_close_matches(name, FLAGS, n=1)
    return f" (did you mean --{near[0]}?)" if near else "; see `jotd serve --help`"


def help_text() -> str:
    """What ``jotd serve --help`` prints."""
    lines = ["usage: jotd serve [flags]", "", "Serves the etcd v3 API.", ""]
    for group in dict.fromkeys(flag.group for flag in _SERVED):
        lines.append(f"{group}:")
        for flag in _SERVED:
            if flag.group == group:
                lines.append(f"  --{flag.name} '{flag.default}'")
                lines.append(f"    {flag.help}")
        lines.append("")
    lines.append("JOTD_FLAG_NAME in the environment does what --flag-name does; flags win.")
    lines.append("Flags of etcd's about peers, elections and bbolt are taken, and ignored.")
    lines.append("Refused, since what they ask for is not here:")
    lines.extend(textwrap.wrap(", ".join(sorted(REFUSED)), 90, break_on_hyphens=False))
    return "\n".join(lines)
