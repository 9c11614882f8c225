"""What the contract suite cannot ask of the NATS journal: failures, rivals, damage, configuration.

Against a real cluster of three with `sync_interval: always`, but for what needs only one server.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import ssl
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import nats
import pytest

from journal.contract import Conflict, Corrupt, Entry, JournalError, NoSpace, Poisoned, Unknown
from journal.nats import config, placement
from journal.nats.backend import NatsJournal
from journal.nats.chain import Chain
from journal.nats.frames import root
from journal.nats.placement import follows
from tests.contract.backends import entries, fill, on_loop
from tests.nats import NatsCluster, request, shared_cluster
from tests.pki import make_pki
from tests.proxy import Proxy
from tests.unit.journal.nats_messages import message

pytestmark = pytest.mark.slow

IDENTITY = b"i" * 16


@pytest.fixture
def cluster() -> NatsCluster:
    return shared_cluster()


@pytest.fixture
def name(cluster: NatsCluster) -> Iterator[str]:
    """A journal that is removed afterwards."""
    chosen = f"t{uuid4().hex[:12]}"
    yield chosen
    cluster.wait_ready()
    cluster.delete_streams(f"jotd-data-{chosen}", f"jotd-control-{chosen}", f"OBJ_jotd-{chosen}")


@pytest.fixture(autouse=True)
def leader_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not moved by the journal: what a test publishes past it could get lost in between."""
    monkeypatch.setattr(placement, "follows", lambda info, server: False)


@asynccontextmanager
async def opened(url: str, **options: Any) -> AsyncIterator[NatsJournal]:
    journal = NatsJournal(url, **options)
    await journal.open()
    try:
        yield journal
    finally:
        await journal.close()


async def payloads(journal: NatsJournal, after: int = 0) -> list[bytes]:
    return [entry.payload for entry in await entries(journal, after)]


async def api(cluster: NatsCluster, subject: str, body: Any = None) -> Any:
    async def ask(client: Any) -> Any:
        return await request(client, subject, body)

    return await asyncio.to_thread(cluster.ask, ask)


async def publish(
    cluster: NatsCluster, subject: str, *messages: bytes, headers: dict[str, str] | None = None
) -> None:
    """Past every rule of the journal."""

    async def send(client: Any) -> None:
        for each in messages:
            found = await client.request(subject, each, timeout=5, headers=headers)
            answer = json.loads(found.data)
            assert "error" not in answer, answer

    await asyncio.to_thread(cluster.ask, send)


# Writers and rivals


@on_loop
async def test_a_rival_voids_what_the_other_had_under_way(cluster: NatsCluster, name: str) -> None:
    """I6: the later ones of a pipeline may be stored, but they do not count."""
    async with opened(cluster.url(name)) as one, opened(cluster.url(name)) as two:
        await fill(one, [b"start"])
        assert await two.tail() == 1
        for round_ in range(15):
            tail = await one.tail()
            assert await two.tail() == tail
            calls = [one.append([b"one %d %d" % (round_, i)], tail + i) for i in range(6)]
            rival = two.append([b"two %d" % round_], tail)
            results = await asyncio.gather(*calls, rival, return_exceptions=True)
            won = [r for r in results if isinstance(r, int)]
            lost = [r for r in results if not isinstance(r, int)]
            assert all(isinstance(r, Conflict) for r in lost), results
            assert won == list(range(tail + 1, tail + 1 + len(won))), results
            found = await payloads(one, tail)
            assert found == await payloads(two, tail) and len(found) == len(won)
            if isinstance(results[-1], int):
                assert found == [b"two %d" % round_]
            else:
                assert found == [b"one %d %d" % (round_, i) for i in range(6)]


@on_loop
async def test_no_id_vouches_for_what_is_stored(cluster: NatsCluster, name: str) -> None:
    """I6: a server would acknowledge a batch as the repetition of one that it has stored void.

    Of a pipeline that a rival has overtaken the second message is stored, void, as batch 3 behind
    sequence 2. Its writer looks, and may see no further than the rival's: then the next batch that
    it sends is batch 3 behind sequence 2 as well, and an id made of these names both.
    """
    async with opened(cluster.url(name)) as journal:
        assert await journal.append([b"first"], 0) == 1
        assert journal._appender is not None
        head = journal._head
        nonce = journal._appender._nonce
        rival, _ = message(head.chain, b"rival")
        overtaken = b"overtaken".ljust(16)
        void, _ = message(head.chain, b"void", batch=3, nonce=nonce, prev=overtaken)
        subject = config.names(name, "data").subject
        await publish(cluster, subject, rival)
        await head.look()
        assert (head.chain.batch, head.chain.sequence) == (2, 2)
        await publish(cluster, subject, void, headers={"Nats-Msg-Id": f"{nonce.hex()}-3-1-2"})
        assert await journal.append([b"ours"], 2) == 3
        assert await payloads(journal) == [b"first", b"rival", b"ours"]


@on_loop
async def test_a_batch_above_the_message_limit_and_half_of_one(
    cluster: NatsCluster, name: str
) -> None:
    big = bytes(range(256)) * (9 << 12)
    async with opened(cluster.url(name)) as journal:
        assert await journal.append([b"a" * 100, big, b"z" * 700_000], 0) == 1
        names = config.names(name, "data")
        chain = journal._head.chain
        half, _ = message(chain, b"never finished", parts=3)
        await publish(cluster, names.subject, half)
        assert await journal.tail() == 1
        assert await journal.append([big, big], 1) == 2
        found = await payloads(journal)
    assert found == [b"a" * 100 + big + b"z" * 700_000, big + big]
    async with opened(cluster.url(name)) as journal:
        await publish(cluster, names.subject, half)
        assert await payloads(journal) == found
        assert await journal.append([b"on"], 2) == 3


@on_loop
async def test_a_quiet_poll_is_one_request(cluster: NatsCluster, name: str) -> None:
    """Each node polls the control journal ten times a second."""
    async with opened(cluster.url(name)) as node:
        assert node.control is not None and node.control.control is None
        one, two = node.control, NatsJournal(cluster.url(name)).control
        assert isinstance(one, NatsJournal) and isinstance(two, NatsJournal)
        await one.open()
        await two.open()
        await fill(one, [b"a", b"b"])
        assert await entries(two, 0)
        asked: list[str] = []
        link = two._link
        inner = link.request

        async def counting(subject: str, *args: Any, **kwargs: Any) -> Any:
            asked.append(subject)
            return await inner(subject, *args, **kwargs)

        link.request = counting  # type: ignore[method-assign]
        assert await entries(two, 2) == []
        assert len(asked) == 1, asked
        await one.append([b"c"], 2)
        asked.clear()
        assert await entries(two, 2) == [Entry(3, b"c")]
        assert len(asked) == 2, asked
        asked.clear()
        assert await two.tail() == 3 and len(asked) == 1
        await two.close()
        await one.close()


@on_loop
async def test_the_streams_leader_is_where_the_writer_is_connected(
    cluster: NatsCluster, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placement, "follows", follows)
    monkeypatch.setattr(placement, "LOOK_S", 0.0)
    monkeypatch.setattr(placement, "PAUSE_S", 0.0)
    async with opened(cluster.url(name)) as journal:
        assert journal._appender is not None
        stream, here = journal.names.stream, journal._link.server
        for elsewhere in [server for server in cluster.servers if server.name != here]:
            before = await journal.tail()
            await asyncio.to_thread(cluster.move_leader, stream, elsewhere)
            under_way: list[asyncio.Task[int]] = []
            tail = before
            while (await asyncio.to_thread(cluster.leader, stream)).name != here:
                under_way += [
                    asyncio.ensure_future(journal.append([b"%d" % (tail + i)], tail + i))
                    for i in range(6)
                ]
                tail += 6
                await asyncio.sleep(0.01)
            assert await asyncio.gather(*under_way) == list(range(before + 1, tail + 1))
        found = await payloads(journal)
        assert found == [b"%d" % i for i in range(tail)]
        # A stream that others append to all the time would go back and forth.
        assert isinstance(journal.control, NatsJournal)
        await journal.control.open()
        assert journal.control._appender is not None
        assert journal.control._appender._placement is None
        await journal.control.close()


# Servers and connections that fail


@on_loop
async def test_the_streams_leader_dies_under_pipelined_appends(
    cluster: NatsCluster, name: str
) -> None:
    """I1: nothing that was acknowledged is lost, and the order stands."""
    acknowledged: dict[int, bytes] = {}
    followed: list[Entry] = []

    async def follow(journal: NatsJournal) -> None:
        async for step in journal.follow(0):
            followed.extend(step)

    async with (
        opened(cluster.url(name), unknown_s=40) as writer,
        opened(cluster.url(name)) as other,
    ):
        follower = asyncio.ensure_future(follow(other))
        sent = 0

        async def append(number: int) -> None:
            payload = b"%d" % number * 100
            assert await writer.append([payload], number - 1) == number
            acknowledged[number] = payload

        killed = None
        until = time.monotonic() + 12
        pending: set[asyncio.Future[None]] = set()
        while time.monotonic() < until or (killed and len(acknowledged) < killed[1] + 50):
            while len(pending) < 8:
                sent += 1
                pending.add(asyncio.ensure_future(append(sent)))
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for each in done:
                each.result()
            if killed is None and len(acknowledged) > 100:
                server = await asyncio.to_thread(cluster.leader, writer.names.stream)
                server.kill9()
                killed = (server, len(acknowledged))
                until = time.monotonic() + 1
        await asyncio.gather(*pending)
        assert killed is not None
        await asyncio.to_thread(killed[0].restart)
        await asyncio.to_thread(cluster.wait_ready)
        async with asyncio.timeout(30):
            while len(followed) < sent:
                await asyncio.sleep(0.05)
        follower.cancel()
        assert sorted(acknowledged) == list(range(1, sent + 1))
        found = await entries(other)
        assert {entry.sequence: entry.payload for entry in found} == acknowledged
        assert followed == found


@on_loop
async def test_lost_acknowledgements_are_found_out(cluster: NatsCluster, name: str) -> None:
    """R5: stored, answered, and the answer never arrives, again and again."""
    proxy = Proxy(cluster.servers[0].port)
    port = await proxy.start()
    async with opened(f"nats://127.0.0.1:{port}/{name}") as journal:
        tail = 0
        for round_ in range(6):
            proxy.deaf = True
            batches = [b"%d.%d" % (round_, i) * 50 for i in range(7)]
            if round_ % 2:
                batches[3] *= 15_000
            calls = [
                asyncio.ensure_future(journal.append([batch], tail + i))
                for i, batch in enumerate(batches)
            ]
            await asyncio.sleep(0.05)
            proxy.deaf = False
            proxy.cut()
            assert await asyncio.gather(*calls) == list(range(tail + 1, tail + 8))
            assert await payloads(journal, tail) == batches
            tail += 7
        assert journal.stats().appends == tail
    proxy.stop()


@on_loop
async def test_without_a_quorum_the_outcome_is_unknown_and_found_later(
    cluster: NatsCluster, name: str
) -> None:
    """I7; and R5: the same bytes at the same tail are then known for what they are."""
    async with opened(cluster.url(name), unknown_s=2.0, patience_s=2.0) as journal:
        await fill(journal, [b"1"])
        leader = await asyncio.to_thread(cluster.leader, journal.names.stream)
        frozen = [server for server in cluster.servers if server is not leader]
        for server in frozen:
            server.signal(signal.SIGSTOP)
        try:
            calls = [journal.append([b"%d" % n], n - 1) for n in (2, 3)]
            results = await asyncio.gather(*calls, return_exceptions=True)
            assert all(isinstance(r, Unknown) for r in results), results
        finally:
            for server in frozen:
                server.signal(signal.SIGCONT)
        for number in (2, 3):
            async with asyncio.timeout(60):
                while True:
                    try:
                        assert await journal.append([b"%d" % number], number - 1) == number
                        break
                    except Unknown:
                        continue
        with pytest.raises(Conflict):
            await journal.append([b"not 3"], 2)
        async with asyncio.timeout(30):
            while True:
                try:
                    assert await payloads(journal) == [b"1", b"2", b"3"]
                    break
                except JournalError:
                    continue


@on_loop
async def test_data_that_vanished_is_loud(cluster: NatsCluster, name: str) -> None:
    """I10: the stream ends before what it acknowledged."""
    async with opened(cluster.url(name), vanish_s=0.3) as journal:
        await fill(journal, [b"1", b"2"])
        chain = journal._head.chain
        # As if one more had been acknowledged.
        chain.sequence += 1
        with pytest.raises(Poisoned, match="vanished"):
            await journal.append([b"3"], 2)
        with pytest.raises(Poisoned):
            await journal.tail()
        with pytest.raises(Poisoned):
            journal.reserve(1)


@on_loop
async def test_servers_that_are_full_refuse_and_recover(tmp_path: Path) -> None:
    cluster = await asyncio.to_thread(NatsCluster, tmp_path, count=1, store="3MB")
    try:
        async with opened(cluster.url("n"), replicas=1) as journal:
            tail = 0
            with pytest.raises(NoSpace):
                while True:
                    tail = await journal.append([b"x" * 200_000], tail)
            assert tail > 5
            assert await journal.tail() == tail == len(await entries(journal))
            calls = [journal.append([b"x" * 300_000], tail + i) for i in range(3)]
            results = await asyncio.gather(*calls, return_exceptions=True)
            assert isinstance(results[0], NoSpace)
            assert all(isinstance(result, Conflict) for result in results[1:])
            await journal.trim(tail)
            assert await journal.append([b"x" * 200_000], tail) == tail + 1
            with pytest.raises(NoSpace):
                async with journal.snapshots.writer("big") as writer:
                    for _ in range(40):
                        await writer.write(b"y" * 100_000)
            assert await journal.snapshots.list() == []
            assert await journal.append([b"on"], tail + 1) == tail + 2
    finally:
        cluster.stop()


@on_loop
async def test_a_stream_that_was_made_anew_is_another_journal(
    cluster: NatsCluster, name: str
) -> None:
    async with opened(cluster.url(name)) as journal:
        await fill(journal, [b"1"])
        stream = journal.names.stream
        made = (await api(cluster, f"$JS.API.STREAM.INFO.{stream}"))["config"]
        await api(cluster, f"$JS.API.STREAM.DELETE.{stream}")
        assert "error" not in await api(cluster, f"$JS.API.STREAM.CREATE.{stream}", made)
        with pytest.raises(Poisoned, match="anew"):
            await journal.append([b"2"], 1)


# Damage


@on_loop
async def test_what_was_altered_or_taken_out_is_found(cluster: NatsCluster, name: str) -> None:
    """I10. Copies of a good stream, each with one thing wrong."""
    chain = Chain(0, root(IDENTITY), 0)
    good: list[bytes] = []
    for number in range(1, 9):
        data, _ = message(chain, b"payload %d" % number)
        good.append(data)
        chain.feed(number, data)
    flipped = bytearray(good[4])
    flipped[-1] ^= 1
    wrong = {
        "good": good,
        "altered": [*good[:4], bytes(flipped), *good[5:]],
        "missing": [*good[:4], *good[5:]],
        "foreign": [*good[:4], b"hello", *good[4:]],
        "altered tail": [*good[:7], good[7][:-1] + b"?"],
    }
    names = config.names(name, "data")
    for what, messages in wrong.items():
        made = config.journal_config(names, 1, IDENTITY)
        answer = await api(cluster, f"$JS.API.STREAM.CREATE.{names.stream}", made)
        assert "error" not in answer, answer
        await publish(cluster, names.subject, *messages)
        if what == "good":
            async with opened(cluster.url(name), replicas=1) as journal:
                assert len(await entries(journal)) == 8
        else:
            with pytest.raises(Corrupt) as caught:
                async with opened(cluster.url(name), replicas=1) as journal:
                    await entries(journal)
            place = {"altered tail": 8, "missing": 5}.get(what, 5)
            assert (caught.value.file, caught.value.offset) == (names.stream, place), what
        await api(cluster, f"$JS.API.STREAM.DELETE.{names.stream}")


# Configuration


@on_loop
async def test_a_stream_that_is_set_up_otherwise_is_refused(
    cluster: NatsCluster, name: str
) -> None:
    names = config.names(name, "data")
    made = config.journal_config(names, 1, IDENTITY)
    made |= {"deny_delete": False, "max_age": 3_600_000_000_000}
    await api(cluster, f"$JS.API.STREAM.CREATE.{names.stream}", made)
    with pytest.raises(JournalError, match=r"max_age is .*deny_delete is .*num_replicas is 1"):
        await NatsJournal(cluster.url(name)).open()
    with pytest.raises(JournalError, match=r"cannot keep stream .* with 5 replicas"):
        await NatsJournal(cluster.url(name + "x", "replicas=5"), open_s=1.0).open()


@on_loop
async def test_a_server_that_is_still_to_come_is_waited_for(tmp_path: Path) -> None:
    cluster = await asyncio.to_thread(NatsCluster, tmp_path)
    try:
        for server in cluster.servers:
            server.stop()
            shutil.rmtree(server.store)
        for server in cluster.servers[:2]:
            await asyncio.to_thread(server.start)
        with pytest.raises(JournalError, match=r"cannot keep stream .* no suitable peers"):
            await NatsJournal(cluster.url("early"), open_s=4.0).open()
        journal = NatsJournal(cluster.url("late"))
        opening = asyncio.ensure_future(journal.open())
        await asyncio.sleep(1.0)
        assert not opening.done()
        await asyncio.to_thread(cluster.servers[2].start)
        await opening
        assert await journal.append([b"all there"], 0) == 1
        await journal.close()
    finally:
        await asyncio.to_thread(cluster.stop)


@on_loop
async def test_two_that_make_the_journal_at_once_agree(cluster: NatsCluster, name: str) -> None:
    journals = [NatsJournal(cluster.url(name)) for _ in range(3)]
    found = await asyncio.gather(*(journal.open() for journal in journals))
    assert len({each.identity for each in found}) == 1
    for journal in journals:
        await journal.close()


@on_loop
async def test_no_server_is_said_plainly(tmp_path: Path) -> None:
    journal = NatsJournal("nats://u:s3cr3t@127.0.0.1:1/n", open_s=1.0)
    with pytest.raises(JournalError, match="no NATS server could be reached") as caught:
        await journal.open()
    assert "s3cr3t" not in str(caught.value)


@on_loop
async def test_snapshots_are_objects_of_nats_and_of_a_shared_directory(
    cluster: NatsCluster, name: str, tmp_path: Path
) -> None:
    chunks = [b"one", b"", b"two" * 200_000]
    async with opened(cluster.url(name)) as journal:
        async with journal.snapshots.writer("snap") as writer:
            for chunk in chunks:
                await writer.write(chunk)
        client = await nats.connect(cluster.servers[0].url)
        store = await client.jetstream().object_store(f"jotd-{name}")
        # nats-py checks the length and the SHA-256.
        found = await store.get("snap")
        assert found.info.size == len(found.data or b"") == journal.stats().snapshot_bytes
        await client.close()
        subject = f"$O.jotd-{name}.C.{found.info.nuid}"
        await api(cluster, f"$JS.API.STREAM.PURGE.OBJ_jotd-{name}", {"filter": subject, "keep": 1})
        with pytest.raises(Corrupt):
            async for _ in journal.snapshots.read("snap"):
                pass
    url = cluster.url(name, f"snapshots={tmp_path}/s")
    async with opened(url) as one, opened(url) as two:
        async with one.snapshots.writer("a") as writer:
            await writer.write(b"shared")
        assert [chunk async for chunk in two.snapshots.read("a")] == [b"shared"]
        assert [info.name for info in await two.snapshots.list()] == ["a"]
        assert two.stats().snapshots == 1


def test_users_tokens_and_tls(tmp_path: Path) -> None:
    pki = tmp_path / "pki"
    pki.mkdir()
    make_pki(pki)
    files = f"cert_file: '{pki}/server.crt', key_file: '{pki}/server.key', ca_file: '{pki}/ca.crt'"
    ca = f"ca={pki}/ca.crt"
    mutual = f"{ca}&cert={pki}/client.crt&key={pki}/client.key"

    @on_loop
    async def works(url: str) -> None:
        async with opened(url, replicas=1) as journal:
            await fill(journal, [b"a"], await journal.tail())

    @on_loop
    async def fails(url: str) -> None:
        with pytest.raises(JournalError) as caught:
            await NatsJournal(url, replicas=1, open_s=1.5).open()
        assert "s3:cret" not in str(caught.value) and "s3%3Acret" not in str(caught.value)

    def single(extra: str, **connect: Any) -> NatsCluster:
        return NatsCluster(tmp_path / uuid4().hex, count=1, extra=extra, connect=connect)

    secure = ssl.create_default_context(cafile=pki / "ca.crt")
    secure.load_cert_chain(pki / "client.crt", pki / "client.key")
    user = {"user": "alice", "password": "s3:cret"}
    server = single(
        f"authorization {{ user: alice, password: 's3:cret' }}\ntls {{ {files}, verify: true }}",
        tls=secure,
        **user,
    )
    try:
        at = server.endpoints
        works(f"nats://alice:s3%3Acret@{at}/n?{mutual}")
        fails(f"nats://alice:s3%3Acretx@{at}/n?{mutual}")
        fails(f"nats://alice:s3%3Acret@{at}/n?{ca}")
        fails(f"nats-tls://alice:s3%3Acret@{at}/n")
    finally:
        server.stop()
    server = single("authorization { token: 's3:cret' }", token="s3:cret")
    try:
        works(f"nats://s3%3Acret@{server.endpoints}/n")
        fails(f"nats://s3%3Acretx@{server.endpoints}/n")
        # It would be sent in the clear.
        fails(f"nats://s3%3Acret@{server.endpoints}/n?{ca}")
    finally:
        server.stop()
