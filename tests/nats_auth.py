"""Keys and JWTs of NATS, as `nsc` makes them: what a server in operator mode is configured with.

A JWT of NATS is ``base64url(header).base64url(claims).base64url(signature)``, signed by the one
above: operator, account, user.
"""

from __future__ import annotations

import base64
import json
import os
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

import nkeys

_HEADER = {"typ": "JWT", "alg": "ed25519-nkey"}
_UNLIMITED = {"subs": -1, "data": -1, "payload": -1}
_ACCOUNT = {**_UNLIMITED, "imports": -1, "exports": -1, "wildcards": True, "conn": -1, "leaf": -1}
_JETSTREAM = {"mem_storage": -1, "disk_storage": -1, "streams": -1, "consumer": -1}


class Key:
    """A pair of keys of a user, an account or an operator."""

    def __init__(self, prefix: int = nkeys.PREFIX_BYTE_USER) -> None:
        self.seed: str = nkeys.encode_seed(os.urandom(32), prefix).decode()
        pair = nkeys.from_seed(self.seed.encode())
        self.public: str = pair.public_key.decode()
        self._pair = pair

    def jwt(
        self, kind: str, subject: str, claims: dict[str, Any], expires: float | None = None
    ) -> str:
        """Claims about `subject`, signed with this key; `expires` in seconds since 1970."""
        body = {
            "jti": uuid4().hex,
            "iat": int(time.time()),
            "iss": self.public,
            "name": kind,
            "sub": subject,
            "nats": {**claims, "type": kind, "version": 2},
        }
        if expires is not None:
            body["exp"] = int(expires)
        signed = f"{_encode(_HEADER)}.{_encode(body)}"
        return f"{signed}.{_base64(self._pair.sign(signed.encode()))}"


class Operator:
    """An operator with an account that may use JetStream, one that may not, and the system's."""

    def __init__(self) -> None:
        self._key = Key(nkeys.PREFIX_BYTE_OPERATOR)
        self.account, self.without_jetstream, self._system = (
            Key(nkeys.PREFIX_BYTE_ACCOUNT) for _ in range(3)
        )

    def config(self) -> str:
        """For a server: accounts are known to it from the start, nothing is to be looked up."""
        limits = {self.account: {**_ACCOUNT, **_JETSTREAM}}
        accounts = "\n".join(
            f"  {key.public}: {self._key.jwt('account', key.public, claims)}"
            for key in (self.account, self.without_jetstream, self._system)
            for claims in [{"limits": limits.get(key, _ACCOUNT)}]
        )
        return (
            f"operator: {self._key.jwt('operator', self._key.public, {})}\n"
            f"system_account: {self._system.public}\n"
            f"resolver: MEMORY\nresolver_preload: {{\n{accounts}\n}}"
        )

    def creds(
        self,
        path: Path,
        user: Key | None = None,
        *,
        account: Key | None = None,
        seed: str | None = None,
        expires: float | None = None,
        deny: list[str] | None = None,
    ) -> Path:
        """A file with the JWT and the seed of a user; `deny`: what it may not publish."""
        user = user or Key()
        claims: dict[str, Any] = {**_UNLIMITED, "pub": {"deny": deny or []}, "sub": {}}
        jwt = (account or self.account).jwt("user", user.public, claims, expires)
        path.write_text(
            f"-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n"
            "************************* IMPORTANT *************************\n"
            "NKEY Seed printed below can be used to sign and prove identity.\n\n"
            f"-----BEGIN USER NKEY SEED-----\n{seed or user.seed}\n------END USER NKEY SEED------\n"
        )
        return path


def _encode(value: Any) -> str:
    return _base64(json.dumps(value).encode())


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
