"""The connection to the servers: one at a time, made anew whenever it is lost.

nats-py's own reconnecting is off. It would keep what was published meanwhile and send it later,
and its client can end for good after some errors; here every connection is a new client, requests
that were under way fail at once when theirs is lost, and nothing is ever sent later than its
caller knows. What is asked for is answered in time or fails in time.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import ssl
from collections.abc import Callable, Mapping
from typing import Any

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from journal.contract import JournalError
from journal.nats import credentials
from journal.nats.config import SERVER_VERSION_MIN
from journal.nats.url import Settings

_log = logging.getLogger(__name__)

CONNECT_S = 3.0
"""For one server."""
RETRY_S = 0.1
PING_S = 2
SILENT_S_MAX = 9.0
"""When so much was missed in a row, another server is tried: this one may have lost the rest of
the cluster. An acknowledgement that stays away counts anew whenever it is looked for."""
TELL_S = 30.0
"""What keeps a connection from being had is said again after so long."""
_WATCH_S = 0.25
_PENDING_BYTES = 64 << 20


class Unreachable(JournalError):
    """No answer: not connected, connection lost, nobody there to answer, or too late."""


class _Client(Client):  # type: ignore[misc, unused-ignore]
    """Says nothing secret to a server that does not speak TLS, if TLS was asked for."""

    insists_on_tls = False

    def _connect_command(self) -> bytes:
        if self.insists_on_tls and not self._server_info.get("tls_required"):
            raise nats.errors.Error("the server does not require TLS, and ?tls or a CA asks for it")
        command: bytes = super()._connect_command()
        return command


Handler = Callable[[Msg], None]
_Waiter = Callable[[Msg | Unreachable], None]


def server_version(text: str) -> tuple[int, ...]:
    """``2.12.1-RC.1`` as (2, 12, 1)."""
    return tuple(int(n) for n in text.split("-")[0].split(".")[:3] if n.isdigit())


class Link:
    """Requests and subscriptions, on whichever server is there."""

    def __init__(self, settings: Settings, label: str) -> None:
        self._settings = settings
        self._label = label
        self._client: Client | None = None
        self._ready = asyncio.Event()
        self._lost = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._waiting: dict[str, _Waiter] = {}
        self._tokens = itertools.count()
        self._inbox = ""
        self._handlers: dict[str, Handler] = {}
        self._heard: dict[str, Subscription] = {}
        self._turn = 0
        self._closed = False
        self._silent_s = 0.0
        self._failure: str | None = None
        """Why there is no connection, as far as is known. What a server said about who connects
        tells more than what came after it."""
        self._refused = False
        self._told: dict[str, float] = {}
        self._denied: str | None = None
        self._closing: set[asyncio.Task[None]] = set()
        self._ssl = self._ssl_context() if settings.tls else None
        self.connections = 0
        self.on_connect: list[Callable[[], None]] = []
        """Called after every connection but the first."""

    def _ssl_context(self) -> ssl.SSLContext:
        settings = self._settings
        try:
            context = ssl.create_default_context(cafile=settings.ca)
            if settings.cert is not None and settings.key is not None:
                context.load_cert_chain(settings.cert, settings.key)
        except (OSError, ssl.SSLError) as error:
            raise JournalError(
                f"cannot use the certificates of the NATS journal: {error}"
            ) from error
        return context

    @property
    def max_payload(self) -> int:
        return self._client.max_payload if self._client is not None else 0

    @property
    def server(self) -> str:
        """The name of the server at the other end; empty without a connection."""
        return str(self._client._server_info.get("server_name", "")) if self._client else ""

    async def start(self, timeout: float) -> None:
        """Connect. JournalError when no server could be had, or one is too old, or a file with
        credentials cannot be used."""
        credentials.read(self._settings)
        self._task = asyncio.get_running_loop().create_task(self._run())
        ready = asyncio.ensure_future(self._ready.wait())
        try:
            done, _ = await asyncio.wait(
                {ready, self._task}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            ready.cancel()
        if self._task in done:
            self._task.result()
        if not self._ready.is_set():
            failure = self._failure or "no answer"
            if self._refused:
                raise Unreachable(failure)
            servers = ", ".join(self._settings.servers)
            raise Unreachable(f"no NATS server could be reached at {servers} ({failure})")

    async def close(self) -> None:
        self._closed = True
        while self._task is not None and not self._task.done():
            # nats-py may take a cancellation for itself.
            self._task.cancel()
            await asyncio.wait({self._task}, timeout=0.5)
        self._disconnected()
        if self._closing:
            await asyncio.wait(self._closing, timeout=1)

    async def _run(self) -> None:
        while not self._closed:
            client = await self._connect()
            if client is None:
                await asyncio.sleep(RETRY_S)
                continue
            try:
                await self._take_into_use(client)
                self._check_version(client)
                self._failure, self._refused = None, False
                self._told.clear()
                self._ready.set()
                self.connections += 1
                if self.connections > 1:
                    _log.info("%s: connected again", self._label)
                    for hook in self.on_connect:
                        hook()
                while client.is_connected and not self._lost.is_set():
                    # Its callbacks come late where a socket is stuck, so look as well.
                    try:
                        async with asyncio.timeout(_WATCH_S):
                            await self._lost.wait()
                    except TimeoutError:
                        pass
                why = f" ({client.last_error})" if client.last_error else ""
                _log.warning("%s: lost the connection to NATS%s", self._label, why)
            except (nats.errors.Error, OSError) as error:
                self._failed(_text(error))
            finally:
                self._disconnected()

    def _check_version(self, client: Client) -> None:
        found = server_version(str(client._server_info.get("version", "0")))
        if found < SERVER_VERSION_MIN:
            wanted = ".".join(map(str, SERVER_VERSION_MIN))
            version = ".".join(map(str, found))
            raise JournalError(f"a NATS server is version {version}, {wanted} or newer is needed")

    async def _connect(self) -> Client | None:
        settings = self._settings
        server = settings.servers[self._turn % len(settings.servers)]
        self._turn += 1
        try:
            who = credentials.read(settings)
        except JournalError as error:
            self._failed(str(error), refused=True)
            return None
        client = _Client()
        client.insists_on_tls = settings.tls
        first: list[Exception] = []
        self._lost.clear()

        async def lost() -> None:
            if self._client is client:
                self._lost.set()

        async def note(error: Exception) -> None:
            if not first:
                first.append(error)
            if "permissions violation" in str(error).lower():
                self._denied = str(error)
                self._tell(f"{who.text} may not do all that a journal needs: {error}")

        options: dict[str, Any] = dict(who.options)
        if self._ssl is not None:
            options["tls"] = self._ssl
        # A task of its own: a cancellation or a time-out that nats-py takes for itself ends there.
        connecting = asyncio.get_running_loop().create_task(
            client.connect(
                servers=[f"{'tls' if settings.tls else 'nats'}://{server}"],
                name=self._label,
                error_cb=note,
                closed_cb=lost,
                disconnected_cb=lost,
                allow_reconnect=False,
                max_reconnect_attempts=1,
                reconnect_time_wait=0,
                connect_timeout=int(CONNECT_S),
                ping_interval=PING_S,
                max_outstanding_pings=2,
                # No buffer: what cannot be sent now fails now.
                pending_size=-1,
                **options,
            )
        )
        try:
            await asyncio.wait({connecting}, timeout=CONNECT_S)
        except BaseException:
            self._abandon(connecting, client)
            raise
        if not connecting.done():
            self._failed(f"{server}: no answer to the connection")
            self._abandon(connecting, client)
            return None
        failure = connecting.exception()
        if failure is None:
            return client
        if not isinstance(failure, (nats.errors.Error, OSError, TimeoutError, ValueError)):
            raise failure
        if isinstance(failure, nats.errors.NoServersError) and first:
            # What went wrong at first tells more than that there is no server left.
            failure = first[0]
        if _is_refusal(failure, client):
            self._failed(f"NATS at {server} refuses {who.text}: {_text(failure)}", refused=True)
        else:
            self._failed(f"{server}: {_text(failure)}")
        self._let_go(client)
        return None

    def _failed(self, failure: str, *, refused: bool = False) -> None:
        """There is no connection, and why."""
        if refused or not self._refused:
            self._failure, self._refused = failure, refused
        self._tell(f"cannot connect: {failure}")

    def _tell(self, text: str) -> None:
        """Log what may be tried ten times a second: at first, and then now and again."""
        now = asyncio.get_running_loop().time()
        if now - self._told.get(text, float("-inf")) >= TELL_S:
            self._told[text] = now
            _log.warning("%s: %s", self._label, text)

    def _abandon(self, connecting: asyncio.Task[None], client: Client) -> None:
        connecting.cancel()
        connecting.add_done_callback(lambda task: task.cancelled() or task.exception())
        self._let_go(client)

    async def _take_into_use(self, client: Client) -> None:
        self._client = client
        self._silent_s = 0.0
        self._inbox = f"_INBOX.{os.urandom(12).hex()}"
        await client.subscribe(f"{self._inbox}.*", cb=self._answered)
        for subject, handler in self._handlers.items():
            await self._subscribe(client, subject, handler)

    async def _subscribe(self, client: Client, subject: str, handler: Handler) -> None:
        async def call(message: Msg) -> None:
            handler(message)

        self._heard[subject] = await client.subscribe(
            subject, cb=call, pending_bytes_limit=_PENDING_BYTES
        )

    def _disconnected(self) -> None:
        self._ready.clear()
        self._heard.clear()
        client, self._client = self._client, None
        if client is not None:
            self._let_go(client)
        waiting, self._waiting = self._waiting, {}
        for waiter in waiting.values():
            waiter(Unreachable("the connection to NATS was lost"))

    def _let_go(self, client: Client) -> None:
        """Closing waits for the peer, who may not be there."""

        async def close() -> None:
            try:
                async with asyncio.timeout(5):
                    await client.close()
            except (nats.errors.Error, OSError, TimeoutError, AssertionError):
                pass

        task = asyncio.get_running_loop().create_task(close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def _answered(self, message: Msg) -> None:
        waiter = self._waiting.get(message.subject[len(self._inbox) + 1 :])
        if waiter is not None:
            self._silent_s = 0.0
            waiter(message)

    async def listen(self, subject: str, handler: Handler) -> None:
        """Have `handler` called with what comes on `subject`, on every connection from now on."""
        self._handlers[subject] = handler
        if self._client is not None:
            try:
                await self._subscribe(self._client, subject, handler)
            except nats.errors.Error:
                # The next connection has it.
                self._lost.set()

    async def unlisten(self, subject: str) -> None:
        """Undo `listen`."""
        self._handlers.pop(subject, None)
        subscription = self._heard.pop(subject, None)
        if subscription is not None and self._client is not None:
            try:
                await subscription.unsubscribe()
            except nats.errors.Error:
                # It ended with its connection.
                pass

    async def connected(self, timeout: float) -> None:
        """Wait for a connection. Unreachable."""
        if not self._ready.is_set():
            try:
                async with asyncio.timeout(timeout):
                    await self._ready.wait()
            except TimeoutError:
                raise Unreachable("there is no connection to NATS") from None

    async def post(
        self,
        subject: str,
        payload: bytes,
        waiter: _Waiter,
        headers: Mapping[str, str] | None = None,
    ) -> str:
        """Send a request; `waiter` gets each answer, and Unreachable once if the connection ends.

        Returns the token to `forget` it by. Raises Unreachable if it could not even be sent.
        """
        client = self._client
        if client is None or not client.is_connected:
            raise Unreachable("there is no connection to NATS")
        token = str(next(self._tokens))
        self._waiting[token] = waiter
        try:
            await client.publish(
                subject, payload, f"{self._inbox}.{token}", dict(headers) if headers else None
            )
        except (nats.errors.Error, OSError) as error:
            self._waiting.pop(token, None)
            raise Unreachable(f"cannot send to NATS: {error}") from error
        except BaseException:
            self._waiting.pop(token, None)
            raise
        return token

    def forget(self, token: str) -> None:
        self._waiting.pop(token, None)

    def strike(self, silent_s: float) -> None:
        """An answer did not come in so much time."""
        self._silent_s += silent_s
        if self._silent_s >= SILENT_S_MAX and len(self._settings.servers) > 1:
            self._silent_s = 0.0
            self._lost.set()

    async def request(
        self,
        subject: str,
        payload: bytes,
        timeout: float,
        headers: Mapping[str, str] | None = None,
        until: Callable[[Msg], bool] | None = None,
    ) -> list[Msg]:
        """The answers up to the first one that `until` is true of (just one without). Unreachable.

        `timeout` is for each of them.
        """
        await self.connected(timeout)
        answers: list[Msg] = []
        news = asyncio.Event()
        failure: list[Unreachable] = []

        def take(message: Msg | Unreachable) -> None:
            if isinstance(message, Unreachable):
                failure.append(message)
            else:
                answers.append(message)
            news.set()

        token = await self.post(subject, payload, take, headers)
        seen = 0
        try:
            while True:
                try:
                    async with asyncio.timeout(timeout):
                        await news.wait()
                except TimeoutError:
                    self.strike(timeout)
                    denied = self._denied
                    why = f" ({denied})" if denied and f'"{subject.lower()}"' in denied else ""
                    raise Unreachable(f"no answer from NATS in {timeout:.3g} s{why}") from None
                news.clear()
                for answer in answers[seen:]:
                    if not answer.data and status(answer) == "503":
                        raise Unreachable("nobody at NATS answers that")
                    if until is None or until(answer):
                        return answers
                seen = len(answers)
                if failure:
                    raise failure[0]
        finally:
            self.forget(token)


def _text(error: BaseException) -> str:
    """nats-py hands on what a server said between quotes."""
    if isinstance(error, nats.errors.Error):
        return str(error).removeprefix("nats: ").strip("'")
    return f"{type(error).__name__}: {error}"


def _is_refusal(error: BaseException, client: Client) -> bool:
    """Whether it is about who connects.

    The server closes the connection behind its words, which may overtake them: then there is but
    the end of it, while it waited for credentials.
    """
    if isinstance(error, (ConnectionError, nats.errors.UnexpectedEOF)):
        return bool(client._server_info.get("auth_required"))
    text = str(error).lower()
    return isinstance(error, nats.errors.Error) and ("authoriz" in text or "authentic" in text)


def status(message: Msg) -> str | None:
    """The status that the server put into the first line of a message's headers."""
    headers: Mapping[str, str] | None = message.headers
    return headers.get("Status") if headers else None
