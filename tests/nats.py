"""A real cluster of NATS servers for tests: three processes, JetStream, every write synced.

`NatsCluster` starts them, kills and restarts each by itself, and says which one leads a stream.
What it does by the JetStream API it does on a loop in a thread of its own, so it can be used from
inside a test's loop and from outside.
"""

from __future__ import annotations

import asyncio
import atexit
import json
import shutil
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

from bench.programs import free_ports
from tests.peers import Process, StartError, require

_T = TypeVar("_T")

READY_SECONDS_MAX = 60.0
MAX_PAYLOAD = 8 << 20


class NatsServer(Process):
    """One server; it keeps its ports, its name and its data over restarts."""

    def __init__(self, name: str, port: int, directory: Path, config: Path) -> None:
        super().__init__(
            name,
            [str(require("nats-server")), "-c", str(config)],
            directory / f"{name}.log",
            url=f"nats://127.0.0.1:{port}",
            ready=lambda process: "Server is ready" in process.log_text(),
        )
        self.store = directory / name


class NatsCluster:
    """`count` servers of one cluster under `directory` (one that is removed at exit, if None).

    `extra` goes into every server's configuration. `connect` are options for nats-py's `connect`,
    for what this object itself asks of the cluster.
    """

    def __init__(
        self,
        directory: Path | None = None,
        *,
        count: int = 3,
        extra: str = "",
        sync: str = "always",
        store: str = "4GB",
        connect: Mapping[str, Any] | None = None,
    ) -> None:
        require("nats-server")
        self._owned = directory is None
        self.directory = directory or Path(tempfile.mkdtemp(prefix="jotd-nats-"))
        self.name = f"jotd-test-{uuid4().hex[:8]}"
        self._connect = dict(connect or {})
        self._extra = extra
        self._sync = sync
        self._store = store
        self.servers: list[NatsServer] = []
        for last in range(4, -1, -1):
            try:
                self._start(count)
                break
            except StartError as error:
                self.stop()
                if not last or "address already in use" not in str(error).lower():
                    raise
        self.wait_ready()

    def _start(self, count: int) -> None:
        ports = free_ports(2 * count)
        clients, routes = ports[:count], ports[count:]
        self.servers = []
        for index, (port, route) in enumerate(zip(clients, routes, strict=True)):
            name = f"n{index}"
            config = self.directory / f"{name}.conf"
            config.parent.mkdir(parents=True, exist_ok=True)
            others = ", ".join(f'"nats://127.0.0.1:{r}"' for r in routes if r != route)
            listen = f"name: {self.name}, listen: '127.0.0.1:{route}', routes: [{others}]"
            cluster = f"cluster {{ {listen} }}\n" if count > 1 else ""
            config.write_text(
                f"server_name: {name}\n"
                f"listen: '127.0.0.1:{port}'\n"
                f"max_payload: {MAX_PAYLOAD}\n"
                f"jetstream {{ store_dir: '{self.directory / name}', "
                f"sync_interval: {self._sync}, max_file_store: {self._store} }}\n"
                f"{cluster}{self._extra}\n"
            )
            self.servers.append(NatsServer(name, port, self.directory, config))
        for server in self.servers:
            server.start(wait=False)
        for server in self.servers:
            server.wait_ready()

    @property
    def endpoints(self) -> str:
        """``host:port,host:port,...`` of all servers, as a journal's URL has them."""
        return ",".join(server.endpoint for server in self.servers)

    def url(self, name: str, query: str = "") -> str:
        return f"nats://{self.endpoints}/{name}" + (f"?{query}" if query else "")

    def wait_ready(self, timeout: float = READY_SECONDS_MAX) -> None:
        """Wait until every server that runs has JetStream, and the cluster a leader."""

        async def ready(client: Any) -> None:
            info = await request(client, "$JS.API.INFO")
            assert "error" not in info, info

        deadline = time.monotonic() + timeout
        for server in self.servers:
            while server.alive:
                try:
                    self.ask(ready, server)
                    break
                except Exception as error:
                    if time.monotonic() > deadline:
                        raise StartError(f"{server.name} has no JetStream: {error!r}") from error
                    time.sleep(0.1)

    def ask(self, work: Callable[[Any], Awaitable[_T]], server: NatsServer | None = None) -> _T:
        """Run `work(client)` with a connection to `server` (to any, if None); blocks."""

        async def run() -> _T:
            import nats

            chosen = [server] if server else [s for s in self.servers if s.alive]
            client = await nats.connect(
                [s.url for s in chosen],
                allow_reconnect=False,
                max_reconnect_attempts=1,
                reconnect_time_wait=0.05,
                connect_timeout=3,
                error_cb=_quiet,
                **self._connect,
            )
            try:
                return await work(client)
            finally:
                await client.close()

        return in_thread(asyncio.wait_for(run(), 30))

    def leader(self, stream: str, timeout: float = READY_SECONDS_MAX) -> NatsServer:
        """The server that leads `stream`, waiting until there is one."""

        async def look(client: Any) -> str:
            # Nobody answers while nobody leads.
            info = await request(client, f"$JS.API.STREAM.INFO.{stream}", timeout=0.5)
            return str(info["cluster"]["leader"])

        deadline = time.monotonic() + timeout
        while True:
            try:
                name = self.ask(look)
                return next(s for s in self.servers if s.name == name and s.alive)
            except Exception as error:
                if time.monotonic() > deadline:
                    raise AssertionError(f"{stream} has no leader: {error!r}") from error
                time.sleep(0.1)

    def move_leader(self, stream: str, server: NatsServer) -> None:
        """Have `server` lead `stream`, and wait until it does."""

        async def ask(client: Any) -> None:
            where = {"placement": {"preferred": server.name}}
            await request(client, f"$JS.API.STREAM.LEADER.STEPDOWN.{stream}", where)

        while self.leader(stream) is not server:
            self.ask(ask)
            time.sleep(0.1)

    def delete_streams(self, *names: str) -> None:
        """Remove streams, if they are there."""

        async def delete(client: Any) -> None:
            for name in names:
                await request(client, f"$JS.API.STREAM.DELETE.{name}")

        self.ask(delete)

    def stop(self) -> None:
        for server in self.servers:
            server.kill9()
        if self._owned:
            shutil.rmtree(self.directory, ignore_errors=True)


async def request(client: Any, subject: str, body: Any = None, timeout: float = 5.0) -> Any:
    """One request to the JetStream API; the answer, errors included, as plain values."""
    payload = b"" if body is None else json.dumps(body).encode()
    return json.loads((await client.request(subject, payload, timeout=timeout)).data)


async def _quiet(error: Exception) -> None:
    pass


def in_thread(work: Coroutine[Any, Any, _T]) -> _T:
    """Run a coroutine to its end on a loop in another thread; the caller may have a loop itself."""
    results: list[_T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(asyncio.run(work))
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


_shared: list[NatsCluster] = []


def shared_cluster() -> NatsCluster:
    """One cluster of three for the whole session, ended at its exit. Its servers stay up."""
    if not _shared:
        _shared.append(NatsCluster())
        atexit.register(_shared[0].stop)
    return _shared[0]
