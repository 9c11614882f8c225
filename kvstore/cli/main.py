"""The ``jotd`` command. Parts that need gRPC are imported only when they are."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

EXIT_USAGE = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code: 0 good, 1 failed, 2 wrong usage."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0] == "serve":
        # Go's flag syntax, which argparse cannot read.
        return _serve(words[1:])
    if words and words[0] == "bench":
        from kvstore.cli import bench

        return bench.main(words[1:])
    parser = _parser()
    if words and words[0].startswith("-") and words[0] not in ("-h", "--help", "--version"):
        parser.error(f"{words[0]} comes after a command: jotd serve {' '.join(words)}")
    options = parser.parse_args(words)
    if options.command == "version" or options.version:
        return _version()
    if options.command == "journal":
        from kvstore.cli import journal

        return journal.run(options)
    parser.print_help(sys.stderr)
    return EXIT_USAGE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="jotd",
        description="An etcd-compatible key-value server on a journal.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="store_true", help="show versions")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    commands.add_parser("serve", help="serve the etcd v3 API; jotd serve --help lists its flags")
    commands.add_parser(
        "bench", help="make load on etcd v3 endpoints; jotd bench --help lists its options"
    )
    commands.add_parser("version", help="show versions")
    journal = commands.add_parser("journal", help="look at a journal that no server has open")
    actions = journal.add_subparsers(dest="action", metavar="ACTION", required=True)
    verify = actions.add_parser("verify", help="check every frame, and say what is damaged")
    dump = actions.add_parser("dump", help="print every record")
    for action in (verify, dump):
        action.add_argument("directory", type=Path, metavar="DIR", help="data or journal directory")
        action.add_argument(
            "--format", choices=("text", "json"), default="text", help="json: one object a line"
        )
    dump.add_argument(
        "--after", type=int, default=0, metavar="SEQUENCE", help="leave out batches up to this one"
    )
    dump.add_argument("--limit", type=int, default=0, metavar="N", help="stop after N batches")
    return parser


def _version() -> int:
    from kvstore.cli.config import choose_transport
    from kvstore.runtime.sources import is_compiled
    from kvstore.version import ETCD_VERSION

    native, why = choose_transport("auto")
    print(f"jotd {metadata.version('jotd')}")
    print(f"etcd API {ETCD_VERSION}")
    print(f"Python {sys.version.split()[0]}")
    print(f"transport {'native' if native else 'grpcio'}: {why}")
    print(f"hot modules {'compiled' if is_compiled() else 'interpreted'}")
    return 0


def _serve(words: Sequence[str]) -> int:
    from kvstore.cli import flags

    # gRPC core's own log is for its developers, and clients can write into it.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from kvstore.cli import config, logs

    try:
        wanted = config.serve_config(words, os.environ)
    except flags.UsageError as error:
        print(f"jotd serve: {error}", file=sys.stderr)
        return EXIT_USAGE
    if wanted is None:
        print(flags.help_text())
        return 0
    try:
        logs.set_up(wanted.log)
    except OSError as error:
        print(f"jotd serve: --log-outputs: {error}", file=sys.stderr)
        return EXIT_USAGE
    from kvstore import server

    return server.serve(wanted)


if __name__ == "__main__":
    raise SystemExit(main())
