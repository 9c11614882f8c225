"""The frame codec, and the search for frames in arbitrary bytes."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from journal.file.frames import (
    ALIGN,
    BATCH,
    CHUNK,
    MAGIC,
    BadFrame,
    decode_run,
    encode,
    find_header,
    frame_bytes,
    header_at,
    payload_crc,
    seed_of,
)

SEED = seed_of(b"0123456789abcdef")


def lay(payloads: list[bytes], seed: int = SEED, first: int = 1) -> bytes:
    data, chain = b"", 0
    for number, payload in enumerate(payloads, first):
        head, close, chain = encode(seed, BATCH, number, chain, payload)
        data += head + payload + close
    return data


def run_of(data: bytes, seed: int = SEED, count_max: int = 100) -> list[bytes]:
    return decode_run(data, 0, 0, seed, BATCH, 1, 0, count_max, 1 << 30)[0]


@given(st.lists(st.binary(max_size=200), min_size=1, max_size=8))
def test_what_was_laid_out_comes_back(payloads: list[bytes]) -> None:
    data = lay(payloads)
    assert len(data) == sum(frame_bytes(len(p)) for p in payloads)
    assert len(data) % ALIGN == 0
    assert run_of(data) == payloads
    assert run_of(data + bytes(500)) == payloads
    assert run_of(data, count_max=3) == payloads[:3]


@given(st.lists(st.binary(max_size=60), min_size=1, max_size=5), st.data())
def test_no_changed_bit_gets_through(payloads: list[bytes], data: st.DataObject) -> None:
    good = lay(payloads)
    bit = data.draw(st.integers(0, len(good) * 8 - 1))
    bad = bytearray(good)
    bad[bit // 8] ^= 1 << bit % 8
    try:
        found = run_of(bytes(bad))
    except BadFrame:
        found = []
    assert found == payloads[: len(found)] and len(found) < len(payloads)


@given(st.lists(st.binary(max_size=60), min_size=1, max_size=5), st.data())
def test_a_cut_off_run_ends_before_the_cut(payloads: list[bytes], data: st.DataObject) -> None:
    good = lay(payloads)
    cut = data.draw(st.integers(0, len(good) - 1))
    found = run_of(good[:cut])
    assert found == payloads[: len(found)] and len(found) < len(payloads)


def test_frames_of_another_seed_kind_or_place_are_not_taken() -> None:
    data = lay([b"one", b"two"])
    for attempt in (
        lambda: run_of(data, seed=seed_of(b"another")),
        lambda: decode_run(data, 0, 0, SEED, BATCH, 2, 0, 9, 999),
        lambda: decode_run(data, 0, 0, SEED, BATCH, 1, 7, 9, 999),
    ):
        try:
            attempt()
        except BadFrame as bad:
            assert bad.offset == 0
        else:
            raise AssertionError("taken")
    assert decode_run(data, 0, 0, SEED, CHUNK, 1, 0, 9, 999)[0] == []


@settings(deadline=None)
@given(st.binary(max_size=300), st.binary(max_size=40), st.integers(0, 3))
def test_the_search_finds_the_first_header(noise: bytes, payload: bytes, magics: int) -> None:
    noise = (noise + MAGIC * magics).ljust(-(-len(noise + MAGIC * magics) // 8) * 8, b"\1")
    data = noise + lay([payload], first=9)

    def read(size: int, offset: int) -> bytes:
        return data[offset : offset + size]

    found = find_header(read, 0, len(data), SEED, 9)
    assert found is not None and (found.offset, found.sequence) == (len(noise), 9)
    assert found.length == len(payload)
    assert find_header(read, 0, len(data), SEED, 10) is None
    assert find_header(read, 0, len(data), seed_of(b"another"), 0) is None


def test_the_search_works_across_its_pieces() -> None:
    frame = lay([b"x"], first=5)
    for place in range((1 << 20) - 64, (1 << 20) + 64, 8):
        data = bytes(place) + frame + bytes(3 << 19)
        found = find_header(lambda n, at, d=data: d[at : at + n], 8, len(data), SEED, 1)
        assert found is not None and found.offset == place


def test_a_long_payload_is_summed_in_pieces() -> None:
    payload = bytes(range(256)) * (9 << 12)
    data = lay([payload])
    frame = header_at(SEED, data, 0, 0)
    assert frame is not None and frame.payload_crc == payload_crc(payload)
    assert run_of(data) == [payload]
