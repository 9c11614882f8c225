"""One server process: what it is made of, and its life from start to drain.

journal ─► node ─► service ─► transport (gRPC)
                      └─────► endpoints (HTTP)
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import uvloop

from journal.contract import JournalError, Trimmed
from journal.registry import open_journal
from kvstore.api.routing import RoutingService
from kvstore.api.service import EtcdService, ServiceOptions
from kvstore.cli.config import ServeConfig
from kvstore.http.endpoints import Endpoints
from kvstore.http.listener import HttpServer
from kvstore.http.local import LocalClient
from kvstore.http.message import Handler
from kvstore.http.respond import respond
from kvstore.metrics.collector import Metrics
from kvstore.metrics.rpc import CountingService, RpcCounters
from kvstore.metrics.sources import HealthCounts
from kvstore.metrics.stalls import LoopStalls
from kvstore.node.autocompact import AutoCompaction, ByRevision, Never, Periodic
from kvstore.node.node import Node, NodeOptions
from kvstore.pb import health_pb2, rpc_pb2
from kvstore.runtime import allocator, threads
from kvstore.runtime.collector import CollectorPolicy
from kvstore.runtime.sources import is_compiled
from kvstore.stats import NodeStats
from kvstore.transport.seam import Kind, Service, Transport
from partitioner import table as partitions

if TYPE_CHECKING:
    from kvstore.transport.native import HttpHandler, NativeTransport
    from kvstore.transport.remote import GrpcRemote

log = logging.getLogger(__name__)

READY = "ready to serve client requests"

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
START_AGAIN = -1
"""Not a process's exit code: a node that fell behind what is kept of the journal begins anew."""

#: How often a long recovery says how far it is.
PROGRESS_S = 2.0
#: What is under way gets this long after the journal has failed: it can only be refused.
FAILED_DRAIN_S = 1.0


def serve(config: ServeConfig) -> int:
    """Runs a server until a signal or a failure ends it; returns the exit code."""
    allocator.set_policy()
    threads.set_policy()
    collector = CollectorPolicy()
    collector.start()
    for warning in config.warnings:
        log.warning(warning)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_Server(config, collector).run())


class _Server:
    def __init__(self, config: ServeConfig, collector: CollectorPolicy) -> None:
        self._config = config
        self._collector = collector
        self._stop: asyncio.Future[str]

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        self._stop = loop.create_future()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled, number)
        try:
            while (code := await self._run(loop)) == START_AGAIN:
                pass
            return code
        except partitions.PartitionTableError as error:
            log.error("--partitions %s: %s", self._config.partitions, error)
            return EXIT_USAGE
        except (JournalError, OSError, ValueError) as error:
            log.error("%s", error)
            return EXIT_FAILED

    def _signalled(self, number: int) -> None:
        name = signal.Signals(number).name
        if self._stop.done():
            log.error("received %s again: leaving at once", name)
            logging.shutdown()
            os._exit(128 + number)
        log.info("received signal; shutting down", extra={"fields": {"signal": name}})
        self._stop.set_result(name)

    async def _run(self, loop: asyncio.AbstractEventLoop) -> int:
        node = self._make_node(loop)
        opening = asyncio.ensure_future(node.open())
        await asyncio.wait((opening, self._stop), return_when=asyncio.FIRST_COMPLETED)
        if not opening.done():
            # Nothing is served yet, so there is nothing to answer; the journal loses nothing.
            opening.cancel()
            await asyncio.gather(opening, return_exceptions=True)
            await node.close()
            return EXIT_OK
        try:
            opening.result()
        except BaseException:
            with suppress(Exception):
                await node.close()
            raise
        self._collector.settle()
        node.slicer.on_round = self._collector.set_aside
        try:
            return await self._serve(node, loop)
        finally:
            await node.close()

    async def _leader_known(self, node: Node) -> None:
        """Wait until somebody leads, or this server is told to end."""
        cluster = node.cluster
        while cluster is not None and cluster.leader is None:
            if self._stop.done() or node.failed.done():
                return
            with suppress(TimeoutError):
                await asyncio.wait_for(cluster.changed(), 0.5)

    def _make_node(self, loop: asyncio.AbstractEventLoop) -> Node:
        config = self._config
        table = partitions.load(config.partitions) if config.partitions else partitions.kubernetes()
        config.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        journal = open_journal(config.journal, config.data_dir)
        progress = _Progress()
        journal.on_progress = progress.journal
        log.info(
            "opening the journal",
            extra={"fields": {"journal": journal.name, "data-dir": str(config.data_dir)}},
        )
        options = NodeOptions(
            name=config.name,
            client_urls=config.advertise_client_urls,
            quota_bytes=config.quota_bytes,
            snapshot_entries=config.snapshot_count,
            auto_compaction=_auto_compaction(config),
        )
        node = Node(journal, table, options, loop)
        node.on_load = progress.snapshot
        return node

    async def _serve(self, node: Node, loop: asyncio.AbstractEventLoop) -> int:
        config = self._config
        service = EtcdService(
            node,
            ServiceOptions(
                request_bytes_max=config.max_request_bytes,
                txn_ops_max=config.max_txn_ops,
                progress_interval_s=config.watch_progress_notify_interval_s,
            ),
        )
        remote, routing = _routing(service, node, config)
        front: Service = routing or service
        rpc = RpcCounters(timed=config.metrics_extensive)
        rpc.prepare(service, _methods())
        stalls = LoopStalls(loop)
        health = HealthCounts()
        stats = NodeStats(
            node,
            service,
            config.warning_apply_duration_s,
            routing.forwarded if routing is not None else None,
        )
        native = _native(config)
        transport = native or _grpcio(config)
        door = native.stats if native is not None else dict
        metrics = Metrics(stats, rpc, health, stalls, self._collector.pause_s, door)
        endpoints = Endpoints(LocalClient(front), health, metrics)
        if native is not None and not config.http_apart:
            native.http = _answers(endpoints.handle)
        http = HttpServer(endpoints.handle)
        # The door counts calls and messages itself, but not how long they take.
        counted = native is None or rpc.timed
        if native is not None and not counted:
            rpc.refresh = _refresher(native, rpc)
        try:
            await transport.start(CountingService(front, rpc, calls=counted))
            await http.start(config.http_urls, config.transport.tls)
            stalls.start()
            await self._leader_known(node)
            log.info(
                READY,
                extra={
                    "fields": {
                        "name": config.name,
                        "transport": "native" if config.native else "grpcio",
                        "transport-why": config.transport_why,
                        "compiled": is_compiled(),
                        "clients": [str(url) for url in transport.bound],
                        "http": [str(url) for url in http.bound],
                    }
                },
            )
            await asyncio.wait((self._stop, node.failed), return_when=asyncio.FIRST_COMPLETED)
        finally:
            stalls.stop()
            failed = node.failed.done()
            if node.cluster is not None and not failed:
                # Others lead from here on, and what still comes is passed on to them.
                await node.cluster.step_aside()
            service.drain()
            await transport.drain(FAILED_DRAIN_S if failed else config.drain_timeout_s)
            await http.stop()
            if routing is not None and remote is not None:
                await routing.close()
                await remote.close()
        if failed and isinstance(node.failed.result(), Trimmed):
            log.warning("starting again from a snapshot: %s", node.failed.result())
            return START_AGAIN
        if failed:
            log.critical("stopped: %s", node.failed.result())
            return EXIT_FAILED
        log.info("every request is answered, and no more are taken")
        return EXIT_OK


def _routing(
    service: EtcdService, node: Node, config: ServeConfig
) -> tuple[GrpcRemote, RoutingService] | tuple[None, None]:
    """What stands before the service where there are several nodes."""
    cluster = node.cluster
    if cluster is None:
        return None, None
    from kvstore.transport.remote import GrpcRemote

    remote = GrpcRemote(config.transport.tls)
    cluster.on_no_leader = service.leader_lost
    return remote, RoutingService(service, node, cluster, node.member_id, remote)


def _grpcio(config: ServeConfig) -> Transport:
    # Each transport is imported only where it serves: the other may not be installed.
    from kvstore.transport.grpcio import GrpcioTransport

    return GrpcioTransport(config.transport)


def _native(config: ServeConfig) -> NativeTransport | None:
    if not config.native:
        return None
    from kvstore.transport.native import NativeTransport

    return NativeTransport(config.transport, _methods())


def _answers(handler: Handler) -> HttpHandler:
    """What serves the HTTP side on the ports of gRPC clients."""

    async def answer(
        method: str, target: str, headers: Sequence[tuple[str, str]]
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        found = await respond(handler, method, target, headers)
        return (
            found.status,
            [("Content-Type", found.content_type), *found.headers.items()],
            found.body,
        )

    return answer


def _refresher(native: NativeTransport, rpc: RpcCounters) -> Callable[[], None]:
    """Brings the totals of unary calls, and of messages sent on streams, from the door."""

    def refresh() -> None:
        for name, totals, codes in native.counts():
            counters = rpc.methods.get(name)
            if counters is None:
                continue
            counters.sent, counters.sent_bytes = totals[3:]
            if counters.kind is Kind.UNARY:
                counters.started, counters.received, counters.received_bytes = totals[:3]
                counters.codes = codes

    return refresh


def _methods() -> Iterator[str]:
    """The full names of all methods that the wire contract has."""
    for module in (rpc_pb2, health_pb2):
        for service in module.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                yield f"/{service.full_name}/{method.name}"


def _auto_compaction(config: ServeConfig) -> Callable[[float], AutoCompaction]:
    wanted = config.auto_compaction
    if wanted.retention_revisions:
        return lambda now: ByRevision(wanted.retention_revisions, now)
    if wanted.retention_s:
        return lambda now: Periodic(wanted.retention_s, now)
    return lambda now: Never()


class _Progress:
    """Says now and then how far a recovery is: in the snapshot, which is most of it, or behind."""

    def __init__(self) -> None:
        self._next = time.monotonic() + PROGRESS_S

    def snapshot(self, done: int, total: int) -> None:
        """So many bytes of the snapshot are loaded."""
        self._tell("loading the snapshot", done, total)

    def journal(self, done: int, total: int) -> None:
        """So many bytes of the journal are read."""
        self._tell("reading the journal", done, total)

    def _tell(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + PROGRESS_S
        log.info(
            what,
            extra={"fields": {"bytes": done, "of": total, "percent": 100 * done // max(total, 1)}},
        )
