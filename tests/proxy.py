"""TCP proxies that fail on demand: what is between a client and its server.

A `Proxy` runs on the loop that starts it. `Way` is several of them on a loop in a thread of its
own, for processes that are started before there is a loop.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

_T = TypeVar("_T")


class Proxy:
    """Between a client and a server; can swallow what the server says, cut, refuse and stall."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.deaf = False
        """What the server says is swallowed."""
        self.refusing = False
        self._open = asyncio.Event()
        self._open.set()
        self._writers: set[asyncio.StreamWriter] = set()

    async def start(self) -> int:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return int(self._server.sockets[0].getsockname()[1])

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.refusing:
            writer.transport.abort()
            return
        self._writers.add(writer)
        try:
            await self._open.wait()
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.transport.abort()
            return
        self._writers.add(up_writer)
        await asyncio.gather(
            self._pump(reader, up_writer, lambda: False),
            self._pump(up_reader, writer, lambda: self.deaf),
        )
        self._writers -= {writer, up_writer}

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, drop: Callable[[], bool]
    ) -> None:
        try:
            while data := await reader.read(65536):
                await self._open.wait()
                if not drop():
                    writer.write(data)
                    await writer.drain()
            await self._open.wait()
        except OSError:
            pass
        finally:
            writer.close()

    def cut(self) -> None:
        """Reset every connection; new ones are taken."""
        for writer in self._writers:
            if writer.transport is not None:
                writer.transport.abort()
        self._writers.clear()

    def refuse(self) -> None:
        """Reset every connection, and each new one at once."""
        self.refusing = True
        self.cut()

    def stall(self) -> None:
        """A black hole: nothing gets through, nothing is closed.

        What is sent meanwhile arrives late, when it heals, as what TCP sends again would.
        """
        self._open.clear()

    def heal(self) -> None:
        """Undo `refuse` and `stall`."""
        self.refusing = False
        self._open.set()

    def stop(self) -> None:
        self._server.close()
        self.cut()
        self._open.set()


class Way:
    """A proxy for each of several servers, which one client has to itself."""

    def __init__(self, targets: Sequence[int]) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.ports: list[int] = self._run(self._start(targets))

    async def _start(self, targets: Sequence[int]) -> list[int]:
        self._proxies = [Proxy(target) for target in targets]
        return [await proxy.start() for proxy in self._proxies]

    @property
    def endpoints(self) -> str:
        """``host:port,host:port,...``, as a journal's URL has them."""
        return ",".join(f"127.0.0.1:{port}" for port in self.ports)

    def refuse(self) -> None:
        """See Proxy."""
        self._each(Proxy.refuse)

    def stall(self) -> None:
        """See Proxy."""
        self._each(Proxy.stall)

    def heal(self) -> None:
        """See Proxy."""
        self._each(Proxy.heal)

    def stop(self) -> None:
        self._each(Proxy.stop)
        self._run(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _end(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    def _each(self, do: Callable[[Proxy], None]) -> None:
        async def all_of_them() -> None:
            for proxy in self._proxies:
                do(proxy)

        self._run(all_of_them())

    def _run(self, work: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)
