"""Certificates that openssl makes for a test."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.peers import require

_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


def _openssl(*argv: str | Path) -> None:
    subprocess.run(["openssl", *map(str, argv)], check=True, capture_output=True, timeout=60)


def make_ca(place: Path, name: str) -> None:
    """``name.crt`` and ``name.key``, which sign others."""
    key, cert = place / f"{name}.key", place / f"{name}.crt"
    _openssl("req", "-x509", *_NEW_KEY, "-keyout", key, "-out", cert, "-subj", f"/CN={name}")


def make_certificate(
    place: Path,
    name: str,
    *,
    ca: str = "ca",
    subject: str | None = None,
    names: str = "IP:127.0.0.1,DNS:localhost",
    days: int = 30,
) -> None:
    """``name.crt`` and ``name.key``; the subject is ``/CN=name`` if not given."""
    key, request, cert = (place / f"{name}.{end}" for end in ("key", "csr", "crt"))
    subject = f"/CN={name}" if subject is None else subject
    _openssl("req", *_NEW_KEY, "-keyout", key, "-out", request, "-subj", subject)
    extensions = place / f"{name}.ext"
    extensions.write_text(f"subjectAltName={names}\n")
    signing = ("-CA", place / f"{ca}.crt", "-CAkey", place / f"{ca}.key", "-CAcreateserial")
    _openssl(
        *("x509", "-req", "-in", request, *signing, "-extfile", extensions),
        *("-days", str(days), "-out", cert),
    )


def make_pki(place: Path) -> Path:
    """A directory with ca, server and client, each as .crt and .key. Skips without openssl."""
    require("openssl")
    make_ca(place, "ca")
    for name in ("server", "client"):
        make_certificate(place, name)
    return place
