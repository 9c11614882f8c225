"""What proves to the servers who connects, from the files and the URL that have it.

Files are read anew for every connection: one that is replaced, as a JWT that expires has to be,
counts from the next one on. They are read here because nats-py never comes back from a creds file
without a JWT, takes no line ends but Unix's, and finds out late what is wrong.
"""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nkeys
from nats.aio.client import RawCredentials

from journal.contract import JournalError
from journal.nats.url import Settings

_SEED = re.compile(r"^\s*(S[A-Z2-7]{57})\s*$", re.MULTILINE)
_JWT = re.compile(r"^\s*([\w-]+\.[\w-]+\.[\w-]+)\s*$", re.MULTILINE | re.ASCII)
_LONGEST = 1 << 20


@dataclass(frozen=True, slots=True)
class Credentials:
    """Options for nats-py's `connect`, and what they are, for a person to read."""

    options: Mapping[str, Any] = field(repr=False)
    text: str
    """Without anything secret."""


def read(settings: Settings) -> Credentials:
    """JournalError, which names the file and what is wrong with it."""
    if settings.creds is not None:
        return _creds(settings.creds)
    if settings.nkey is not None:
        seed, user = _seed(_content(settings.nkey), settings.nkey)
        return Credentials({"nkeys_seed_str": seed}, f"the nkey in {settings.nkey} (user {user})")
    if settings.user is not None:
        return Credentials(
            {"user": settings.user, "password": settings.password},
            "the user and password of the journal's URL",
        )
    if settings.token is not None:
        return Credentials({"token": settings.token}, "the token of the journal's URL")
    if settings.cert is not None:
        return Credentials({}, f"the certificate in {settings.cert}")
    return Credentials({}, "a client without credentials (the journal's URL has none)")


def _creds(path: Path) -> Credentials:
    content = _content(path)
    found = _JWT.search(content)
    if found is None:
        raise JournalError(f"{path} is not a creds file of NATS: there is no JWT in it")
    seed, user = _seed(content, path)
    claims = _claims(found[1], path)
    if claims.get("sub") != user:
        raise JournalError(
            f"the JWT in {path} is of user {claims.get('sub')}, the seed in it of user {user}"
        )
    expires = claims.get("exp")
    expired = ""
    if isinstance(expires, int) and 0 < expires <= time.time():
        expired = time.strftime(", expired on %Y-%m-%d at %H:%M:%S UTC", time.gmtime(expires))
    # The form that nats-py reads without surprises.
    plain = (
        f"-----BEGIN NATS USER JWT-----\n{found[1]}\n------END NATS USER JWT------\n"
        f"-----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    )
    return Credentials(
        {"user_credentials": RawCredentials(plain)},
        f"the JWT in {path} (user {user}{expired})",
    )


def _content(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_LONGEST).decode("utf-8", "replace")
    except OSError as error:
        raise JournalError(
            f"cannot read the credentials for NATS in {path}: {error.strerror}"
        ) from error


def _seed(content: str, path: Path) -> tuple[str, str]:
    """A user's seed, and its public key."""
    found = _SEED.search(content)
    if found is None:
        raise JournalError(f"there is no nkey seed (SU and 56 more characters) in {path}")
    if not found[1].startswith("SU"):
        raise JournalError(f"the nkey seed in {path} is no user's: one begins with SU")
    try:
        public: bytes = nkeys.from_seed(found[1].encode()).public_key
    except (nkeys.NkeysError, ValueError) as error:
        raise JournalError(f"the nkey seed in {path} cannot be used: {error}") from error
    return found[1], public.decode()


def _claims(jwt: str, path: Path) -> dict[str, Any]:
    """What the JWT says; whether that is true the servers know."""
    part = jwt.split(".")[1]
    try:
        claims = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    except ValueError:
        claims = None
    if not isinstance(claims, dict):
        raise JournalError(f"the JWT in {path} cannot be read")
    return claims
