"""Finding one's place in a journal's stream, and walking it from there.

`Head` is what this process knows of the journal's end. It goes forward with every append, with
every request that finds something new, and with what the server tells of stored messages.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence

from journal.contract import Corrupt, Entry, IncompatibleVersion, JournalError, Trimmed
from journal.nats.chain import Chain, Gap, Place, Places
from journal.nats.frames import BadFrame, Frame, NewerFrame, decode, root
from journal.nats.stream import Info, Missing, Stored, Stream

ADVICE = (
    "Compare the replicas of the stream, or restore jotd from a snapshot or a backup into a new "
    "journal"
)
STEP_BYTES = 1 << 20
STEP_ENTRIES = 1024
JOIN_BYTES = 1 << 20
"""A batch above that is put together on another thread: memory that is new is slow to touch."""
_TURN_BYTES = 512 << 10
_TURN_MESSAGES = 64
_NEAR = 64


class Changed(JournalError):
    """The stream is not the one that was opened."""


class Turns:
    """Lets others run after so much work (I9)."""

    def __init__(self) -> None:
        self._bytes = 0
        self._messages = 0

    async def after(self, size: int) -> None:
        self._bytes += size
        self._messages += 1
        if self._bytes >= _TURN_BYTES or self._messages >= _TURN_MESSAGES:
            self._bytes = self._messages = 0
            await asyncio.sleep(0)


async def joined(parts: Sequence[bytes]) -> bytes:
    if len(parts) == 1:
        return parts[0]
    if sum(map(len, parts)) < JOIN_BYTES:
        return b"".join(parts)
    return await asyncio.get_running_loop().run_in_executor(None, b"".join, parts)


class Head:
    """The end of the journal, as far as it is known here, and the places of recent batches."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.identity = b""
        self.places = Places()
        self.chain = Chain(0, b"", 0, keep=False)
        self.oldest = 1
        """The first batch that is kept."""
        self.first = 1
        """The first message that is kept."""
        self.info: Info | None = None
        """The newest."""
        self._created = ""

    # Opening

    async def open(self, info: Info, identity: bytes) -> None:
        """Find the tail. Corrupt, IncompatibleVersion, Unreachable."""
        self.identity = identity
        self._created = info.created
        self.chain = Chain(0, root(identity), 0, keep=False)
        self.info = info
        if info.messages == 0:
            if info.last:
                what = "the stream was emptied, and not by a trim, which leaves the last batch"
                raise Corrupt(self.stream.name, info.last, what, ADVICE)
            return
        await self.note_first(info)
        self.chain = await self._anchor(None, info, keep=False)
        await self.advance(info.last)

    # Going forward

    async def look(self, *, patience_s: float | None = None) -> Info:
        """Ask the leader for the last message, read what is new. One request if nothing is."""
        info = await self.stream.info(patience_s=patience_s)
        self.check(info)
        self.info = info
        if info.messages:
            if info.first > self.chain.sequence + 1:
                # Trimmed by another node beyond what was known here.
                await self.note_first(info)
                self.chain = await self._anchor(None, info, keep=False)
            await self.advance(info.last)
            if info.first != self.first:
                await self.note_first(info)
        return info

    def check(self, info: Info) -> None:
        """Changed, if it is another stream."""
        if info.created != self._created:
            raise Changed(
                f"stream {self.stream.name} was made anew: created {info.created}, "
                f"{self._created} when it was opened"
            )

    async def advance(self, last: int) -> None:
        turns = Turns()
        while self.chain.sequence < last:
            try:
                async for messages in self.stream.messages(self.chain.sequence + 1, last):
                    for message in messages:
                        self.note(message)
                        await turns.after(len(message.data))
            except Missing as error:
                raise self._damage(error.sequence, str(error)) from None

    def note(self, message: Stored) -> None:
        """A message that is stored. What was looked at already is passed over. Corrupt."""
        chain = self.chain
        if message.sequence <= chain.sequence:
            return
        done = self.feed(chain, message)
        if done is not None:
            self.places.add(done[0])

    def feed(self, chain: Chain, message: Stored) -> tuple[Place, Sequence[bytes]] | None:
        """`Chain.feed` with the contract's errors."""
        try:
            return chain.feed(message.sequence, message.data)
        except BadFrame as bad:
            raise self._damage(message.sequence, str(bad)) from None
        except Gap as gap:
            raise self._damage(gap.expected, str(gap)) from None
        except NewerFrame as newer:
            raise IncompatibleVersion(self.stream.name, newer.found) from None

    def stored(self, place: Place) -> None:
        """A batch that is known to be stored: acknowledged, or read."""
        self.chain.jump(place)
        self.places.add(place)

    def _damage(self, sequence: int, what: str) -> Corrupt:
        return Corrupt(self.stream.name, sequence, what, ADVICE)

    async def note_first(self, info: Info) -> None:
        """Learn where the journal begins now."""
        frame = await self._frame(info.first)
        if frame.part != 1:
            what = "the first message that is kept is in the middle of a batch"
            raise self._damage(info.first, what)
        self.first, self.oldest = info.first, frame.batch

    # Finding a place

    async def _frame(self, sequence: int) -> Frame:
        async for messages in self.stream.messages(sequence, sequence):
            try:
                return decode(messages[0].data)
            except BadFrame as bad:
                raise self._damage(sequence, str(bad)) from None
            except NewerFrame as newer:
                raise IncompatibleVersion(self.stream.name, newer.found) from None
        raise AssertionError("not reached")

    async def start(self, after: int, info: Info) -> Chain:
        """A chain at `after`, or before it if that is what can be found. Payloads are kept."""
        if after == 0 and info.first <= 1:
            return Chain(0, root(self.identity), 0)
        place = self.places.get(after)
        if place is not None and place.last + 1 >= info.first:
            return Chain(after, place.digest, place.last)
        return await self._anchor(after, info, keep=True)

    async def _anchor(self, after: int | None, info: Info, *, keep: bool) -> Chain:
        """A place from where to walk: a batch at or before `after` that is surely in the journal.

        Without `after`, near the end. What a writer knew to be stored is; so one message found by
        bisection names a batch, and that one is close before. Where no such batch can be found,
        the walk begins at the first message, which a trim has left at the beginning of a batch.
        """
        first, last = info.first, info.last
        frame = await self._frame(first)
        if frame.batch == 1 and frame.prev != root(self.identity):
            raise self._damage(first, "the first batch is of another journal")
        beginning = Chain(frame.batch - 1, frame.prev, first - 1, keep=keep)
        if after is not None and after <= beginning.batch:
            return beginning
        low, high = (last, last + 1) if after is None else await self._bisect(after, first, last)
        for probe in (high, low):
            if probe > last:
                continue
            frame = await self._frame(probe)
            if frame.settled <= beginning.batch or (after is not None and frame.settled > after):
                continue
            at = await self._find(frame.settled, frame.settled_digest, first, last)
            if at is not None:
                return Chain(frame.settled, frame.settled_digest, at, keep=keep)
        return beginning

    async def _bisect(self, batch: int, first: int, last: int) -> tuple[int, int]:
        """(s, s+1): message s is of `batch` or one before it, message s+1 is of a later one.

        Void messages make that untrue elsewhere, by less than a pipeline's length, so the result
        is a guess that its user has to check.
        """
        low, high = first, last + 1
        while high - low > 1:
            middle = (low + high) // 2
            if (await self._frame(middle)).batch <= batch:
                low = middle
            else:
                high = middle
        return low, high

    async def _find(self, batch: int, digest: bytes, first: int, last: int) -> int | None:
        """The sequence of the message with this digest, the last part of this batch."""
        low, _ = await self._bisect(batch, first, last)
        for sequence in range(min(low + 1, last), max(first, low - _NEAR) - 1, -1):
            if (await self._frame(sequence)).digest == digest:
                return sequence
        return None

    async def first_of(self, batch: int, info: Info) -> int:
        """The stream sequence of the first part of a batch, which is in the journal."""
        place = self.places.get(batch)
        if place is None:
            chain = await self._anchor(batch - 1, info, keep=False)
            turns = Turns()
            async for messages in self.stream.messages(chain.sequence + 1, info.last):
                for message in messages:
                    done = self.feed(chain, message)
                    await turns.after(len(message.data))
                    if done is not None and done[0].batch == batch:
                        return done[0].first
            raise self._damage(info.last, f"batch {batch} cannot be found")
        return place.first

    # Reading

    async def walk(
        self, chain: Chain, after: int, upto: int, last: int
    ) -> AsyncIterator[list[Entry]]:
        """Entries in (after, upto] with `chain` going forward up to message `last`."""
        turns = Turns()
        entries: list[Entry] = []
        size = 0
        try:
            async for messages in self.stream.messages(chain.sequence + 1, last):
                for message in messages:
                    done = self.feed(chain, message)
                    await turns.after(len(message.data))
                    if done is not None:
                        self.stored(done[0])
                    if done is None or not after < done[0].batch <= upto:
                        continue
                    payload = await joined(done[1])
                    entries.append(Entry(done[0].batch, payload))
                    size += len(payload)
                    if size >= STEP_BYTES or len(entries) >= STEP_ENTRIES:
                        yield entries
                        entries, size = [], 0
        except Missing as error:
            info = await self.stream.info()
            if info.first > error.sequence:
                await self.note_first(info)
                raise Trimmed(max(after, chain.batch), self.oldest) from None
            raise self._damage(error.sequence, str(error)) from None
        if entries:
            yield entries

    async def live(
        self, chain: Chain, told: deque[Stored], take: Callable[[], Stored], after: int
    ) -> tuple[list[Entry], int]:
        """(entries, how far to read from the stream) of messages that the server told of.

        In order and without a gap from where `chain` is, or not at all. `take` takes the first.
        """
        entries: list[Entry] = []
        size = 0
        turns = Turns()
        while told and size < STEP_BYTES and len(entries) < STEP_ENTRIES:
            if told[0].sequence > chain.sequence + 1:
                return entries, told[0].sequence - 1
            message = take()
            if message.sequence <= chain.sequence:
                continue
            done = self.feed(chain, message)
            await turns.after(len(message.data))
            if done is not None:
                self.stored(done[0])
                if done[0].batch > after:
                    payload = await joined(done[1])
                    entries.append(Entry(done[0].batch, payload))
                    size += len(payload)
        return entries, 0
