"""Messages of a stream are handed over no faster than their answers are taken (I8)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kvstore.transport.inflow import Inflow
from kvstore.transport.seam import Code, Kind


class FakeStream:
    """A door's stream: its answers fill the room, and nothing is taken but by `drain`."""

    method = "/t.S/Bidi"

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.queued = 0
        self.full = False
        self.closed = False
        self.status = (Code.OK, "")
        self.credit = 0

    def send(self, message: bytes) -> None:
        self.queued += len(message)
        self.full = self.full or self.queued >= self.limit

    def drain(self) -> None:
        self.queued, self.full = 0, False

    def close(self, code: Code = Code.OK, message: str = "") -> None:
        self.closed, self.status = True, (code, message)

    def taken(self, credit: int) -> None:
        self.credit += credit


class Handler:
    """Notes what it is told; answers each message with ten bytes."""

    def __init__(self, stream: FakeStream) -> None:
        self.stream = stream
        self.told: list[str] = []

    def on_messages(self, messages: Sequence[bytes]) -> None:
        for message in messages:
            self.told.append(message.decode())
            self.stream.send(b"x" * 10)
            if message == b"close":
                self.stream.close()
            if message == b"fault":
                raise RuntimeError("a fault in the handler")

    def on_half_close(self) -> None:
        self.told.append("HALF")

    def on_room(self) -> None:
        self.told.append("ROOM")

    def on_closed(self) -> None:
        self.told.append("CLOSED")


class Rig:
    """An inflow with room for so many answers, and the loop's next step on demand."""

    def __init__(self, answers: int) -> None:
        self.stream = FakeStream(10 * answers)
        self.handler = Handler(self.stream)
        self.steps: list[Callable[[], None]] = []
        self.inflow = Inflow(
            self.stream,  # type: ignore[arg-type]
            self.handler,
            Kind.BIDI_STREAM,
            self.steps.append,
        )

    def messages(self, text: str, credit: int = 100) -> None:
        self.inflow.messages([word.encode() for word in text.split()], credit)

    def step(self) -> None:
        steps, self.steps[:] = self.steps[:], []
        for step in steps:
            step()

    def room(self) -> None:
        self.stream.drain()
        self.inflow.room()

    def told(self) -> str:
        told = " ".join(self.handler.told)
        self.handler.told.clear()
        return told


def test_with_room_everything_is_handed_over_at_once() -> None:
    rig = Rig(100)
    rig.messages("a b c")
    rig.messages("d")
    rig.inflow.half_closed()
    assert rig.told() == "a b c d HALF"
    assert rig.stream.credit == 200
    assert not rig.steps


def test_what_has_no_room_waits_and_keeps_its_credit_and_its_order() -> None:
    rig = Rig(2)
    rig.messages("a b c d e", 100)
    rig.messages("f", 10)
    rig.inflow.half_closed()
    assert rig.told() == "a b"
    assert rig.stream.credit == 0
    rig.room()
    assert rig.told() == "c d ROOM"
    assert not rig.steps
    rig.room()
    # A batch, then whoever else has waited for room, then the rest in a step of its own (I9).
    assert rig.told() == "e ROOM"
    assert rig.stream.credit == 100
    rig.messages("g h", 1)
    rig.step()
    assert rig.told() == "f"
    assert rig.stream.credit == 110
    rig.step()
    assert not rig.steps
    rig.room()
    assert rig.told() == "g h HALF ROOM"
    assert rig.stream.credit == 111


def test_each_room_is_for_one_message_at_least() -> None:
    """Events that never end may have filled it again before its turn came."""
    rig = Rig(1)
    rig.messages("a b c")
    assert rig.told() == "a"
    rig.stream.drain()
    rig.stream.send(b"x" * 10)
    rig.inflow.room()
    assert rig.told() == "b ROOM"
    rig.messages("d")
    assert not rig.steps


def test_a_room_that_was_filled_before_the_next_step_is_waited_for() -> None:
    rig = Rig(1)
    rig.messages("a")
    rig.messages("b")
    rig.messages("c")
    rig.stream.limit = 20
    rig.room()
    assert rig.told() == "a b ROOM"
    rig.stream.send(b"x" * 10)
    rig.step()
    assert rig.told() == ""
    rig.room()
    assert rig.told() == "c ROOM"


def test_what_waits_when_the_stream_ends_is_dropped() -> None:
    rig = Rig(1)
    rig.messages("a b close")
    rig.messages("d")
    rig.inflow.half_closed()
    rig.inflow.closed()
    rig.step()
    assert rig.told() == "a CLOSED"

    rig = Rig(1)
    rig.messages("a close b")
    rig.messages("c")
    rig.inflow.half_closed()
    rig.room()
    rig.messages("d")
    rig.room()
    rig.inflow.half_closed()
    rig.inflow.closed()
    rig.step()
    assert rig.told() == "a close CLOSED"
    assert rig.stream.credit == 0


def test_a_fault_ends_its_stream() -> None:
    rig = Rig(100)
    rig.messages("a fault b")
    rig.inflow.closed()
    assert rig.told() == "a fault CLOSED"
    assert rig.stream.status[0] is Code.INTERNAL
