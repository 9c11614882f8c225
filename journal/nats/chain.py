"""Which messages of a stream make up the journal: a pure function of the stream.

Theory of operation. The server stores a message if the stream's last sequence is the one that its
writer expects. With several messages under way that alone is no fence: if a stranger takes the
place of the first, the first is refused, but the second now finds the last sequence that it
expects, and is stored. So a message's *place* proves nothing, and what counts is decided by what
it says it continues:

1. A message whose digest is wrong is damage (`frames.decode`).
2. What a writer knew to be stored (`settled`) must be part of the journal. If it is not, then an
   acknowledged batch has disappeared, or has been replaced: damage. (I10)
3. Part 1 of batch N+1 that continues the last part of batch N begins a group. The next part of
   that group, in the very next message, carries it on; the last part completes batch N+1.
4. Anything else is void: a straggler of a pipeline that was overtaken, or the repetition of a
   message that is there already. A group that is followed by anything else than its next part
   is void too.

Every reader comes to the same result, and so does the writer, which takes an acknowledgement for
true only if everything before it is (`appender`). A message that has nothing else under way
before it has `settled` right before it, so rule 2 then leaves no room for a missing predecessor.

Synchronous, no I/O.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from journal.nats.frames import BadFrame, Frame, decode

RECENT = 256
"""Digests kept to check `settled` against; more batches than that are never under way."""


class Gap(Exception):
    """A sequence is missing in what was fed."""

    def __init__(self, expected: int, found: int) -> None:
        super().__init__(f"message {expected} is missing, {found} comes next")
        self.expected = expected
        self.found = found


@dataclass(frozen=True, slots=True)
class Place:
    """Where one batch lies in the stream."""

    batch: int
    first: int
    """Stream sequence of its first part."""
    last: int
    digest: bytes
    """Of its last part."""


@dataclass(slots=True)
class _Group:
    frame: Frame
    """The newest part."""
    first: int
    digests: list[bytes]
    payloads: list[bytes]


class Chain:
    """Fed with messages in order, tells which batches they complete.

    `keep` says whether the payloads are wanted too.
    """

    def __init__(self, batch: int, digest: bytes, sequence: int, *, keep: bool = True) -> None:
        """Begin behind `batch`, which ends (`digest`) at or before the stream's `sequence`."""
        self.batch = batch
        """The last batch; 0 before the first."""
        self.digest = digest
        self.sequence = sequence
        """The last message that was looked at, void ones included."""
        self.void = 0
        """Messages that count for nothing, so far."""
        self._keep = keep
        self._recent = {batch: digest}
        self._open: _Group | None = None

    def feed(self, sequence: int, data: bytes) -> tuple[Place, Sequence[bytes]] | None:
        """The next message; the batch that it completes, with the payloads of its parts.

        Raises Gap, BadFrame, NewerFrame, and is unchanged then.
        """
        if sequence != self.sequence + 1:
            raise Gap(self.sequence + 1, sequence)
        frame = decode(data)
        self._check_settled(frame)
        self.sequence = sequence
        group = self._open
        if group is not None and _continues(group.frame, frame):
            group.frame = frame
        else:
            if group is not None:
                self.void += len(group.digests)
            if (frame.batch, frame.part, frame.prev) != (self.batch + 1, 1, self.digest):
                self._open = None
                self.void += 1
                return None
            self._open = group = _Group(frame, sequence, [], [])
        group.digests.append(frame.digest)
        if self._keep:
            group.payloads.append(frame.payload)
        if frame.part < frame.parts:
            return None
        place = Place(frame.batch, group.first, sequence, frame.digest)
        self._advance(place)
        return place, group.payloads

    def jump(self, place: Place) -> None:
        """A batch that is known to be there by other means, if it is news."""
        if place.last > self.sequence:
            self.sequence = place.last
            self._advance(place)

    def digest_of(self, batch: int) -> bytes | None:
        """The digest of a recent batch."""
        return self._recent.get(batch)

    @property
    def under_way(self) -> Sequence[bytes]:
        """Digests of the parts of a group that the next message may carry on."""
        return self._open.digests if self._open is not None else ()

    def _advance(self, place: Place) -> None:
        self._open = None
        self.batch = place.batch
        self.digest = place.digest
        self._recent[place.batch] = place.digest
        if len(self._recent) > RECENT:
            del self._recent[next(iter(self._recent))]

    def _check_settled(self, frame: Frame) -> None:
        if frame.settled > self.batch:
            raise BadFrame(
                f"its writer knew batch {frame.settled}, the journal ends at {self.batch} here: "
                f"acknowledged batches have disappeared"
            )
        known = self._recent.get(frame.settled)
        if known is not None and known != frame.settled_digest:
            raise BadFrame(
                f"its writer knew another batch {frame.settled}: an acknowledged batch was replaced"
            )


def _continues(last: Frame, frame: Frame) -> bool:
    return (
        frame.prev == last.digest
        and frame.part == last.part + 1
        and (frame.batch, frame.parts, frame.nonce) == (last.batch, last.parts, last.nonce)
    )


class Places:
    """Where recent batches lie; bounded, forgets the oldest."""

    def __init__(self, entries_max: int = 4096) -> None:
        self._max = entries_max
        self._places: dict[int, Place] = {}

    def add(self, place: Place) -> None:
        places = self._places
        if place.batch not in places:
            places[place.batch] = place
            if len(places) > self._max:
                del places[next(iter(places))]

    def get(self, batch: int) -> Place | None:
        return self._places.get(batch)

    def __len__(self) -> int:
        return len(self._places)
