"""What a client of the native door says on a stream, no faster than it takes the answers.

The door stops reading a stream that is full, but it fills only when Python answers, and by then the
door may have read a whole window of messages more. They wait here until there is room, one by one,
as those of grpc.aio wait in its own windows; and the client may not send others in their place
before. So one that does not read costs what is queued for it, and a window of what it said (I8).
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from kvstore.transport.seam import INTERNAL, Code, Kind, StreamHandler

if TYPE_CHECKING:
    from jotd_native import Stream

log = logging.getLogger(__name__)


class Inflow:
    """One open stream: the events that the door has for its handler, in order.

    `later` calls what it is given in a later step of the loop.
    """

    __slots__ = ("_half_closed", "_handler", "_later", "_scheduled", "_waiting", "kind", "stream")

    def __init__(
        self,
        stream: Stream,
        handler: StreamHandler,
        kind: Kind,
        later: Callable[[Callable[[], None]], object],
    ) -> None:
        self.stream = stream
        self.kind = kind
        self._handler = handler
        self._later = later
        # Messages that came together, and their credit: bytes that the client may send again when
        # the last of them was handed over. Never an empty list.
        self._waiting: deque[tuple[list[bytes], int]] = deque()
        self._half_closed = False
        """The client will say no more than what waits."""
        self._scheduled = False

    def messages(self, messages: list[bytes], credit: int) -> None:
        """Messages, at least one; `credit` is their weight in the client's window, in bytes."""
        if self.stream.closed:
            return
        if self._waiting or self.stream.full:
            self._waiting.append((messages, credit))
        else:
            self._hand_over(messages, credit)

    def half_closed(self) -> None:
        """The client will say no more."""
        if self._waiting:
            self._half_closed = True
        elif not self.stream.closed:
            self._tell(self._handler.on_half_close)

    def room(self) -> None:
        """There is room again after the stream was full.

        The first of what waits, one message at least, goes before the handler hears of it: events
        without end would take all of the room, and a cancel of them would never be read.
        """
        if self._waiting:
            self._go_on()
        if not self.stream.closed:
            self._tell(self._handler.on_room)

    def closed(self) -> None:
        """The stream is over, and what waits is of no interest."""
        self._waiting.clear()
        self._tell(self._handler.on_closed)

    def _go_on(self) -> None:
        """Hands over what came together, and the rest in steps of their own (I9)."""
        if not self.stream.closed:
            self._hand_over(*self._waiting.popleft())
        if self.stream.closed:
            self._waiting.clear()
        elif not self._waiting:
            if self._half_closed:
                self._tell(self._handler.on_half_close)
        elif not self.stream.full and not self._scheduled:
            self._scheduled = True
            self._later(self._again)

    def _again(self) -> None:
        self._scheduled = False
        # If it is full again, the door will say when there is room.
        if self._waiting and not self.stream.full:
            self._go_on()

    def _hand_over(self, messages: list[bytes], credit: int) -> None:
        stream = self.stream
        for count, message in enumerate(messages, 1):
            self._tell(self._handler.on_messages, (message,))
            if stream.closed:
                return
            if count < len(messages) and stream.full:
                self._waiting.appendleft((messages[count:], credit))
                return
        stream.taken(credit)

    def _tell(self, method: Callable[..., None], *args: object) -> None:
        """Calls the handler; what it raises ends this stream and nothing else."""
        try:
            method(*args)
        except Exception:
            log.exception("%s: the stream's handler failed", self.stream.method)
            self.stream.close(Code.INTERNAL, INTERNAL)
