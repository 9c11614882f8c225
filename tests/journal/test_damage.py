"""Torn tails, flipped bits, truncations and lost files, at every offset of a small journal (I10).

The rule: what was acknowledged comes back, or the journal says that it is damaged. A write that
was interrupted is cut instead. The one thing that cannot be told apart is tested too, by name.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import logging
import os
import random
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import google_crc32c
import pytest

from journal.contract import Corrupt, IncompatibleVersion, JournalError
from journal.file import FileJournal
from journal.file.blocks import SECTOR, pack_block
from journal.file.control import load_control
from journal.file.disk import Disk
from journal.file.frames import BATCH, HEADER_BYTES, encode, frame_bytes, header_at, seed_of
from journal.file.log import View
from journal.file.recovery import Survey, survey
from journal.file.replay import Replay
from journal.file.segment import segment_name

pytestmark = pytest.mark.slow

SEGMENT_BYTES = 4096
DISK = Disk()


def payload(sequence: int) -> bytes:
    """No zero bytes in it, and lengths that put frames on, before and behind sector edges."""
    return bytes(1 + (sequence * 7 + i) % 255 for i in range((sequence * 211) % 700 + 3))


PAYLOADS = [payload(sequence) for sequence in range(1, 25)]


def replay(found: Survey) -> list[bytes]:
    view = View(found.segments, found.tail, found.chain, found.end, found.control.oldest)
    reader = Replay(DISK, seed_of(found.control.identity), view.oldest - 1, view)
    try:
        payloads: list[bytes] = []
        while step := reader.step():
            payloads += [entry.payload for entry in step]
        return payloads
    finally:
        reader.close()


def recover(directory: Path) -> tuple[list[bytes], Survey]:
    """What a server would find, without repairing anything."""
    found = survey(DISK, directory)
    assert found is not None
    return replay(found), found


class Image:
    """A journal's directory as bytes, to be damaged and put back."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.files = {
            path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()
        }

    def restore(self) -> None:
        for path in self.directory.iterdir():
            if path.is_file() and path.name not in self.files:
                path.unlink()
        for name, data in self.files.items():
            path = self.directory / name
            if not path.exists() or path.read_bytes() != data:
                path.write_bytes(data)

    @property
    def segments(self) -> list[str]:
        return sorted(name for name in self.files if name.endswith(".seg"))


async def _build(directory: Path, payloads: list[bytes], *, clean: bool) -> Image:
    # No tick: how far a tail was noted must not depend on how fast this runs.
    journal = FileJournal(directory, segment_bytes=SEGMENT_BYTES, tick_s=3600.0)
    await journal.open()
    for tail, data in enumerate(payloads):
        await journal.append([data], tail)
        # Behind a roll-over in the housekeeper's queue, which notes how far the journal reaches: as
        # far as this, and not as far as it does when a busy machine comes to that.
        await journal.trim(1)
    image = Image(directory)
    await journal.close()
    if clean:
        return Image(directory)
    image.restore()
    return image


def build(directory: Path, payloads: list[bytes] = PAYLOADS, *, clean: bool = False) -> Image:
    """A journal as kill -9 leaves it, or (`clean`) as `close` does."""
    return asyncio.run(_build(directory, payloads, clean=clean))


@pytest.fixture
def image(tmp_path: Path) -> Image:
    made = build(tmp_path / "journal")
    assert len(made.segments) == 3
    found, survey_ = recover(made.directory)
    assert found == PAYLOADS and survey_.cut is None
    return made


def frames_in(image: Image, name: str) -> list[tuple[int, int]]:
    """(start, end) of each frame of a segment."""
    seed = seed_of(load_control(DISK, image.directory).identity)
    data = image.files[name]
    at, found = SECTOR, []
    while frame := header_at(seed, data, at, at):
        found.append((at, frame.end))
        at = frame.end
    return found


def open_really(directory: Path) -> list[bytes]:
    """Through the real thing, with a repair, then appending, then once more."""

    async def scenario() -> list[bytes]:
        journal = FileJournal(directory, segment_bytes=SEGMENT_BYTES)
        opened = await journal.open()
        try:
            found = [e.payload async for step in journal.read(opened.oldest - 1) for e in step]
            assert await journal.append([b"after"], opened.tail) == opened.tail + 1
        finally:
            await journal.close()
        return found

    found = asyncio.run(scenario())
    assert recover(directory)[0] == [*found, b"after"]
    return found


# Flipped bits


@pytest.mark.parametrize("how", ["one bit", "all bits", "zeroed"])
def test_a_changed_byte_anywhere(image: Image, how: str) -> None:
    """No changed byte ever loses or alters what was acknowledged without a word."""
    silent = 0
    last_byte = (image.segments[-1], frames_in(image, image.segments[-1])[-1][1] - 1)
    for name in [*image.segments, "control"]:
        path = image.directory / name
        data = image.files[name]
        used = frames_in(image, name)[-1][1] if name != "control" else 0
        with open(path, "r+b", buffering=0) as file:
            for offset, old in enumerate(data):
                new = {"one bit": old ^ 1 << offset % 8, "all bits": old ^ 255, "zeroed": 0}[how]
                if new == old or (new == 0 and (name, offset) == last_byte):
                    # (`test_what_cannot_be_told_apart`: the end of the last frame is zero.)
                    continue
                os.pwrite(file.fileno(), bytes([new]), offset)
                try:
                    found, _ = recover(image.directory)
                    assert found == PAYLOADS, f"{name} at {offset}"
                    assert offset >= used, f"{name} at {offset}: not noticed"
                    silent += 1
                except (Corrupt, IncompatibleVersion) as error:
                    assert str(path) in str(error) or name == "control"
                os.pwrite(file.fileno(), bytes([old]), offset)
    # In space that is not used, a changed byte may go unnoticed; mostly it does.
    assert (silent == 0) == (how == "zeroed")


def test_damage_in_the_middle_names_file_and_offset(image: Image) -> None:
    for name in image.segments[:-1]:
        for start, end in frames_in(image, name):
            damaged = bytearray(image.files[name])
            damaged[(start + end) // 2] ^= 4
            (image.directory / name).write_bytes(damaged)
            with pytest.raises(Corrupt) as caught:
                recover(image.directory)
            assert caught.value.file == str(image.directory / name)
            assert caught.value.offset == start
            assert "restore" in caught.value.advice
            image.restore()


@pytest.mark.parametrize("seed", range(3))
def test_random_damage_through_the_whole_backend(image: Image, seed: int) -> None:
    rng = random.Random(seed)
    outcomes = set()
    for _ in range(60):
        name = rng.choice(image.segments)
        damaged = bytearray(image.files[name])
        for _ in range(rng.choice((1, 1, 2, 5))):
            damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        (image.directory / name).write_bytes(damaged)
        try:
            assert open_really(image.directory) == PAYLOADS
            outcomes.add("whole")
        except Corrupt:
            outcomes.add("damaged")
        image.restore()
    assert outcomes == {"whole", "damaged"}


# Truncations, lost files


def test_a_truncated_file_is_noticed_at_every_length(image: Image) -> None:
    for name in [*image.segments, "control"]:
        path = image.directory / name
        for length in range(len(image.files[name])):
            os.truncate(path, length)
            with pytest.raises(Corrupt):
                recover(image.directory)
            path.write_bytes(image.files[name])


def test_a_lost_file_is_noticed(image: Image) -> None:
    for name in [*image.segments, "control"]:
        (image.directory / name).unlink()
        with pytest.raises(Corrupt):
            recover(image.directory)
        image.restore()
    for name in ("spare.tmp", "lock"):
        (image.directory / name).unlink()
        assert open_really(image.directory) == PAYLOADS
        image.restore()


def test_all_segments_lost(image: Image) -> None:
    for name in image.segments:
        (image.directory / name).unlink()
    with pytest.raises(Corrupt, match="all segments are missing"):
        recover(image.directory)


def test_segments_that_change_places_are_noticed(image: Image) -> None:
    one, two = image.segments[1:]
    (image.directory / one).write_bytes(image.files[two])
    (image.directory / two).write_bytes(image.files[one])
    with pytest.raises(Corrupt):
        recover(image.directory)


# Torn tails


def torn_images(before: bytes, after: bytes, rng: random.Random) -> Iterator[bytes]:
    """What an interrupted write of `after` over `before` can leave: not all of its sectors."""
    changed = [i for i in range(len(before)) if before[i] != after[i]]
    start, end = changed[0], changed[-1] + 1
    for stop in range(start, end):
        yield before[:start] + after[start:stop] + before[stop:]
    sectors = range(start // SECTOR, (end - 1) // SECTOR + 1)
    subsets: list[tuple[int, ...]] = []
    for count in range(len(sectors)):
        subsets += itertools.combinations(sectors, count)
    if len(subsets) > 64:
        subsets = rng.sample(subsets, 64)
    for subset in subsets:
        mixed = bytearray(before)
        for sector in subset:
            place = slice(sector * SECTOR, (sector + 1) * SECTOR)
            mixed[place] = after[place]
        yield bytes(mixed)


@pytest.mark.parametrize("last", [b"x", b"0123456789" * 30, b"y" * 1500, b"\0" * 40, b""])
def test_a_torn_tail_is_cut_wherever_it_tore(tmp_path: Path, last: bytes) -> None:
    """Every prefix of the last write, and every choice of its sectors."""
    rng = random.Random(1)
    for kept in (2, 3, 4):
        directory = tmp_path / str(kept)
        image = build(directory, PAYLOADS[:kept])
        name = image.segments[-1]
        before = image.files[name]
        seed = seed_of(load_control(DISK, directory).identity)
        _, found = recover(directory)
        head, close, _ = encode(seed, BATCH, kept + 1, found.chain, last)
        frame = head + last + close
        after = before[: found.end] + frame + before[found.end + len(frame) :]
        for number, torn in enumerate(torn_images(before, after, rng)):
            (directory / name).write_bytes(torn)
            payloads, found_now = recover(directory)
            assert payloads == PAYLOADS[:kept]
            assert found_now.end == found.end
            assert (found_now.cut is not None) == (torn != before)
            if number % 40 == 7:
                assert open_really(directory) == PAYLOADS[:kept]
                image.restore()
        (directory / name).write_bytes(after)
        assert recover(directory)[0] == [*PAYLOADS[:kept], last]


def test_zeros_of_its_own_do_not_make_a_frame_look_torn(tmp_path: Path) -> None:
    """A last frame with a sector of zeros: damage to its header or trailer is still damage."""
    image = build(tmp_path, [*PAYLOADS[:2], b"x" + bytes(1400) + b"y"])
    name = image.segments[-1]
    start, end = frames_in(image, name)[-1]
    for offset in (*range(start, start + HEADER_BYTES), *range(end - 8, end)):
        for bit in range(8):
            damaged = bytearray(image.files[name])
            damaged[offset] ^= 1 << bit
            (tmp_path / name).write_bytes(damaged)
            with pytest.raises(Corrupt):
                recover(tmp_path)


def test_a_cut_is_told_and_zeroed(image: Image, caplog: pytest.LogCaptureFixture) -> None:
    name = image.segments[-1]
    path = image.directory / name
    _, found = recover(image.directory)
    seed = seed_of(found.control.identity)
    head, _, _ = encode(seed, BATCH, found.tail + 1, found.chain, b"never acknowledged" * 20)
    torn = bytearray(image.files[name])
    torn[found.end : found.end + HEADER_BYTES + 100] = (head + b"never acknowledged" * 20)[
        : HEADER_BYTES + 100
    ]
    path.write_bytes(torn)
    with caplog.at_level(logging.WARNING):
        assert open_really(image.directory) == PAYLOADS
    text = caplog.text
    assert str(path) in text and f"offset {found.end}" in text and "cutting 140 bytes" in text
    end = found.end + frame_bytes(len(b"after"))
    assert not path.read_bytes()[end:].strip(b"\0")


def test_a_tear_after_a_proper_close_is_damage(tmp_path: Path) -> None:
    """`close` says where the journal ends, so there even a whole lost sector is noticed."""
    image = build(tmp_path, clean=True)
    name = image.segments[-1]
    start, end = frames_in(image, name)[-1]
    zeroed = bytearray(image.files[name])
    zeroed[start:end] = bytes(end - start)
    (tmp_path / name).write_bytes(zeroed)
    with pytest.raises(Corrupt, match="closed at 24"):
        recover(tmp_path)
    zeroed = bytearray(image.files[name])
    zeroed[end - 8 : end] = bytes(8)
    (tmp_path / name).write_bytes(zeroed)
    with pytest.raises(Corrupt, match="closed properly"):
        recover(tmp_path)


def test_what_cannot_be_told_apart(image: Image) -> None:
    """The known limit: an acknowledged *last* frame that is lost as whole sectors (or from some
    byte to its end) after a crash looks exactly like an interrupted write, and is cut.
    """
    name = image.segments[-1]
    start, end = frames_in(image, name)[-1]
    zeroed = bytearray(image.files[name])
    zeroed[start:end] = bytes(end - start)
    (image.directory / name).write_bytes(zeroed)
    payloads, found = recover(image.directory)
    assert payloads == PAYLOADS[:-1] and found.cut is None
    for stop in range(start, end):
        data = image.files[name]
        (image.directory / name).write_bytes(data[:stop] + bytes(len(data) - stop))
        payloads, _ = recover(image.directory)
        assert payloads == PAYLOADS[:-1]


def test_a_tear_before_a_noted_tail_is_damage(tmp_path: Path) -> None:
    """The housekeeper notes the tail now and then, which leaves that gap about a second."""

    async def live() -> None:
        journal = FileJournal(tmp_path, segment_bytes=SEGMENT_BYTES, tick_s=0.01)
        await journal.open()
        for tail, data in enumerate(PAYLOADS):
            await journal.append([data], tail)
        while load_control(DISK, tmp_path).known_tail < len(PAYLOADS):
            await asyncio.sleep(0.01)
        image = Image(tmp_path)
        await journal.close()
        image.restore()

    asyncio.run(live())
    image = Image(tmp_path)
    name = image.segments[-1]
    start, end = frames_in(image, name)[-1]
    data = image.files[name]
    for lost in (start, (start + end) // 2, end - 1):
        (tmp_path / name).write_bytes(data[:lost] + bytes(len(data) - lost))
        with pytest.raises(Corrupt, match="had reached 24"):
            recover(tmp_path)


def test_the_first_frame_of_a_segment_cannot_be_torn(tmp_path: Path) -> None:
    """It was synced before the segment got its name; so losing it is damage, never a tail."""
    image = build(tmp_path, PAYLOADS[:1])
    name = image.segments[-1]
    ((start, end),) = frames_in(image, name)
    for stop in range(start, end):
        data = image.files[name]
        (tmp_path / name).write_bytes(data[:stop] + bytes(len(data) - stop))
        with pytest.raises(Corrupt, match="first frame is bad"):
            recover(tmp_path)


def test_a_crash_before_the_rename_of_a_new_segment(image: Image) -> None:
    """Whatever the spare segment holds then was not acknowledged."""
    (image.directory / "spare.tmp").write_bytes(image.files[image.segments[-1]])
    assert open_really(image.directory) == PAYLOADS
    image.restore()
    (image.directory / "oversize.tmp").write_bytes(b"x" * 9999)
    assert open_really(image.directory) == PAYLOADS


# Lengths, old frames, foreign frames


@pytest.mark.parametrize("length", [0, 1, 2000, 3000, 1 << 20, (1 << 32) - 1])
@pytest.mark.parametrize("valid_crc", [False, True])
def test_a_wrong_length_does_not_hide_what_follows(
    image: Image, length: int, valid_crc: bool
) -> None:
    """etcd's WAL takes an over-long length for a torn tail, and good records behind it go."""
    seed = seed_of(load_control(DISK, image.directory).identity)
    name = image.segments[-1]
    for start, _ in frames_in(image, name)[:-1]:
        damaged = bytearray(image.files[name])
        struct.pack_into("<I", damaged, start + 8, length)
        if valid_crc:
            crc = google_crc32c.extend(seed, bytes(damaged[start : start + HEADER_BYTES - 4]))
            struct.pack_into("<I", damaged, start + HEADER_BYTES - 4, crc)
        (image.directory / name).write_bytes(damaged)
        with pytest.raises(Corrupt) as caught:
            recover(image.directory)
        assert caught.value.offset == start


def test_a_frame_of_an_older_life_is_not_taken_for_the_next(image: Image) -> None:
    """Old frames of the same journal, put where the next frame would start, and behind that."""
    name = image.segments[-1]
    data = image.files[name]
    _, found = recover(image.directory)
    for source in image.segments:
        for start, end in frames_in(image, source):
            old = image.files[source][start:end]
            for at in (found.end, found.end + 8, (found.end + 1000) // 8 * 8):
                if at + len(old) > len(data):
                    continue
                changed = data[:at] + old + data[at + len(old) :]
                (image.directory / name).write_bytes(changed)
                try:
                    assert recover(image.directory)[0] == PAYLOADS
                except Corrupt:
                    assert at != found.end + 1000
    image.restore()


def test_a_foreign_segment_is_refused(image: Image, tmp_path: Path) -> None:
    other = build(tmp_path / "other")
    for name in image.segments:
        (image.directory / name).write_bytes(other.files[name])
        with pytest.raises(Corrupt, match="another journal"):
            recover(image.directory)
        image.restore()


def test_foreign_frames_do_not_verify(image: Image, tmp_path: Path) -> None:
    other = build(tmp_path / "other")
    name = image.segments[-1]
    for start, end in frames_in(image, name)[1:]:
        data = image.files[name]
        mixed = data[:start] + other.files[name][start:end] + data[end:]
        (image.directory / name).write_bytes(mixed)
        with pytest.raises(Corrupt):
            recover(image.directory)


def test_a_hole_between_segments_is_noticed_by_the_reader(image: Image) -> None:
    """The last frames of a segment vanish, headers stay: only replay can see that."""
    name = image.segments[0]
    start, end = frames_in(image, name)[-1]
    data = image.files[name]
    (image.directory / name).write_bytes(data[:start] + bytes(end - start) + data[end:])
    with pytest.raises(Corrupt) as caught:
        recover(image.directory)
    assert (caught.value.file, caught.value.offset) == (str(image.directory / name), start)


# Versions and directories


def test_a_newer_format_is_not_touched(image: Image) -> None:
    for name in (*image.segments, "control"):
        data = image.files[name]
        for at in (0, 4096) if name == "control" else (0,):
            block = data[at : at + SECTOR]
            newer = pack_block(block[:8], block[12:-4].rstrip(b"\0"), version=2)
            data = data[:at] + newer + data[at + SECTOR :]
        (image.directory / name).write_bytes(data)
        with pytest.raises(IncompatibleVersion, match="newer than 1"):
            open_really(image.directory)
        assert (image.directory / name).read_bytes() == data
        image.restore()


def _refused(directory: Path) -> str:
    async def attempt() -> None:
        await FileJournal(directory, segment_bytes=SEGMENT_BYTES).open()

    with pytest.raises(JournalError) as caught:
        asyncio.run(attempt())
    return str(caught.value)


def test_a_directory_of_somebody_else(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    assert "not a journal" in _refused(tmp_path) and "photos" in _refused(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "lock") == ["photos"]


def test_a_directory_that_cannot_be_had(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    message = _refused(tmp_path / "file" / "journal")
    assert str(tmp_path) in message and os.strerror(errno.ENOTDIR) in message


def test_an_unwritable_directory(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    if os.access(tmp_path, os.W_OK):
        # Root may write anywhere; a child without that right is asked instead.
        for parent in (tmp_path, *tmp_path.parents):
            if parent.is_relative_to("/tmp") and parent != Path("/tmp"):
                parent.chmod(0o755)
        tmp_path.chmod(0o555)
        _in_child_without_rights(lambda: _check_unwritable(tmp_path))
    else:
        _check_unwritable(tmp_path)
    tmp_path.chmod(0o700)


def _check_unwritable(directory: Path) -> None:
    message = _refused(directory)
    assert str(directory) in message and os.strerror(errno.EACCES) in message


def _in_child_without_rights(check: Callable[[], None]) -> None:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.setgid(65534)
            os.setuid(65534)
            check()
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0


def test_an_interrupted_trim_is_finished(image: Image) -> None:
    """The control file moves first: what is below it afterwards is rubbish, not a surprise."""

    async def trim() -> None:
        journal = FileJournal(image.directory, segment_bytes=SEGMENT_BYTES)
        await journal.open()
        await journal.trim(20)
        await journal.close()

    asyncio.run(trim())
    kept = Image(image.directory)
    assert len(kept.segments) < len(image.segments)
    dropped = [name for name in image.segments if name not in kept.segments]
    (image.directory / dropped[-1]).write_bytes(image.files[dropped[-1]])
    found = open_really(image.directory)
    assert found == PAYLOADS[-len(found) :]
    assert not (image.directory / dropped[-1]).exists()
    assert segment_name(1) in dropped


# Snapshots


def _snapshot_journal(directory: Path, chunks: list[bytes]) -> Path:
    async def build_() -> None:
        journal = FileJournal(directory, segment_bytes=SEGMENT_BYTES)
        await journal.open()
        async with journal.snapshots.writer("s") as writer:
            for chunk in chunks:
                await writer.write(chunk)
        await journal.close()

    asyncio.run(build_())
    return directory / "snapshots" / "s.snap"


def _read_snapshot(directory: Path) -> list[bytes]:
    from journal.file.snapshots import SnapshotReader

    identity = load_control(DISK, directory).identity
    reader = SnapshotReader(DISK, directory / "snapshots" / "s.snap", identity)
    try:
        chunks: list[bytes] = []
        while step := reader.step():
            chunks += step
        return chunks
    finally:
        reader.close()


CHUNKS = [b"one", b"", b"\0" * 300, b"x" * 700, b"last"]


def test_a_snapshot_damaged_anywhere_is_corrupt(tmp_path: Path) -> None:
    path = _snapshot_journal(tmp_path, CHUNKS)
    data = path.read_bytes()
    assert _read_snapshot(tmp_path) == CHUNKS
    for offset, old in enumerate(data):
        for new in {old ^ 1 << offset % 8, old ^ 255, 0} - {old}:
            path.write_bytes(data[:offset] + bytes([new]) + data[offset + 1 :])
            with pytest.raises(Corrupt) as caught:
                _read_snapshot(tmp_path)
            assert caught.value.file == str(path)
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(Corrupt):
            _read_snapshot(tmp_path)
    path.write_bytes(data + b"\0")
    with pytest.raises(Corrupt):
        _read_snapshot(tmp_path)


def test_a_snapshot_of_another_name_or_journal_is_refused(tmp_path: Path) -> None:
    path = _snapshot_journal(tmp_path / "one", CHUNKS)
    other = _snapshot_journal(tmp_path / "two", CHUNKS)
    data = path.read_bytes()
    path.write_bytes(other.read_bytes())
    with pytest.raises(Corrupt, match="another journal"):
        _read_snapshot(tmp_path / "one")
    path.unlink()
    renamed = path.with_name("t.snap")
    renamed.write_bytes(data)

    async def read() -> None:
        journal = FileJournal(tmp_path / "one", segment_bytes=SEGMENT_BYTES)
        await journal.open()
        try:
            async for _ in journal.snapshots.read("t"):
                pass
        finally:
            await journal.close()

    with pytest.raises(Corrupt, match="'s'"):
        asyncio.run(read())


def test_half_written_snapshots_go_when_the_journal_is_opened(tmp_path: Path) -> None:
    path = _snapshot_journal(tmp_path, CHUNKS)
    rubbish = path.with_name("t.1.tmp")
    shutil.copy(path, rubbish)
    open_really(tmp_path)
    assert not rubbish.exists() and path.exists()
