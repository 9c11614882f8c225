"""The file journal on disks that fail and on machines that crash, at every single system call.

What was acknowledged must be there afterwards (I1), what was not may be there in order, and
nothing may look like damage (I10).
"""

from __future__ import annotations

import asyncio
import copy
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from journal.contract import Corrupt, JournalError, NoSpace, Poisoned
from journal.file import backend
from journal.file.disk import Disk
from tests.unit.journal.disks import CrashDisk, FaultyDisk, TracedDisk
from tests.unit.journal.workload import Life, check, live, make, payload

pytestmark = pytest.mark.slow


@pytest.fixture
def home_path(tmp_path: Path) -> Iterator[Path]:
    """Memory, where there is some: these crashes are made up, so real syncs would tell nothing."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(prefix="jotd-journal-", dir=memory) as directory:
        yield Path(directory)


class Former:
    """What happened before: nothing, or (`old`) a life that ended with a proper close."""

    def __init__(self, directory: Path, old: bool) -> None:
        self._home = directory / "former"
        self._home.mkdir()
        self._life = Life()
        if old:
            asyncio.run(live(self._home, Disk(), self._life))
            assert not self._life.errors

    def begin(self, home: Path) -> Life:
        """Put it into `home`; what the world knows of it."""
        shutil.copytree(self._home, home)
        return copy.deepcopy(self._life)


def _crash(
    directory: Path, crash_at: int, seed: int, ignored: frozenset[str], former: Former
) -> Life | None:
    """A life that ends with a crash at that call: what the world was told. None: no crash."""
    home, attic = directory / "journal", directory / "attic"
    attic.mkdir(parents=True)
    life = former.begin(home)
    disk = CrashDisk(crash_at, seed, attic, ignored)
    asyncio.run(live(home, disk, life))
    if not disk.crashed:
        return None
    disk.settle()
    return life


@pytest.mark.parametrize("old", [False, True], ids=["new journal", "old journal"])
@pytest.mark.parametrize("seed", range(2))
def test_a_crash_at_any_call_loses_nothing_acknowledged(
    home_path: Path, seed: int, old: bool
) -> None:
    former = Former(home_path, old)
    crash_at = 0
    while True:
        crash_at += 1
        directory = home_path / str(crash_at)
        life = _crash(directory, crash_at, seed * 1000 + crash_at, frozenset(), former)
        if life is None:
            break
        asyncio.run(check(directory / "journal", life))
        # And once more, closed properly this time.
        asyncio.run(check(directory / "journal", life))
    assert crash_at > 100


@pytest.mark.parametrize("ignored", [{"datasync"}, {"sync"}, {"sync_dir"}])
def test_without_a_sync_a_crash_is_noticed(home_path: Path, ignored: set[str]) -> None:
    """Negative control: the test above must be able to fail."""
    former = Former(home_path, old=False)
    for crash_at in range(20, 400, 7):
        directory = home_path / str(crash_at)
        life = _crash(directory, crash_at, crash_at, frozenset(ignored), former)
        if life is None:
            break
        try:
            asyncio.run(check(directory / "journal", life))
        except (AssertionError, JournalError, OSError):
            return
    pytest.fail(f"a disk that ignores {ignored} lost nothing")


@pytest.mark.parametrize("old", [False, True], ids=["new journal", "old journal"])
@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC], ids=["EIO", "ENOSPC"])
def test_one_failing_call_anywhere(home_path: Path, error: int, old: bool) -> None:
    """A failed call is not retried when it was a write or sync, and never costs what was told."""
    poisoned = refused = 0
    healthy = FaultyDisk()
    former = Former(home_path, old)
    asyncio.run(live(home_path / "healthy", healthy, former.begin(home_path / "healthy")))
    for at in range(1, len(healthy.calls) + 1):
        directory = home_path / str(at)
        life = former.begin(directory)
        disk = FaultyDisk(lambda name, number, at=at: number == at and name != "close", error)
        asyncio.run(live(directory, disk, life))
        poisoned += any(isinstance(e, Poisoned) for e in life.errors)
        refused += any(isinstance(e, NoSpace) for e in life.errors)
        assert not any(isinstance(e, Corrupt) for e in life.errors)
        asyncio.run(check(directory, life))
    assert poisoned > 20
    assert error != errno.ENOSPC or refused > 0


@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC], ids=["EIO", "ENOSPC"])
@pytest.mark.parametrize("call", ["write", "datasync"])
def test_after_a_failed_write_or_sync_nothing_succeeds(
    tmp_path: Path, call: str, error: int
) -> None:
    """I10: a failed fsync is never retried."""

    async def scenario() -> None:
        armed = False
        disk = FaultyDisk(lambda name, _: armed and name == call, error)
        journal = make(tmp_path, disk)
        await journal.open()
        await journal.append([payload(1)], 0)
        follower = journal.follow(1)
        waiting = asyncio.ensure_future(anext(follower))
        calls = [journal.append([payload(s)], s - 1) for s in (2, 3)]
        armed = True
        for result in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(result, Poisoned)
            assert isinstance(result.cause, OSError) and result.cause.errno == error
        armed = False
        before = len(disk.calls)
        for work in (
            journal.append([b"x"], 1),
            journal.tail(),
            journal.trim(1),
            journal.snapshots.list(),
            anext(journal.read(0)),
            anext(journal.follow(0)),
            waiting,
        ):
            with pytest.raises(Poisoned):
                await work
        with pytest.raises(Poisoned):
            journal.reserve(1)
        with pytest.raises(Poisoned):
            async with journal.snapshots.writer("a"):
                pass
        assert set(disk.calls[before:]) <= {"close"}
        assert journal.stats().appends == 1
        await journal.close()

    asyncio.run(asyncio.wait_for(scenario(), 60))
    life = Life(acknowledged=1, attempted=2)
    asyncio.run(check(tmp_path, life))


def test_every_append_is_one_write_and_one_sync(tmp_path: Path) -> None:
    async def scenario() -> None:
        disk = TracedDisk()
        journal = make(tmp_path, disk)
        await journal.open()
        await journal.append([payload(1)], 0)
        await journal.trim(1)  # the housekeeper has nothing left to do now
        before = len(disk.calls)
        for sequence in (2, 3):
            await journal.append([b"a", b"b", b"c"], sequence - 1)
        assert disk.calls[before:] == ["write", "datasync"] * 2
        await journal.close()

    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_a_slow_sync_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        journal = make(tmp_path)
        await journal.open()
        await journal.append([b"x"], 0)
        caplog.clear()
        monkeypatch.setattr(backend, "SLOW_SYNC_S", 0.0)
        await journal.append([b"x"], 1)
        assert f"{tmp_path}: a sync took" in caplog.text
        await journal.close()

    asyncio.run(asyncio.wait_for(scenario(), 60))
