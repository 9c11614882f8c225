"""`SyncWriter`, and the file journal on it: what it wrote, what it says, and how it fails."""

from __future__ import annotations

import asyncio
import errno
import select
from pathlib import Path

import pytest

from journal.contract import Conflict, JournalError, Poisoned
from journal.file import FileJournal, backend
from tests.contract.backends import entries, on_loop
from tests.peers import require_native

WAIT_S_MAX = 30
SEGMENT_BYTES = 64 << 10


@pytest.fixture(autouse=True)
def native() -> None:
    require_native()


def _take(writer: object, count: int) -> list[int]:
    """The errnos of the next jobs, in order."""
    found: list[tuple[int, float, float]] = []
    while len(found) < count:
        readable, _, _ = select.select([writer.fileno()], [], [], WAIT_S_MAX)  # type: ignore[attr-defined]
        assert readable, "nothing came"
        found += writer.take()  # type: ignore[attr-defined]
    assert all(write_s >= 0 and sync_s >= 0 for _, write_s, sync_s in found)
    return [number for number, _, _ in found]


def test_parts_are_written_one_after_the_other(tmp_path: Path) -> None:
    from jotd_native import SyncWriter

    one, two = tmp_path / "one", tmp_path / "two"
    for path in (one, two):
        path.write_bytes(b"." * 12)
    writer = SyncWriter()
    writer.submit(one, 2, [b"ab", b"", b"cd"])
    writer.submit(str(two), 0, [b"x" * 12, b"y"])
    writer.submit(one, 6, [])
    assert _take(writer, 3) == [0, 0, 0]
    assert one.read_bytes() == b"..abcd......"
    assert two.read_bytes() == b"x" * 12 + b"y"
    assert writer.take() == []
    writer.stop()


def test_many_parts_and_large_ones(tmp_path: Path) -> None:
    """More than one system call takes: IOV_MAX is 1024."""
    from jotd_native import SyncWriter

    path = tmp_path / "file"
    path.touch()
    parts = [b"%04d" % n for n in range(3000)] + [b"z" * (3 << 20)]
    writer = SyncWriter()
    writer.submit(path, 0, parts)
    assert _take(writer, 1) == [0]
    assert path.read_bytes() == b"".join(parts)
    writer.stop()


def test_an_error_has_its_number_and_is_its_jobs_own(tmp_path: Path) -> None:
    from jotd_native import SyncWriter

    path = tmp_path / "file"
    path.touch()
    writer = SyncWriter()
    writer.submit(tmp_path / "missing", 0, [b"x"])
    writer.submit(tmp_path, 0, [b"x"])
    writer.submit(path, 0, [b"x"])
    assert _take(writer, 3) == [errno.ENOENT, errno.EISDIR, 0]
    assert path.read_bytes() == b"x"
    writer.stop()


def test_stop_does_what_was_submitted(tmp_path: Path) -> None:
    from jotd_native import SyncWriter

    path = tmp_path / "file"
    path.touch()
    writer = SyncWriter()
    for n in range(50):
        writer.submit(path, n, [b"%d" % (n % 10)])
    writer.stop()
    assert path.read_bytes() == b"0123456789" * 5
    assert len(writer.take()) == 50
    with pytest.raises(RuntimeError):
        writer.submit(path, 0, [b"x"])
    writer.stop()


@on_loop
async def _appends_wait_for_each_other(directory: Path) -> None:
    journal = FileJournal(directory, segment_bytes=SEGMENT_BYTES)
    await journal.open()
    # Small ones, ones that begin a segment, and ones that go to the other writer, all at once.
    sizes = [10, 60_000, 5, backend.DIRECT_BYTES_MAX + 1, 7, 60_000, 8]
    payloads = [bytes([65 + n]) * size for n, size in enumerate(sizes)]
    tails = [journal.append([payload], n) for n, payload in enumerate(payloads)]
    wrong = journal.append([b"no"], 3)
    outcomes = await asyncio.gather(*tails, wrong, return_exceptions=True)
    assert outcomes[:-1] == list(range(1, len(payloads) + 1))
    assert isinstance(outcomes[-1], Conflict)
    assert [entry.payload for entry in await entries(journal)] == payloads
    await journal.close()


def test_appends_wait_for_each_other(tmp_path: Path) -> None:
    _appends_wait_for_each_other(tmp_path / "journal")


@on_loop
async def _close_waits_for_appends(directory: Path) -> None:
    journal = FileJournal(directory, segment_bytes=SEGMENT_BYTES)
    await journal.open()
    appends = [asyncio.ensure_future(journal.append([b"%d" % n], n)) for n in range(5)]
    await asyncio.sleep(0)
    await journal.close()
    assert [append.result() for append in appends] == [1, 2, 3, 4, 5]
    with pytest.raises(JournalError):
        await journal.append([b"late"], 5)
    again = FileJournal(directory)
    assert (await again.open()).tail == 5
    await again.close()


def test_close_waits_for_appends(tmp_path: Path) -> None:
    _close_waits_for_appends(tmp_path / "journal")


@on_loop
async def _a_failed_write_poisons(directory: Path) -> None:
    """I10: nothing is tried again, and what waited fails as well."""
    journal = FileJournal(directory, segment_bytes=SEGMENT_BYTES)
    await journal.open()
    await journal.append([b"first"], 0)
    await journal.close()
    journal = FileJournal(directory, segment_bytes=SEGMENT_BYTES)
    await journal.open()
    (segment,) = directory.glob("*.seg")
    segment.rename(directory / "gone")  # the native writer opens it with its first job
    outcomes = await asyncio.gather(
        journal.append([b"a"], 1), journal.append([b"b"], 2), return_exceptions=True
    )
    assert [type(outcome) for outcome in outcomes] == [Poisoned, Poisoned]
    (directory / "gone").rename(segment)
    with pytest.raises(Poisoned):
        await journal.append([b"c"], 1)
    with pytest.raises(Poisoned):
        journal.reserve(1)
    await journal.close()
    again = FileJournal(directory)
    assert (await again.open()).tail == 1
    await again.close()


def test_a_failed_write_poisons(tmp_path: Path) -> None:
    _a_failed_write_poisons(tmp_path / "journal")
