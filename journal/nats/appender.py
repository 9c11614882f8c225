"""Appends: several under way, each conditional on the one before, and what became of lost ones.

Every message is published with the stream sequence that it has to follow
(`Nats-Expected-Last-Sequence`, the fence, I6) and the stream (`Nats-Expected-Stream`). A batch is
answered when all its parts are acknowledged at the sequences that they were meant for *and* every
batch before it is. There is no id (`Nats-Msg-Id`) by which the server would know a repetition: to
believe that it knows one would be to believe that it has stored the same.

Anything else that happens (no answer in time, a lost connection, an error of whatever kind) means
that the outcome is unknown, and R5 applies to everything under way, oldest first:

1. ask the stream's leader for the last sequence, and read what is new up to there;
2. a batch that is there with our digest is stored; another one in its place is a Conflict for it
   and all behind it;
3. one that is not there is sent again, byte for byte: at the same expected sequence if nothing
   came in between, behind what did if that is void. A message that is still on its way somewhere
   expects a sequence that either is still the last one, then only one of the two is stored, or
   never will be again.
4. no result within `unknown_s`: Unknown for all (I7).

A last sequence below one that was acknowledged means that the servers lost data: Poisoned, once it
has been so for longer than a deposed leader could go on believing in itself (I10).
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from nats.aio.msg import Msg

from journal.contract import Conflict, Corrupt, IncompatibleVersion, JournalError, NoSpace, Unknown
from journal.nats.chain import Place
from journal.nats.frames import HEADER_BYTES, NONCE_BYTES, cut, encode, parts_of
from journal.nats.link import Link, Unreachable, status
from journal.nats.placement import Placement
from journal.nats.reader import Changed, Head, Turns
from journal.nats.stream import NO_SPACE, ApiError

_log = logging.getLogger(__name__)

PART_BYTES = 1 << 20
"""Longest message, where the server takes that: longer ones hold up its other clients."""
ENVELOPE_BYTES = 1024
"""Room for headers: the server counts them as payload."""
WINDOW_BYTES = 8 << 20
"""Bytes sent and not acknowledged."""
VANISH_S = 11.0
"""NATS lets a leader without a quorum believe in itself for 10 s (`lostQuorumInterval`)."""
_TICK_S = 0.25
_BACKOFF_S = (0.0, 0.05, 0.1, 0.2, 0.4)
_REMEMBERED = 64


class _Call:
    """One call of `append`."""

    def __init__(
        self, parts: Sequence[bytes], size: int, expected: int, future: asyncio.Future[int]
    ) -> None:
        self.parts = parts
        self.size = size
        self.expected = expected
        self.future = future

    def fail(self, error: BaseException) -> None:
        if not self.future.done():
            self.future.set_exception(error)


@dataclass(frozen=True, slots=True)
class _Seed:
    """With the payload, everything that makes the bytes of a batch's messages."""

    prev: bytes
    settled: int
    settled_digest: bytes
    part_bytes: int


class _Group:
    """One batch under way."""

    def __init__(self, call: _Call, seed: _Seed, now: float) -> None:
        self.call = call
        self.batch = call.expected + 1
        self.frames: list[bytes] = []
        self.digests: list[bytes] = []
        self.before = 0
        """Stream sequence that the first part has to follow."""
        self.missing: set[int] = set()
        """Parts that are not acknowledged."""
        self.attempt = 0
        self.began = now
        self.sent = now
        self.refusal: JournalError | None = None
        self.seed = seed

    @property
    def place(self) -> Place:
        return Place(self.batch, self.before + 1, self.before + len(self.frames), self.digests[-1])


class Appender:
    """Sends batches in the order of the calls."""

    def __init__(
        self,
        head: Head,
        link: Link,
        subject: str,
        *,
        depth: int,
        unknown_s: float,
        vanish_s: float = VANISH_S,
        on_stored: Callable[[int, float], None],
        on_conflict: Callable[[], None],
        on_failure: Callable[[BaseException | str], JournalError],
        placement: Placement | None = None,
    ) -> None:
        """`on_stored(size, seconds)`, `on_conflict()` for each; `on_failure` poisons.

        `placement` has the stream's leader moved; None where several nodes append all the time.
        """
        self._head = head
        self._link = link
        self._subject = subject
        self._depth = depth
        self._unknown_s = unknown_s
        self._vanish_s = vanish_s
        self._on_stored = on_stored
        self._on_conflict = on_conflict
        self._on_failure = on_failure
        self._placement = placement
        self._loop = asyncio.get_running_loop()
        self._nonce = os.urandom(NONCE_BYTES)
        self._queue: deque[_Call] = deque()
        self._flight: deque[_Group] = deque()
        self._outstanding = 0
        """Bytes that were sent and not answered."""
        self._changed = asyncio.Event()
        if placement is not None:
            placement.on_target = self._changed.set
        self._idle = asyncio.Event()
        self._idle.set()
        self._trouble: str | None = None
        self._tries = 0
        self._vanished: float | None = None
        self._failed: JournalError | None = None
        self._unsettled: dict[int, tuple[_Seed, bytes]] = {}
        """Batches that ended Unknown, and the digests of their last parts."""
        self._timer: asyncio.TimerHandle | None = None
        self._task = self._loop.create_task(self._run())

    def submit(self, parts: Sequence[bytes], size: int, expected: int) -> asyncio.Future[int]:
        future: asyncio.Future[int] = self._loop.create_future()
        # Nobody may be left to ask (a cancelled call).
        future.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._queue.append(_Call(parts, size, expected, future))
        self._idle.clear()
        self._changed.set()
        return future

    async def drain(self) -> None:
        """Wait until all that was submitted has been answered."""
        await self._idle.wait()

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.wait({self._task})
        if self._placement is not None:
            self._placement.stop()
        if self._timer is not None:
            self._timer.cancel()
        self.fail_all(JournalError("the journal is closed"))

    def fail_all(self, error: JournalError) -> None:
        self._failed = error
        for group in self._flight:
            group.call.fail(error)
        for call in self._queue:
            call.fail(error)
        self._flight.clear()
        self._queue.clear()
        self._outstanding = 0
        self._idle.set()

    # The one that sends

    async def _run(self) -> None:
        while True:
            try:
                await self._changed.wait()
                self._changed.clear()
                await self._step()
            except (Corrupt, IncompatibleVersion, Changed) as error:
                self.fail_all(self._on_failure(error))
            except asyncio.CancelledError:
                raise
            except BaseException as error:
                _log.exception("appending to %s", self._subject)
                self.fail_all(self._on_failure(error))
            if not self._queue and not self._flight:
                self._idle.set()

    async def _step(self) -> None:
        while True:
            if self._failed is not None:
                self.fail_all(self._failed)
                return
            if self._trouble is not None:
                await self._resolve()
                continue
            if self._placement is not None and self._placement.target is not None:
                if not self._flight:
                    await self._placement.move()
                    continue
                # Nothing new goes before what is under way has been answered.
                return
            if not self._queue or len(self._flight) >= self._depth:
                return
            call = self._queue[0]
            tail = self._flight[-1].batch if self._flight else self._head.chain.batch
            if (
                call.expected == tail
                and self._vanished is None
                and call.expected + 1 not in self._unsettled
            ):
                self._queue.popleft()
                await self._send(call)
                continue
            if self._flight:
                # What it should follow is decided when those have been answered.
                return
            if not await self._look(self._loop.time() + self._unknown_s):
                if self._failed is None:
                    self._queue.popleft()
                    call.fail(Unknown("the journal's tail cannot be found out"))
                continue
            if await self._known(call):
                self._queue.popleft()
                if not call.future.done():
                    call.future.set_result(call.expected + 1)
            elif call.expected == self._head.chain.batch:
                self._queue.popleft()
                await self._send(call)
            else:
                self._queue.popleft()
                self._refuse(call)

    async def _known(self, call: _Call) -> bool:
        """The same bytes at the same tail ended Unknown before, and have turned up since (R5)."""
        batch = call.expected + 1
        chain = self._head.chain
        if batch not in self._unsettled or chain.batch < batch:
            return False
        seed, digest = self._unsettled.pop(batch)
        if chain.digest_of(batch) != digest:
            return False
        last = b""
        turns = Turns()
        for frame, each in self._frames(call, seed):
            last = each
            await turns.after(len(frame))
        return last == digest

    def _refuse(self, call: _Call) -> None:
        self._on_conflict()
        call.fail(Conflict(call.expected, self._head.chain.batch))

    async def _send(self, call: _Call) -> None:
        head = self._head.chain
        if self._flight:
            last = self._flight[-1]
            prev, before = last.digests[-1], last.before + len(last.frames)
        else:
            prev, before = head.digest, head.sequence
        seed = _Seed(prev, head.batch, head.digest, self._part_bytes())
        if call.expected + 1 in self._unsettled:
            # One that ended Unknown may still be on its way: this has to be the same, byte for
            # byte, if it is to be known when it turns up.
            earlier, _ = self._unsettled.pop(call.expected + 1)
            if earlier.prev == prev:
                seed = earlier
        group = _Group(call, seed, self._loop.time())
        group.before = before
        group.missing = set(range(parts_of(call.size, seed.part_bytes)))
        self._flight.append(group)
        if self._timer is None:
            self._timer = self._loop.call_later(_TICK_S, self._tick)
        turns = Turns()
        for index, (frame, digest) in enumerate(self._frames(call, seed)):
            group.frames.append(frame)
            group.digests.append(digest)
            await self._publish(group, index)
            await turns.after(len(frame))
        call.parts = ()

    def _frames(self, call: _Call, seed: _Seed) -> Iterator[tuple[bytes, bytes]]:
        """The messages of a batch and their digests, made as they are asked for."""
        prev = seed.prev
        parts = parts_of(call.size, seed.part_bytes)
        for index, pieces in enumerate(cut(call.parts, call.size, seed.part_bytes)):
            frame, prev = encode(
                batch=call.expected + 1,
                part=index + 1,
                parts=parts,
                nonce=self._nonce,
                prev=prev,
                settled=seed.settled,
                settled_digest=seed.settled_digest,
                pieces=pieces,
            )
            yield frame, prev

    def _part_bytes(self) -> int:
        longest = min(self._link.max_payload or PART_BYTES, PART_BYTES)
        return longest - ENVELOPE_BYTES - HEADER_BYTES

    async def _publish(self, group: _Group, index: int) -> None:
        """Send one part, once there is room. What goes wrong shows as trouble."""
        frame = group.frames[index]
        while self._outstanding and self._outstanding + len(frame) > WINDOW_BYTES:
            if self._trouble is not None or self._failed is not None:
                return
            self._changed.clear()
            await self._changed.wait()
        if self._trouble is not None or self._failed is not None:
            return
        headers = {
            "Nats-Expected-Stream": self._head.stream.name,
            "Nats-Expected-Last-Sequence": str(group.before + index),
        }
        token: list[str] = []
        waiter = partial(self._answered, group, index, group.attempt, token)
        group.sent = self._loop.time()
        try:
            self._outstanding += len(frame)
            token.append(await self._link.post(self._subject, frame, waiter, headers))
        except Unreachable as error:
            self._fault(str(error))

    def _answered(
        self,
        group: _Group,
        index: int,
        attempt: int,
        token: list[str],
        message: Msg | Unreachable,
    ) -> None:
        """An acknowledgement, or what came in its place."""
        if token:
            self._link.forget(token[0])
        if attempt != group.attempt or not group.missing:
            return
        if isinstance(message, Unreachable):
            self._fault(str(message))
            return
        if status(message) is not None:
            self._fault("nobody at NATS takes messages for the stream")
            return
        try:
            answer = json.loads(message.data)
        except ValueError:
            self._fault("an answer that is no acknowledgement")
            return
        if (error := answer.get("error")) is not None:
            refusal = ApiError(error)
            if refusal.code in NO_SPACE:
                group.refusal = NoSpace(str(refusal))
            self._fault(str(refusal))
            return
        if answer.get("seq") != group.before + index + 1:
            self._fault(f"acknowledged at {answer.get('seq')}")
            return
        group.missing.discard(index)
        self._outstanding -= len(group.frames[index])
        self._changed.set()
        if not group.missing:
            self._settle()

    def _fault(self, what: str) -> None:
        if self._trouble is None:
            self._trouble = what
        self._changed.set()

    def _tick(self) -> None:
        self._timer = None
        if not self._flight:
            return
        oldest = self._flight[0]
        silent_s = self._loop.time() - oldest.sent
        if oldest.missing and silent_s > self._head.stream.attempt_s:
            self._link.strike(silent_s)
            self._fault("no acknowledgement")
        self._timer = self._loop.call_later(_TICK_S, self._tick)

    def _settle(self) -> None:
        """Answer what is acknowledged, as far as everything before it is."""
        while self._flight and not self._flight[0].missing:
            group = self._flight[0]
            self._head.stored(group.place)
            self._stored(group)

    def _stored(self, group: _Group) -> None:
        assert self._flight[0] is group
        self._flight.popleft()
        group.missing.clear()
        self._tries = 0
        self._changed.set()
        now = self._loop.time()
        self._on_stored(group.call.size, now - group.began)
        if self._placement is not None:
            self._placement.appended(now)
        if not group.call.future.done():
            group.call.future.set_result(group.batch)

    # When the outcome is unknown

    async def _look(self, deadline: float) -> bool:
        """Read what is new from the leader; False if that was not to be had before `deadline`."""
        while True:
            left = deadline - self._loop.time()
            if left <= 0:
                return False
            try:
                known = self._head.chain.sequence
                info = await self._head.look(patience_s=min(left, 2.0))
            except (Unreachable, ApiError):
                await asyncio.sleep(min(0.05, max(0.0, left)))
                continue
            if info.last >= known:
                self._vanished = None
                return True
            now = self._loop.time()
            if self._vanished is None:
                self._vanished = now
            if now - self._vanished >= self._vanish_s:
                what = (
                    f"data vanished: stream {self._head.stream.name} ends at {info.last}, and "
                    f"{known} was acknowledged"
                )
                self.fail_all(self._on_failure(what))
                return False
            await asyncio.sleep(0.25)

    async def _resolve(self) -> None:
        if not self._flight:
            self._trouble = None
            return
        self._tries += 1
        log = _log.warning if self._tries == 3 else _log.debug
        log("%s: %s; finding out what was stored", self._head.stream.name, self._trouble)
        await asyncio.sleep(_BACKOFF_S[min(self._tries, len(_BACKOFF_S)) - 1])
        # Answers to what is sent below count again.
        self._trouble = None
        deadline = self._flight[0].began + self._unknown_s if self._flight else 0.0
        found = await self._look(deadline)
        if not self._flight or self._failed is not None:
            return
        if not found:
            self._give_up()
            return
        chain = self._head.chain
        while self._flight and chain.batch >= self._flight[0].batch:
            group = self._flight[0]
            known = chain.digest_of(group.batch)
            if known is None:
                # Trimmed meanwhile, by another node, with what would have told.
                self._give_up()
                return
            if known != group.digests[-1]:
                self._overtaken()
                return
            self._stored(group)
        if not self._flight:
            self._trouble = None
            return
        first = self._flight[0]
        if chain.batch + 1 != first.batch:
            self._overtaken()
            return
        if first.refusal is not None and first.attempt == 0:
            # Sent once and refused: it is not there and will not be.
            self._flight.popleft()
            first.missing.clear()
            first.call.fail(first.refusal)
            self._overtaken()
            return
        if self._loop.time() > deadline:
            self._give_up()
            return
        await self._again()

    async def _again(self) -> None:
        """Send everything that is under way once more, behind what is there."""
        chain = self._head.chain
        self._trouble = None
        self._outstanding = 0
        # The beginning of the first one may be there.
        there = list(chain.under_way)
        first = self._flight[0]
        skip = len(there) if there == first.digests[: len(there)] else 0
        before = chain.sequence - skip
        groups = list(self._flight)
        for group in groups:
            group.attempt += 1
            group.before = before
            before += len(group.frames)
            done = skip if group is first else 0
            group.missing = set(range(done, len(group.frames)))
        turns = Turns()
        for group in groups:
            for index in sorted(group.missing):
                await self._publish(group, index)
                await turns.after(len(group.frames[index]))
                if self._stuck():
                    return

    def _stuck(self) -> bool:
        return self._trouble is not None or self._failed is not None

    def _overtaken(self) -> None:
        """Somebody else is ahead, or one failed: nothing behind it can be where it should."""
        while self._flight:
            group = self._flight.popleft()
            group.missing.clear()
            self._refuse(group.call)
        self._outstanding = 0
        self._trouble = None
        self._tries = 0

    def _give_up(self) -> None:
        error = f"no answer from NATS in {self._unknown_s:g} s ({self._trouble or 'no leader'})"
        while self._flight:
            group = self._flight.popleft()
            group.missing.clear()
            self._unsettled[group.batch] = (group.seed, group.digests[-1])
            if len(self._unsettled) > _REMEMBERED:
                del self._unsettled[next(iter(self._unsettled))]
            group.call.fail(Unknown(error))
        self._outstanding = 0
        self._trouble = None
        self._tries = 0
