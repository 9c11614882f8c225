"""Progress on one watch stream, where it has to wait (I4, R7)."""

from __future__ import annotations

import gc
import weakref
from typing import Any

from kvstore.pb import rpc_pb2 as pb
from tests.unit.node.world import FakeStream, run, settle, world

ASK = pb.WatchRequest(progress_request=pb.WatchProgressRequest())


def watch(stream: FakeStream, key: bytes, **fields: Any) -> None:
    stream.say(pb.WatchRequest(create_request=pb.WatchCreateRequest(key=key, **fields)))
    assert stream.take()[0].created


def cancel(stream: FakeStream, watch_id: int) -> None:
    stream.say(pb.WatchRequest(cancel_request=pb.WatchCancelRequest(watch_id=watch_id)))


def answers(stream: FakeStream) -> list[int]:
    """Revisions of the answers to manual requests."""
    return [one.header.revision for one in stream.take() if one.watch_id == -1]


def test_progress_waits_for_a_watch_that_starts_in_the_future_as_long_as_it_is_there() -> None:
    async def main() -> None:
        async with world() as w:
            stream = w.watch_stream()
            watch(stream, b"a")
            watch(stream, b"b", start_revision=5)
            watch(stream, b"c", start_revision=9)
            stream.say(ASK)
            assert answers(stream) == []
            cancel(stream, 2)
            assert answers(stream) == []
            cancel(stream, 1)
            assert answers(stream) == [1]
            watch(stream, b"b", start_revision=3)
            for _ in range(2):
                await w.put(b"x")
            stream.say(ASK)
            assert answers(stream) == [3]

    run(main)


def test_progress_is_told_when_the_watermark_gets_there_without_events_for_the_stream() -> None:
    async def main() -> None:
        async with world() as w:
            stream = w.watch_stream()
            watch(stream, b"a", start_revision=3)
            stream.say(ASK)
            stream.say(ASK)
            await w.put(b"x")
            await settle()
            assert answers(stream) == []
            await w.put(b"x")
            await settle()
            assert answers(stream) == [3]
            assert not w.node.hub._calls

    run(main)


def test_a_stream_that_has_ended_hears_nothing_and_leaves_nothing_behind() -> None:
    async def main() -> None:
        async with world() as w:
            hub = w.node.hub
            stream = w.watch_stream(room=0)
            for key in (b"a", b"b"):
                watch(stream, key)
            await w.put(b"a")
            await settle()
            assert (hub.watchers, hub.slow) == (2, 1)
            stream.close()
            await w.put(b"b")
            await settle()
            assert (hub.watchers, hub.slow, hub.events) == (0, 0, 0)
            assert not stream.messages

    run(main)


def test_a_stream_that_has_ended_needs_no_collector() -> None:
    """R11: what has lived for long is never collected, so a cycle would stay for good."""

    async def main() -> None:
        async with world() as w:
            stream = w.watch_stream()
            watch(stream, b"a", progress_notify=True)
            await w.put(b"a")
            gc.collect()
            gc.disable()
            try:
                ended = weakref.ref(stream.handler)
                stream.close()
                await settle()
                stream.handler = None
                assert ended() is None
            finally:
                gc.enable()

    run(main)
