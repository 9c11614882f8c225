"""RangeStream (etcd 3.7): one range in chunks, at one pinned revision.

The client sets the pace, so nothing is pinned from one chunk to the next: each resumes by key, and
a stream that compaction overtakes ends with Compacted, as in etcd. While one chunk is made, in
slices that the server paces, its revision is pinned (R10).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from google.protobuf.message import DecodeError

from kvstore.api import checks, errors
from kvstore.api.headers import Headers
from kvstore.api.ranges import KeyValues, StoreReader, bounds
from kvstore.api.requests import Range, read_range
from kvstore.api.tally import Tally
from kvstore.mvcc.errors import StoreError
from kvstore.mvcc.store import SLICE, Steps, Store
from kvstore.mvcc.version import Version
from kvstore.mvcc.wire import varint
from kvstore.node.slicer import Slicer
from kvstore.transport.seam import Code, Stream

FIRST_CHUNK_KEYS = 10
CHUNK_KEYS_MAX = 10_000


class RangeStream:
    """The server's side of one RangeStream (a seam StreamHandler)."""

    def __init__(
        self,
        stream: Stream,
        store: Store,
        slicer: Slicer,
        headers: Headers,
        now: Callable[[], float],
        chunk_bytes: int,
        tally: Tally,
    ) -> None:
        self._stream = stream
        self._store = store
        self._slicer = slicer
        self._headers = headers
        self._now = now
        self._chunk_bytes = chunk_bytes
        self._tally = tally
        self._request: Range | None = None
        self._running = False
        self._closed = False
        self._low = b""
        self._high: bytes | None = None
        self._revision = 0
        self._header_revision = 0
        self._sent = 0
        self._chunk_keys = FIRST_CHUNK_KEYS

    def on_messages(self, messages: Sequence[bytes]) -> None:
        """The one request of the stream."""
        for raw in messages:
            if self._request is not None:
                return
            try:
                request = read_range(raw)
                checks.check_range_stream(request)
                self._revision = self._store.read_revision(request.revision)
            except DecodeError as error:
                self._fail(errors.malformed_message(error))
                return
            except (errors.ApiError, StoreError) as error:
                self._fail(error)
                return
            self._request = request
            self._header_revision = self._store.revision
            self._low, self._high = bounds(request.key, request.range_end)
            self._run()

    def on_half_close(self) -> None:
        """The request was all."""

    def on_room(self) -> None:
        """The client took a chunk: make the next."""
        self._run()

    def on_closed(self) -> None:
        """The stream is over."""
        self._closed = True

    def _fail(self, error: Exception) -> None:
        answer = errors.to_api_error(error)
        self._stream.close(answer.code, answer.message)

    def _run(self) -> None:
        if self._request is not None and not self._running and not self._closed:
            self._running = True
            self._slicer.start(self._chunk_steps(self._request), self._ran)

    def _ran(self, result: None, error: BaseException | None) -> None:
        self._running = False
        if isinstance(error, StoreError):
            self._fail(error)
        elif error is not None:
            self._stream.close(Code.INTERNAL, "range stream failed")
            raise error

    def _chunk_steps(self, request: Range) -> Steps[None]:
        while not self._over() and self._stream.room > 0:
            self._store.read_revision(self._revision)
            pin = self._store.pins.take(self._revision, self._now())
            try:
                answer, last = yield from self._answer_steps(request)
                pin.check()
            finally:
                self._store.pins.release(pin)
            if self._over():
                return
            nbytes = self._send(answer)
            if last:
                self._closed = True
                self._stream.close()
                return
            self._adjust(nbytes)
            yield

    def _over(self) -> bool:
        return self._closed

    def _answer_steps(self, request: Range) -> Steps[tuple[bytes, bool]]:
        """The next chunk, and whether it is the last."""
        reader = StoreReader(self._store, self._now())
        self._tally.ranges += 1
        if request.count_only:
            count = yield from reader.count_steps(self._low, self._high, self._revision)
            return KeyValues(request, self._header()).finish(False, count), True
        limit = max(request.limit, 0)
        size = min(self._chunk_keys, limit - self._sent) if limit else self._chunk_keys
        found: list[Version] = []
        yield from reader.range_steps(self._low, self._high, self._revision, size + 1, found.extend)
        kept = self._fitting(found, size)
        more = len(found) > kept
        found = found[:kept]
        self._sent += len(found)
        if found:
            self._low = found[-1].key + b"\x00"
        last = not more or self._sent == limit
        answer = KeyValues(request, self._header() if last else b"")
        for at in range(0, len(found), SLICE):
            answer.add(found[at : at + SLICE])
            if at + SLICE < len(found):
                yield
        if not last:
            return answer.finish(False, 0), False
        count = self._sent
        if more:
            count += yield from reader.count_steps(self._low, self._high, self._revision)
        return answer.finish(more, count), True

    def _fitting(self, found: list[Version], size: int) -> int:
        """How many of them make this chunk: `size`, or fewer if they are long (I8).

        What the chunk before weighed says little when small objects stand before big ones.
        """
        nbytes = 0
        for at, version in enumerate(found[:size]):
            nbytes += len(version.framed)
            if nbytes > 2 * self._chunk_bytes and at:
                return at
        return min(size, len(found))

    def _adjust(self, nbytes: int) -> None:
        """Aim at chunks of about `--max-request-bytes`, doubling and halving as etcd does."""
        if nbytes < self._chunk_bytes // 2:
            self._chunk_keys = min(self._chunk_keys * 2, CHUNK_KEYS_MAX)
        elif nbytes > self._chunk_bytes * 2:
            self._chunk_keys = max(self._chunk_keys // 2, 1)

    def _header(self) -> bytes:
        return self._headers.at(self._header_revision)

    def _send(self, response: bytes) -> int:
        self._stream.send(b"\x0a%b%b" % (varint(len(response)), response))
        return len(response)
