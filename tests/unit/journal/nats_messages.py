"""Messages of a NATS journal as another writer would make them."""

from __future__ import annotations

from journal.nats.chain import Chain
from journal.nats.frames import NONCE_BYTES, encode

NONCE = b"a" * NONCE_BYTES


def message(
    chain: Chain,
    payload: bytes = b"x",
    *,
    nonce: bytes = NONCE,
    part: int = 1,
    parts: int = 1,
    prev: bytes | None = None,
    batch: int | None = None,
    settled: tuple[int, bytes] | None = None,
) -> tuple[bytes, bytes]:
    """What a writer at the end of `chain` would send, except for what is given."""
    known, digest = settled or (chain.batch, chain.digest)
    return encode(
        batch=chain.batch + 1 if batch is None else batch,
        part=part,
        parts=parts,
        nonce=nonce,
        prev=chain.digest if prev is None else prev,
        settled=known,
        settled_digest=digest,
        pieces=[payload],
    )
