"""One JetStream stream by the JetStream API: what is asked of it, and what its answers mean.

Requests that change nothing are repeated until they are answered or too late; an election of
leaders takes NATS some seconds. Errors are told apart by their `err_code`, never by class or text.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from nats.aio.msg import Msg

from journal.contract import JournalError, NoSpace
from journal.nats.config import Config
from journal.nats.link import Link, Unreachable, status

STREAM_NOT_FOUND = 10059
NAME_IN_USE = 10058
NO_MESSAGE = 10037
NO_PEERS = 10005
NO_SPACE = frozenset({10002, 10023, 10028, 10047})
"""Limits of the account, resources of the server, its storage."""
TRANSIENT = frozenset({10004, 10007, 10008, 10009, 10118, 10167, 10075})
"""No leader just now, or too much at once."""

ATTEMPT_S = 3.0
"""For one answer."""
_BACKOFF_S = (0.02, 0.05, 0.1, 0.25)
_STALE_MAX = 6
FETCH_BYTES = 1 << 20
FETCH_MESSAGES = 64
"""nats-py hands over in one go all that has come, some 20 us each (I9)."""


class ApiError(JournalError):
    """The JetStream API refused something."""

    def __init__(self, error: dict[str, Any]) -> None:
        self.code = int(error.get("err_code", 0))
        self.description = str(error.get("description", "no reason given"))
        super().__init__(f"JetStream: {self.description} (err_code {self.code})")


class Missing(Exception):
    """A message that the stream should have is not there."""

    def __init__(self, sequence: int) -> None:
        super().__init__(f"message {sequence} is missing")
        self.sequence = sequence


def translate(error: ApiError) -> JournalError:
    """NoSpace where that is what it means."""
    return NoSpace(str(error)) if error.code in NO_SPACE else error


@dataclass(frozen=True, slots=True)
class Replica:
    """One of the servers that keep a stream, but its leader."""

    current: bool
    """It is there, and follows the leader."""
    lag: int
    """Operations that it is behind."""


@dataclass(frozen=True, slots=True)
class Info:
    """A stream, as its leader sees it."""

    config: dict[str, Any]
    created: str
    first: int
    last: int
    messages: int
    bytes: int
    subjects: dict[str, int]
    """Messages of each subject, where they were asked for."""
    leader: str
    """The name of the server that leads; empty where there is one server and no cluster."""
    replicas: dict[str, Replica]
    """The others, by name."""

    @classmethod
    def of(cls, answer: dict[str, Any]) -> Info:
        state = answer["state"]
        cluster = answer.get("cluster") or {}
        return cls(
            answer["config"],
            answer["created"],
            state["first_seq"],
            state["last_seq"],
            state["messages"],
            state["bytes"],
            state.get("subjects") or {},
            cluster.get("leader", ""),
            {
                each.get("name", ""): Replica(
                    bool(each.get("current")) and not each.get("offline"), each.get("lag", 0)
                )
                for each in cluster.get("replicas") or ()
            },
        )


@dataclass(frozen=True, slots=True)
class Stored:
    """One message of a stream."""

    sequence: int
    data: bytes


class Stream:
    """Requests about one stream. Raises Unreachable when there was no answer in `patience_s`."""

    def __init__(
        self, link: Link, name: str, patience_s: float, attempt_s: float = ATTEMPT_S
    ) -> None:
        """`attempt_s`: what has no answer for so long is asked again."""
        self.link = link
        self.name = name
        self.patience_s = patience_s
        self.attempt_s = attempt_s

    async def call(self, verb: str, body: Any = None, *, patience_s: float | None = None) -> Any:
        """One request to the API, repeated until it is answered. ApiError, Unreachable."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + (self.patience_s if patience_s is None else patience_s)
        payload = b"" if body is None else json.dumps(body).encode()
        subject = f"$JS.API.{verb}.{self.name}"
        attempt = 0
        while True:
            left = deadline - loop.time()
            try:
                answers = await self.link.request(
                    subject, payload, max(0.05, min(self.attempt_s, left))
                )
                answer = json.loads(answers[0].data)
                if (error := answer.get("error")) is None:
                    return answer
                refusal = ApiError(error)
                if refusal.code not in TRANSIENT:
                    raise refusal
                failure: JournalError = refusal
            except Unreachable as error:
                failure = error
            pause = _BACKOFF_S[min(attempt, len(_BACKOFF_S) - 1)]
            attempt += 1
            if loop.time() + pause >= deadline:
                raise Unreachable(f"stream {self.name}: {failure}") from failure
            await asyncio.sleep(pause)

    async def account(self) -> Any:
        """Limits and use of the account."""
        answers = await self.link.request("$JS.API.INFO", b"", self.attempt_s)
        return json.loads(answers[0].data)

    async def info(self, *, subjects: str | None = None, patience_s: float | None = None) -> Info:
        """What the leader of the stream knows of it. One request."""
        body = {"subjects_filter": subjects} if subjects else None
        return Info.of(await self.call("STREAM.INFO", body, patience_s=patience_s))

    async def create(self, config: Config) -> Info:
        """Create it; not an error if somebody else just does, alike or not. What there is then."""
        try:
            await self.call("STREAM.CREATE", config)
        except ApiError as error:
            if error.code != NAME_IN_USE:
                raise
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.patience_s
        while True:
            try:
                return await self.info()
            except ApiError as error:
                # Assigned to servers that do not know it yet.
                if error.code != STREAM_NOT_FOUND or loop.time() > deadline:
                    raise
                await asyncio.sleep(_BACKOFF_S[1])

    async def purge(self, *, below: int | None = None, subject: str | None = None) -> None:
        """Remove messages below a sequence, or all of a subject."""
        body: dict[str, Any] = {}
        if below is not None:
            body["seq"] = below
        if subject is not None:
            body["filter"] = subject
        await self.call("STREAM.PURGE", body)

    async def get(self, **wanted: Any) -> Stored | None:
        """One message, from the leader (never by a direct get, which may be behind)."""
        try:
            message = (await self.call("STREAM.MSG.GET", wanted))["message"]
        except ApiError as error:
            if error.code == NO_MESSAGE:
                return None
            raise
        return Stored(message["seq"], base64.b64decode(message.get("data") or ""))

    async def fetch(self, first: int, count: int, *, subject: str | None = None) -> list[Stored]:
        """Up to `count` messages from `first` on, of any replica: it may be behind, or have fewer.

        About `FETCH_BYTES` of them. Needs `allow_direct`.
        """
        body: dict[str, Any] = {
            "seq": first,
            "batch": min(count, FETCH_MESSAGES),
            "max_bytes": FETCH_BYTES,
        }
        if subject is not None:
            body["next_by_subj"] = subject
        answers = await self.link.request(
            f"$JS.API.DIRECT.GET.{self.name}",
            json.dumps(body).encode(),
            self.attempt_s,
            until=_ends_batch,
        )
        return [
            Stored(int((m.headers or {})["Nats-Sequence"]), m.data)
            for m in answers
            if status(m) is None
        ]

    async def messages(self, first: int, last: int) -> AsyncIterator[list[Stored]]:
        """All messages from `first` to `last`, which the leader is known to have stored.

        In lists without gaps. Raises Missing where there is one in the stream itself.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.patience_s
        stale = 0
        while first <= last:
            try:
                found = await self.fetch(first, last - first + 1)
            except Unreachable:
                if loop.time() > deadline:
                    raise
                found = []
            whole: list[Stored] = []
            for message in found:
                if message.sequence != first + len(whole) or message.sequence > last:
                    break
                whole.append(message)
            if not whole:
                # A replica that is behind, or a hole: the leader knows, if it goes on.
                stale += 1
                await asyncio.sleep(_BACKOFF_S[min(stale, len(_BACKOFF_S)) - 1])
                if found or stale > _STALE_MAX:
                    message_ = await self.get(seq=first)
                    if message_ is None:
                        raise Missing(first)
                    whole = [message_]
                else:
                    continue
            stale = 0
            deadline = loop.time() + self.patience_s
            yield whole
            first = whole[-1].sequence + 1


def _ends_batch(message: Msg) -> bool:
    return status(message) is not None
