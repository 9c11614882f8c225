"""What every journal backend promises (journal/contract.py), against the real thing."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest

from journal.contract import Conflict, Entry, Journal, JournalError, Locked, Trimmed
from tests.contract.backends import HARNESSES, Harness, entries, fill, on_loop

STEP_BYTES_MAX = 1 << 20


# Opening and closing


@on_loop
async def test_a_new_journal_is_empty(harness: Harness) -> None:
    journal = harness.journal()
    opened = await journal.open()
    assert (opened.tail, opened.oldest, len(opened.identity)) == (0, 1, 16)
    assert await journal.tail() == 0
    assert await entries(journal) == []
    await journal.close()


@on_loop
async def test_identity_tail_and_entries_survive_a_restart(harness: Harness) -> None:
    first = await harness.look()
    async with harness.open() as journal:
        await fill(journal, [b"one", b"two"])
    again = await harness.look()
    assert (again.identity, again.tail, again.oldest) == (first.identity, 2, 1)
    async with harness.open() as journal:
        assert await journal.append([b"three"], 2) == 3
        assert [e.payload for e in await entries(journal)] == [b"one", b"two", b"three"]


@on_loop
async def test_two_journals_have_two_identities(harness: Harness) -> None:
    other = type(harness)()
    try:
        assert (await harness.look()).identity != (await other.look()).identity
    finally:
        other.discard()


@on_loop
async def test_a_journal_object_is_used_once(harness: Harness) -> None:
    journal = harness.journal()
    with pytest.raises(JournalError):
        await journal.append([b"x"], 0)
    await journal.open()
    with pytest.raises(JournalError):
        await journal.open()
    await journal.close()
    await journal.close()
    for call in (journal.append([b"x"], 0), journal.tail(), journal.trim(1), journal.open()):
        with pytest.raises(JournalError):
            await call
    with pytest.raises(JournalError):
        await entries(journal)
    with pytest.raises(JournalError):
        journal.reserve(1)
    assert journal.stats().appends == 0


@on_loop
async def test_closing_what_was_never_opened(harness: Harness) -> None:
    await harness.journal().close()


@on_loop
async def test_a_second_opener_is_kept_out_or_fenced(harness: Harness) -> None:
    """I6: whatever two writers do, one sequence number goes to one of them."""
    async with harness.open() as one:
        two = harness.journal()
        if harness.exclusive:
            with pytest.raises(Locked):
                await two.open()
            await one.append([b"still mine"], 0)
        else:
            await two.open()
            await one.append([b"one"], 0)
            with pytest.raises(Conflict):
                await two.append([b"two"], 0)
            assert [e.payload for e in await entries(two)] == [b"one"]
            await two.close()
    assert (await harness.look()).tail == 1


# Appending


@on_loop
async def test_a_batch_is_the_concatenation_of_its_parts(harness: Harness) -> None:
    batches: list[list[bytes]] = [[b"a", b"", b"bc"], [b""], [], [b"\0" * 1000], [b"x" * 70_000]]
    async with harness.open() as journal:
        for tail, parts in enumerate(batches):
            assert await journal.append(parts, tail) == tail + 1
        assert [e.payload for e in await entries(journal)] == [b"".join(p) for p in batches]
    async with harness.open() as journal:
        assert [e.payload for e in await entries(journal)] == [b"".join(p) for p in batches]


@on_loop
async def test_a_wrong_expected_tail_writes_nothing(harness: Harness) -> None:
    async with harness.open() as journal:
        await fill(journal, [b"a", b"b"])
        for wrong in (0, 1, 3, 1 << 40):
            with pytest.raises(Conflict) as caught:
                await journal.append([b"no"], wrong)
            assert (caught.value.expected, caught.value.actual) == (wrong, 2)
        assert await journal.append([b"c"], 2) == 3
        assert journal.stats().conflicts == 4
        assert [e.payload for e in await entries(journal)] == [b"a", b"b", b"c"]


@on_loop
async def test_appends_take_effect_in_the_order_of_the_calls(harness: Harness) -> None:
    async with harness.open() as journal:
        calls = [journal.append([b"%d" % i], i) for i in range(50)]
        assert await asyncio.gather(*calls) == list(range(1, 51))
        assert [e.payload for e in await entries(journal)] == [b"%d" % i for i in range(50)]


@on_loop
async def test_a_conflict_fails_what_was_sent_behind_it(harness: Harness) -> None:
    async with harness.open() as journal:
        calls = [journal.append([b"%d" % tail], tail) for tail in (0, 1, 7, 3, 4)]
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert results[:2] == [1, 2]
        assert all(isinstance(result, Conflict) for result in results[2:])
        assert len(await entries(journal)) == 2


@on_loop
async def test_the_longest_batch_fits_and_a_longer_one_is_refused(harness: Harness) -> None:
    async with harness.open(max_batch_bytes=200_000) as journal:
        assert journal.max_batch_bytes == 200_000
        with pytest.raises(ValueError):
            await journal.append([b"x" * 100_000, b"y" * 100_001], 0)
        assert await journal.append([b"x" * 100_000, b"y" * 100_000], 0) == 1
        assert await journal.append([b"after"], 1) == 2
        assert [len(e.payload) for e in await entries(journal)] == [200_000, 5]


@on_loop
async def test_a_cancelled_append_leaves_a_journal_that_works(harness: Harness) -> None:
    async with harness.open() as journal:
        task = asyncio.ensure_future(journal.append([b"maybe"], 0))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        try:
            tail = await journal.append([b"next"], 0)
        except Conflict as conflict:
            assert conflict.actual == 1
            tail = await journal.append([b"next"], 1)
        payloads = [e.payload for e in await entries(journal)]
        assert payloads == [b"maybe", b"next"][-tail:]


@on_loop
async def test_what_close_found_under_way_is_there_afterwards(harness: Harness) -> None:
    journal = harness.journal()
    await journal.open()
    calls = [asyncio.ensure_future(journal.append([b"x" * 1000], i)) for i in range(20)]
    await asyncio.sleep(0)
    await journal.close()
    assert await asyncio.gather(*calls) == list(range(1, 21))
    assert (await harness.look()).tail == 20


# Reading


@on_loop
async def test_read_starts_anywhere_and_stops_at_the_tail(harness: Harness) -> None:
    payloads = [b"%04d" % i * (i % 97) for i in range(700)]
    async with harness.open() as journal:
        await fill(journal, payloads)
        for after in (0, 1, 2, 350, 698, 699, 700):
            found = await entries(journal, after)
            assert [e.payload for e in found] == payloads[after:]
        with pytest.raises(ValueError):
            await entries(journal, 701)


@on_loop
async def test_read_stops_at_the_tail_of_its_first_step(harness: Harness) -> None:
    async with harness.open() as journal:
        await fill(journal, [b"x" * 1000] * 300)
        found = 0
        tail = 300
        async for step in journal.read(0):
            found += len(step)
            tail = await journal.append([b"later" * 1000], tail)
        assert found == 300


@on_loop
async def test_lists_are_bounded_in_bytes(harness: Harness) -> None:
    """I9: the consumer handles a list in one go, so a list has to be small."""
    async with harness.open() as journal:
        await fill(journal, [b"x" * 100_000] * 30 + [b""] * 3000)
        steps = [list(step) async for step in journal.read(0)]
    assert sum(map(len, steps)) == 3030
    for step in steps:
        assert sum(len(e.payload) for e in step[:-1]) < STEP_BYTES_MAX
        assert len(step) <= 4096
    assert len(steps) < 100


@on_loop
async def test_many_readers_at_once(harness: Harness) -> None:
    async with harness.open() as journal:
        payloads = [b"%d" % i * 50 for i in range(500)]
        await fill(journal, payloads)
        readers = [entries(journal, after) for after in range(0, 500, 25)]
        for after, found in zip(range(0, 500, 25), await asyncio.gather(*readers), strict=True):
            assert [e.payload for e in found] == payloads[after:]


@on_loop
async def test_an_abandoned_reader_is_no_burden(harness: Harness) -> None:
    async with harness.open() as journal:
        await fill(journal, [b"x" * 5000] * 600)
        async for _ in journal.read(0):
            break
        reader = journal.read(0)
        await anext(reader)
        await reader.aclose()  # type: ignore[attr-defined]
        assert await journal.append([b"y"], 600) == 601


async def _follow(journal: Journal, after: int, into: list[Entry], stop_at: int | None) -> None:
    async for step in journal.follow(after):
        assert step
        into += step
        if stop_at is not None and into[-1].sequence >= stop_at:
            return


@on_loop
async def test_follow_gives_the_past_and_then_what_comes(harness: Harness) -> None:
    async with harness.open() as journal:
        tail = await fill(journal, [b"past %d" % i for i in range(100)])
        logs: list[list[Entry]] = [[], [], []]
        starts = (0, 50, 100)
        tasks = [
            asyncio.ensure_future(_follow(journal, after, log, 400))
            for after, log in zip(starts, logs, strict=True)
        ]
        while tail < 400:
            tail = await journal.append([b"live %d" % tail, b"." * 500], tail)
        await asyncio.gather(*tasks)
        for after, log in zip(starts, logs, strict=True):
            assert [e.sequence for e in log] == list(range(after + 1, 401))
            assert log == await entries(journal, after)


@on_loop
async def test_follow_from_an_empty_journal(harness: Harness) -> None:
    async with harness.open() as journal:
        log: list[Entry] = []
        task = asyncio.ensure_future(_follow(journal, 0, log, 2))
        await asyncio.sleep(0.01)
        await fill(journal, [b"a", b"b"])
        await task
        assert log == [Entry(1, b"a"), Entry(2, b"b")]


@on_loop
async def test_a_follower_sees_only_what_was_acknowledged_or_will_be(harness: Harness) -> None:
    """I2, as far as a journal can: what was followed is there after a restart."""
    log: list[Entry] = []
    async with harness.open() as journal:
        task = asyncio.ensure_future(_follow(journal, 0, log, None))
        await fill(journal, [b"%d" % i for i in range(100)])
    await task
    async with harness.open() as journal:
        kept = await entries(journal)
    assert log == kept[: len(log)]


@on_loop
async def test_followers_end_when_the_journal_is_closed(harness: Harness) -> None:
    journal = harness.journal()
    await journal.open()
    await fill(journal, [b"a"])
    log: list[Entry] = []
    task = asyncio.ensure_future(_follow(journal, 0, log, None))
    while not log:
        await asyncio.sleep(0)
    await journal.close()
    await task
    assert log == [Entry(1, b"a")]


@on_loop
async def test_a_follower_can_be_cancelled(harness: Harness) -> None:
    async with harness.open() as journal:
        await fill(journal, [b"a"])
        log: list[Entry] = []
        task = asyncio.ensure_future(_follow(journal, 0, log, None))
        while not log:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await fill(journal, [b"b"], 1)
        with pytest.raises(ValueError):
            await _follow(journal, 99, [], None)


# Trimming


async def _oldest_kept(journal: Journal, tail: int) -> int:
    """The first sequence that can still be read, found by asking."""
    for after in range(tail + 1):
        try:
            await entries(journal, after)
        except Trimmed as trimmed:
            assert trimmed.after == after
            continue
        return after + 1
    raise AssertionError("nothing can be read, not even from the tail")


@on_loop
async def test_trim_drops_only_what_lies_below(harness: Harness) -> None:
    payloads = [b"%d" % i * 300 for i in range(400)]
    async with harness.open() as journal:
        await fill(journal, payloads)
        await journal.trim(1)
        assert await _oldest_kept(journal, 400) == 1
        await journal.trim(300)
        oldest = await _oldest_kept(journal, 400)
        assert 1 < oldest <= 300
        assert [e.payload for e in await entries(journal, oldest - 1)] == payloads[oldest - 1 :]
        assert journal.stats().entries == 400 - oldest + 1
    opened = await harness.look()
    assert (opened.oldest, opened.tail) == (oldest, 400)


@on_loop
async def test_trimming_everything_keeps_the_count(harness: Harness) -> None:
    async with harness.open() as journal:
        await fill(journal, [b"x" * 3000] * 100)
        await journal.trim(10_000)
        with pytest.raises(Conflict):
            await journal.append([b"y"], 0)
        assert await journal.append([b"y"], 100) == 101
    opened = await harness.look()
    assert opened.tail == 101
    async with harness.open() as journal:
        assert (await entries(journal, 100))[-1] == Entry(101, b"y")


@on_loop
async def test_an_overtaken_follower_is_told(harness: Harness) -> None:
    async with harness.open() as journal:
        await fill(journal, [b"x" * 3000] * 400)
        follower = journal.follow(0)
        step: Sequence[Entry] = await anext(follower)
        seen = step[-1].sequence
        await journal.trim(401)
        with pytest.raises(Trimmed):
            # It may have more at hand, but not without a hole.
            while True:
                step = await asyncio.wait_for(anext(follower), 10)
                assert step[0].sequence == seen + 1
                seen = step[-1].sequence
        await follower.aclose()  # type: ignore[attr-defined]


@on_loop
async def test_appends_and_reads_go_on_while_trimming(harness: Harness) -> None:
    async with harness.open() as journal:
        tail = await fill(journal, [b"x" * 3000] * 100)
        for round_ in range(10):
            trim = asyncio.ensure_future(journal.trim(tail - 20))
            tail = await fill(journal, [b"%d" % round_ * 3000] * 20, tail)
            await trim
            assert (await entries(journal, tail - 21))[-1].sequence == tail


# Space, figures, hooks


@on_loop
async def test_reserve_says_yes_to_little_and_no_to_too_much(harness: Harness) -> None:
    async with harness.open() as journal:
        tail = 0
        for _ in range(300):
            assert journal.reserve(1000)
            tail = await journal.append([b"x" * 1000], tail)
        assert not journal.reserve(1 << 63)
        assert not journal.reserve(1 << 63, urgent=True)
        assert journal.reserve(1000, urgent=True)
        assert journal.stats().free_bytes > 1000


@on_loop
async def test_figures_and_hooks(harness: Harness) -> None:
    journal = harness.journal()
    syncs: list[float] = []
    writes: list[float] = []
    progress: list[tuple[int, int]] = []
    threads: set[int] = set()
    journal.on_sync = lambda s: (syncs.append(s), threads.add(threading.get_ident()))[0]
    journal.on_write = writes.append
    journal.on_progress = lambda done, total: progress.append((done, total))
    await journal.open()
    await fill(journal, [b"x" * 100] * 50)
    assert len(syncs) == len(writes) == 50
    assert min(syncs + writes) >= 0
    assert threads == {threading.get_ident()}
    stats = journal.stats()
    assert (stats.appends, stats.appended_bytes, stats.entries) == (50, 5000, 50)
    assert stats.bytes_on_disk >= 5000
    progress.clear()
    await entries(journal)
    assert progress and all(0 < done <= total for done, total in progress)
    assert [done for done, _ in progress] == sorted(done for done, _ in progress)
    await journal.close()
    assert journal.stats().appends == 50


@pytest.mark.slow
def test_every_harness_satisfies_the_protocol() -> None:
    for kind in HARNESSES:
        harness = kind()
        try:
            assert isinstance(harness.journal(), Journal)
            assert harness.journal().name == harness.name
        finally:
            harness.discard()
