"""Who connects to NATS: nkeys and JWTs that real servers demand, and what is said of wrong ones."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from journal.contract import JournalError
from journal.nats.backend import NatsJournal
from tests.contract.backends import entries, fill, on_loop
from tests.nats import NatsCluster
from tests.nats_auth import Key, Operator

pytestmark = pytest.mark.slow

REFUSAL_S = 3.0
"""For a journal that is not to be had: several tries."""


@pytest.fixture
def operator() -> Operator:
    return Operator()


@pytest.fixture
def server(operator: Operator, tmp_path: Path) -> Iterator[NatsCluster]:
    """One that knows users by JWTs of accounts of `operator` and by nothing else."""
    own = operator.creds(tmp_path / "own.creds")
    cluster = NatsCluster(
        tmp_path / "nats",
        count=1,
        extra=operator.config(),
        connect={"user_credentials": str(own)},
    )
    yield cluster
    cluster.stop()


def write(path: Path, content: str) -> Path:
    path.write_text(content)
    return path


async def works(url: str) -> None:
    journal = NatsJournal(url, replicas=1)
    await journal.open()
    tail = await journal.tail()
    await fill(journal, [b"a"], tail)
    assert (await entries(journal, tail))[0].payload == b"a"
    # A connection and a stream of its own.
    assert journal.control is not None
    await journal.control.open()
    await journal.control.close()
    await journal.close()


async def refusal(url: str) -> str:
    with pytest.raises(JournalError) as caught:
        await NatsJournal(url, replicas=1, open_s=REFUSAL_S, patience_s=REFUSAL_S).open()
    return str(caught.value)


def test_an_nkey(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    user, stranger = Key(), Key()
    right = write(tmp_path / "right.nk", user.seed + "\n")
    wrong = write(tmp_path / "wrong.nk", stranger.seed)
    server = NatsCluster(
        tmp_path / "nats",
        count=1,
        extra=f"authorization {{ users = [{{nkey: {user.public}}}] }}",
        connect={"nkeys_seed": str(right)},
    )

    @on_loop
    async def run() -> None:
        url = f"nats://{server.endpoints}/n"
        await works(f"{url}?nkey={right}")
        expected = f"NATS at {server.endpoints} refuses the nkey in {wrong} (user {stranger.public}"
        assert expected in await refusal(f"{url}?nkey={wrong}")
        assert expected in caplog.text
        for kind in ("", "u:pass@", "token@"):
            text = await refusal(f"nats://{kind}{server.endpoints}/n")
            assert f"NATS at {server.endpoints} refuses" in text
            assert "pass:" not in text and "token@" not in text

    try:
        run()
    finally:
        server.stop()
    assert user.seed not in caplog.text and stranger.seed not in caplog.text


@on_loop
async def test_a_creds_file(server: NatsCluster, operator: Operator, tmp_path: Path) -> None:
    url = f"nats://{server.endpoints}/n"
    await works(f"{url}?creds={operator.creds(tmp_path / 'right.creds')}")
    user = Key()
    foreign = Operator().creds(tmp_path / "foreign.creds", user)
    expected = f"NATS at {server.endpoints} refuses the JWT in {foreign} (user {user.public})"
    assert expected in await refusal(f"{url}?creds={foreign}")
    old = operator.creds(tmp_path / "old.creds", expires=time.time() - 60)
    assert ", expired on " in await refusal(f"{url}?creds={old}")
    # A user by an nkey is none that a JWT vouches for.
    assert "refuses the nkey" in await refusal(f"{url}?nkey={write(tmp_path / 'k', user.seed)}")
    assert "refuses a client without credentials" in await refusal(url)


@on_loop
async def test_what_a_user_lacks_is_said(
    server: NatsCluster, operator: Operator, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"nats://{server.endpoints}/n"
    plain = operator.creds(tmp_path / "plain.creds", account=operator.without_jetstream)
    assert "JetStream not enabled for account" in await refusal(f"{url}?creds={plain}")
    subject = "$JS.API.STREAM.INFO.jotd-data-n"
    denied = operator.creds(tmp_path / "denied.creds", deny=[subject])
    text = await refusal(f"{url}?creds={denied}")
    assert "permissions violation" in text and subject.lower() in text
    assert f"the JWT in {denied}" in caplog.text


@on_loop
async def test_a_jwt_that_expires_can_be_replaced_while_a_journal_is_open(
    server: NatsCluster, operator: Operator, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    creds = operator.creds(tmp_path / "short.creds", expires=time.time() + 8)
    journal = NatsJournal(f"nats://{server.endpoints}/n?creds={creds}", replicas=1, unknown_s=60)
    await journal.open()
    await fill(journal, [b"before"])
    while "expired on" not in caplog.text:
        await asyncio.sleep(0.05)
    assert "User Authentication Expired".lower() in caplog.text.lower()
    refused = f"NATS at {server.endpoints} refuses the JWT in {creds}"
    # Tried again and again, and not said each time: by each of two connections, in the server's two
    # wordings.
    await asyncio.sleep(1)
    said = [record for record in caplog.records if refused in record.getMessage()]
    assert len(said) <= 4 and all(record.levelno == logging.WARNING for record in said)

    creds.unlink()
    while "cannot read the credentials" not in caplog.text:
        await asyncio.sleep(0.05)
    operator.creds(creds)
    await fill(journal, [b"after"], 1)
    assert [entry.payload for entry in await entries(journal)] == [b"before", b"after"]
    await journal.close()
