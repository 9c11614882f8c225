"""The pure parts of the NATS journal: URLs, configuration, messages, which of them count."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from journal.contract import JournalError
from journal.nats import config
from journal.nats.chain import Chain, Gap
from journal.nats.frames import (
    HEADER_BYTES,
    BadFrame,
    NewerFrame,
    cut,
    decode,
    encode,
    parts_of,
    root,
)
from journal.nats.objects import MESSAGE_BYTES, BadObject, Framer, Meta, Unframer
from journal.nats.url import Settings, parse
from tests.unit.journal.nats_messages import NONCE as A
from tests.unit.journal.nats_messages import message

IDENTITY = b"i" * 16
B = b"b" * 16


# What the URL says


def test_a_url_with_everything() -> None:
    settings = parse(
        "nats://al%40ice:s%3Acret@h1,h2:5222,[::1]:7/my-log_1?replicas=5&snapshots=/x/y&unknown_s=3"
    )
    assert settings == Settings(
        name="my-log_1",
        servers=("h1:4222", "h2:5222", "[::1]:7"),
        user="al@ice",
        password="s:cret",
        replicas=5,
        snapshots=Path("/x/y"),
        unknown_s=3.0,
    )
    assert "s:cret" not in repr(settings)
    assert parse("nats://tok@h/n").token == "tok"
    assert not parse("nats://h/n").tls
    for secure in ("nats-tls://h/n", "nats://h/n?tls=true", "nats://h/n?ca=/c"):
        assert parse(secure).tls
    assert parse("nats://h/n?cert=/c&key=/k").tls


@pytest.mark.parametrize(
    "url",
    [
        "nats://h",
        "nats://h/",
        "nats://h/a.b",
        "nats://h/a/b",
        "nats:///n",
        "nats://h:port/n",
        "nats://h/n?colour=red",
        "nats://h/n?replicas=0",
        "nats://h/n?replicas=",
        "nats://h/n?tls=perhaps",
        "nats://h/n?cert=/c",
        "nats://h/n?creds=/c&nkey=/k",
        "http://h/n",
    ],
)
def test_a_url_that_says_nothing_sensible(url: str) -> None:
    with pytest.raises(JournalError):
        parse(url)


def test_an_error_names_no_secret() -> None:
    for url in ("nats://u:s3cr3t@h/a.b", "nats://u:s3cr3t@h:x/n"):
        with pytest.raises(JournalError) as caught:
            parse(url)
        assert "s3cr3t" not in str(caught.value)


# How streams are set up


def test_names_of_two_journals_never_meet() -> None:
    made = [config.names(name, kind) for name in ("a", "control-a") for kind in ("data", "control")]
    assert len({names.stream for names in made}) == len(made)
    assert len({subject for n in made for subject in (n.subject, n.stored)}) == 2 * len(made)


def test_what_is_wrong_with_a_stream_is_named_by_field() -> None:
    wanted = config.journal_config(config.names("x", "data"), 3, IDENTITY)
    actual = {**wanted, "max_msgs": 0, "num_replicas": 5, "sealed": False, "compression": "s2"}
    assert config.faults(wanted, actual) == []
    del actual["max_age"]
    assert config.faults(wanted, actual) == []
    for field, value in {
        "deny_delete": False,
        "max_age": 60_000_000_000,
        "max_bytes": 1000,
        "storage": "memory",
        "num_replicas": 1,
        "discard": "old",
        "persist_mode": "async",
        "allow_rollup_hdrs": True,
        "sources": [{"name": "other"}],
        "republish": None,
    }.items():
        (found,) = config.faults(wanted, {**wanted, field: value})
        assert found.startswith(field)
    assert config.identity_of(wanted) == IDENTITY
    assert config.identity_of({"metadata": {config.IDENTITY_KEY: "00"}}) is None
    assert config.identity_of({}) is None


# Messages


def fresh() -> Chain:
    return Chain(0, root(IDENTITY), 0)


def test_a_message_comes_back_as_it_was_made() -> None:
    data, digest = message(fresh(), b"payload", part=2, parts=3)
    frame = decode(data)
    assert (frame.batch, frame.part, frame.parts, frame.nonce) == (1, 2, 3, A)
    assert (frame.settled, frame.settled_digest, frame.prev) == (0, root(IDENTITY), root(IDENTITY))
    assert (frame.payload, frame.digest, len(data)) == (b"payload", digest, HEADER_BYTES + 7)


def test_every_bit_of_a_message_is_checked() -> None:
    data, _ = message(fresh(), b"payload")
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 1 << (position % 8)
        with pytest.raises((BadFrame, NewerFrame)):
            decode(bytes(damaged))
    for length in range(len(data)):
        with pytest.raises(BadFrame):
            decode(data[:length])
    with pytest.raises(NewerFrame):
        decode(data[:4] + b"\x02" + data[5:])


def test_cutting_loses_nothing() -> None:
    rng = random.Random(1)
    for _ in range(300):
        parts = [rng.randbytes(rng.choice((0, 1, 5, 10, 40))) for _ in range(rng.randrange(6))]
        whole = b"".join(parts)
        limit = rng.randrange(1, 30)
        pieces = [b"".join(each) for each in cut(parts, len(whole), limit)]
        assert b"".join(pieces) == whole and len(pieces) == parts_of(len(whole), limit)
        assert all(len(piece) == limit for piece in pieces[:-1]) and len(pieces[-1]) <= limit


# Which messages count


def feed(chain: Chain, *messages: bytes) -> list[bytes]:
    """The payloads of the batches that come of it."""
    found = []
    for data in messages:
        done = chain.feed(chain.sequence + 1, data)
        if done is not None:
            found.append(b"".join(done[1]))
    return found


def group(
    chain: Chain, payloads: Sequence[bytes], prev: bytes | None = None, nonce: bytes = A
) -> list[bytes]:
    made = []
    for index, payload in enumerate(payloads):
        data, prev = message(
            chain, payload, part=index + 1, parts=len(payloads), prev=prev, nonce=nonce
        )
        made.append(data)
    return made


def test_batches_of_one_and_of_several_parts() -> None:
    chain = fresh()
    assert feed(chain, message(chain, b"1")[0]) == [b"1"]
    assert feed(chain, *group(chain, [b"2", b"two", b""])) == [b"2two"]
    assert (chain.batch, chain.sequence, chain.void) == (2, 4, 0)


def test_a_sequence_that_is_missing_is_noticed() -> None:
    chain = fresh()
    with pytest.raises(Gap):
        chain.feed(2, message(chain)[0])
    assert chain.sequence == 0


def test_an_incomplete_group_is_void() -> None:
    chain = fresh()
    feed(chain, *group(chain, [b"a", b"b", b"c"])[:2])
    assert len(chain.under_way) == 2
    assert feed(chain, message(chain, b"other", nonce=B)[0]) == [b"other"]
    assert (chain.batch, chain.sequence, chain.void) == (1, 3, 2)


def test_a_group_is_carried_on_by_its_next_part_only() -> None:
    chain = fresh()
    parts = group(chain, [b"a", b"b", b"c"])
    assert feed(chain, parts[0], parts[2], parts[1], parts[2]) == []
    assert feed(chain, *parts) == [b"abc"]


def test_stragglers_of_an_overtaken_pipeline_are_void() -> None:
    """I6: the second message of A finds the sequence that it expects, for B has taken the first."""
    chain = fresh()
    first, digest = message(chain, b"a1")
    second, _ = message(chain, b"a2", batch=2, prev=digest, settled=(0, root(IDENTITY)))
    assert feed(chain, message(chain, b"b1", nonce=B)[0], second, first) == [b"b1"]
    assert chain.void == 2
    assert feed(chain, message(chain, b"b2", nonce=B)[0]) == [b"b2"]


def test_what_a_writer_knew_to_be_stored_has_to_be_there() -> None:
    """I10: an acknowledged batch that is gone, or another in its place, is damage."""
    chain, other = fresh(), fresh()
    one, _ = message(chain, b"1")
    two, _ = message(chain, b"another 1")
    feed(chain, one)
    three, _ = message(chain, b"2")
    with pytest.raises(BadFrame, match="disappeared"):
        other.feed(1, three)
    feed(other, two)
    with pytest.raises(BadFrame, match="replaced"):
        other.feed(2, three)
    assert feed(chain, three) == [b"2"]


def test_random_writers_agree_with_every_reader() -> None:
    """Writers with several messages under way, on a stream that checks the last sequence only."""
    for seed in range(60):
        rng = random.Random(seed)
        stream: list[bytes] = []
        acknowledged: dict[int, bytes] = {}
        for life in range(8):
            chain = fresh()
            for data in stream:
                chain.feed(chain.sequence + 1, data)
            # Sent all at once, each expecting the one before; some are lost, and now and then
            # another writer is quicker.
            nonce = bytes([life]) * 16
            prev, settled = chain.digest, (chain.batch, chain.digest)
            sent: list[tuple[int, int, bytes, bytes]] = []
            before, batch = len(stream), chain.batch
            for _ in range(rng.randrange(1, 6)):
                batch += 1
                parts = rng.choice((1, 1, 3))
                payload = b"%d/%d" % (life, batch)
                for part in range(1, parts + 1):
                    data, prev = encode(
                        batch=batch,
                        part=part,
                        parts=parts,
                        nonce=nonce,
                        prev=prev,
                        settled=settled[0],
                        settled_digest=settled[1],
                        pieces=[payload if part == 1 else b""],
                    )
                    sent.append((before, batch if part == parts else 0, data, payload))
                    before += 1
            alive = True
            for expected, done, data, payload in sent:
                if rng.random() < 0.15:
                    stream.append(message(chain, b"rival", nonce=b"r" * 16)[0])
                if rng.random() < 0.1:
                    alive = False
                    continue
                if expected != len(stream):
                    alive = False
                    continue
                stream.append(data)
                if alive and done:
                    assert done not in acknowledged
                    acknowledged[done] = payload
            if rng.random() < 0.3:
                # The rest of it comes late.
                for expected, _, data, _ in sent:
                    if expected == len(stream):
                        stream.append(data)
        chain = fresh()
        found = {}
        for data in stream:
            done_ = chain.feed(chain.sequence + 1, data)
            if done_ is not None:
                found[done_[0].batch] = b"".join(done_[1])
        assert sorted(found) == list(range(1, chain.batch + 1))
        assert {batch: found[batch] for batch in acknowledged} == acknowledged


# Snapshots as objects


def test_chunks_of_an_object_come_back_as_they_were() -> None:
    chunks = [b"", b"x" * 10, b"y" * MESSAGE_BYTES, b"z" * (3 * MESSAGE_BYTES + 5), b"", b"end"]
    framer, unframer = Framer(), Unframer()
    messages = [message for chunk in chunks for message in framer.add(chunk)]
    messages += framer.end()
    assert all(len(message) == MESSAGE_BYTES for message in messages[:-1])
    assert [chunk for message in messages for chunk in unframer.add(message)] == chunks
    assert unframer.ended
    for index in range(len(messages)):
        lost, found = Unframer(), 0
        try:
            for message in messages[:index] + messages[index + 1 :]:
                found += len(list(lost.add(message)))
        except BadObject:
            continue
        assert not lost.ended


def test_a_damaged_object_is_noticed_before_it_is_handed_out() -> None:
    framer = Framer()
    messages = [message for chunk in (b"abc", b"def") for message in framer.add(chunk)]
    (data,) = [*messages, *framer.end()]
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 4
        unframer = Unframer()
        chunks = []
        try:
            for chunk in unframer.add(bytes(damaged)):
                chunks.append(chunk)
        except BadObject:
            pass
        else:
            assert not unframer.ended
        assert chunks == [b"abc", b"def"][: len(chunks)]


def test_a_description_comes_back() -> None:
    meta = Meta("a", "n", 5, 1, "SHA-256=x", False, 1_700_000_000.0)
    assert Meta.decode(meta.encode("bucket")) == meta
    for bad in (b"", b"{}", b'{"name": "a"}', b"[]"):
        with pytest.raises(BadObject):
            Meta.decode(bad)
