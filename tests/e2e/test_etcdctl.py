"""etcd's own command line client on the store, its output compared with that on a real etcd.

Both stores begin empty and get the same commands in the same order, so revisions agree; what is
each server's own (ids, the raft term, sizes, addresses, durations) is left out of the comparison.
"""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import pytest

from kvstore.pb import rpc_pb2
from tests import peers
from tests.e2e.conftest import STORE, start_store
from tests.oracle.client import Client

#: Keys in every shard of the default partition table, and outside of all of them.
KEYS = (
    "/registry/events/default/e1",
    "/registry/leases/kube-node-lease/n1",
    "/registry/minions/n1",
    "/registry/pods/default/p1",
    "/registry/pods/default/p2",
    "/registry/services/s1",
    "a",
    "b",
    "c/1",
    "c/2",
    "z",
)

#: `make test-fast` runs a handful of these; each starts two servers.
slow = pytest.mark.slow

OWN_TO_A_SERVER = {"cluster_id", "member_id", "raft_term"}
PATIENCE = "--command-timeout=60s"

#: From 3.7 on etcdctl has filters by revision and --stream, and waits some seconds before it
#: deletes a range that was not asked for by --range.
NEW_ETCDCTL = (peers.version("etcdctl") or ()) >= (3, 7)
RANGE = ("--range",) if NEW_ETCDCTL else ()


def etcdctl(
    process: peers.Process, *args: str, input: str | None = None
) -> subprocess.CompletedProcess[str]:
    return peers.etcdctl(process.endpoint, PATIENCE, *args, input=input, check=False)


def comparable(process: peers.Process, text: str) -> object:
    """Output without what is a server's own; parsed, if it is JSON."""
    text = "\n".join(line for line in text.splitlines() if not line.startswith('{"level"'))
    with contextlib.suppress(ValueError):
        return strip_ids(json.loads(text))
    text = text.replace(process.endpoint, "ENDPOINT")
    text = re.sub(r"remaining\(\d+s\)", "remaining(TTL)", text)
    text = re.sub(r"(took:? =? ?)[\d.]+(µs|ms|s)", r"\1TIME", text)
    text = re.sub(r'"(ClusterID|MemberID|RaftTerm)" : \d+', r'"\1" : ID', text)
    # etcd names the keys of a lease in any order.
    text = re.sub(r"keys\(\[(.*)\]\)", lambda found: f"keys({sorted(found[1].split())})", text)
    return re.sub(r"\b[0-9a-f]{15,16}\b", "ID", text)


def strip_ids(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: strip_ids(sub) for key, sub in value.items() if key not in OWN_TO_A_SERVER}
    if isinstance(value, list):
        return [strip_ids(item) for item in value]
    return value


class Twins:
    """The store and a real etcd, given the same commands."""

    def __init__(self, store: peers.Process, etcd: peers.Process) -> None:
        self.store = store
        self.etcd = etcd
        self.leases = ["", ""]

    def __call__(self, *args: str, input: str | None = None) -> str:
        """Runs one command on both. It must succeed, and what it prints agree; returns that."""
        done = self.compare(args, input)
        assert done.returncode == 0, done
        return done.stdout

    def fails(self, message: str, *args: str, input: str | None = None) -> None:
        """The same for a command that must fail with this message."""
        done = self.compare(args, input)
        assert done.returncode != 0, done
        assert message in done.stderr

    def compare(
        self, args: Sequence[str], input: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Runs one command on both; what it prints and how it ends must agree. ID in an argument
        stands for the lease that `grant` made.
        """
        ours, theirs = (
            etcdctl(one, *(arg.replace("ID", lease) for arg in args), input=input)
            for one, lease in zip((self.store, self.etcd), self.leases, strict=True)
        )
        shown = f"etcdctl {args}\nstore: {ours}\netcd: {theirs}"
        assert ours.returncode == theirs.returncode, shown
        for stream in ("stdout", "stderr"):
            got = comparable(self.store, getattr(ours, stream))
            want = comparable(self.etcd, getattr(theirs, stream))
            assert got == want, f"{stream} differs: {shown}"
        return ours

    def grant(self, ttl_seconds: int) -> None:
        """A lease on each, with an id of the server's choice."""
        self.leases = [grant(one, ttl_seconds) for one in (self.store, self.etcd)]


def grant(process: peers.Process, ttl_seconds: int) -> str:
    done = etcdctl(process, "lease", "grant", str(ttl_seconds))
    found = re.fullmatch(rf"lease ([0-9a-f]+) granted with TTL\({ttl_seconds}s\)\n", done.stdout)
    assert found, done
    return found[1]


def put_all(process: peers.Process, values: Mapping[str, str]) -> None:
    """Writes each at a revision of its own, without a process of its own."""
    with Client(process.endpoint) as client:
        for key, value in values.items():
            request = rpc_pb2.PutRequest(key=key.encode(), value=value.encode())
            assert client.call("KV.Put", request).ok


def seed(process: peers.Process) -> None:
    """Writes KEYS at revisions 2 to 12, changes `a` (13) and deletes `b` (14)."""
    put_all(process, {key: f"value of {key}" for key in KEYS})
    put_all(process, {"a": "changed"})
    with Client(process.endpoint) as client:
        assert client.call("KV.DeleteRange", rpc_pb2.DeleteRangeRequest(key=b"b")).ok


@pytest.fixture
def twins(tmp_path: Path) -> Iterator[Twins]:
    """Two stores with the same small history."""
    peers.require("etcdctl")
    with start_store(tmp_path / "store") as store, peers.start_etcd(tmp_path / "oracle") as etcd:
        seed(store)
        seed(etcd)
        yield Twins(store, etcd)


@contextlib.contextmanager
def running(process: peers.Process, log: Path, *args: str) -> Iterator[Callable[[int], list[str]]]:
    """An etcdctl that runs on; yields a function that waits for so many lines of its output."""
    argv = [str(peers.require("etcdctl")), f"--endpoints={process.endpoint}", *args]

    def lines(count: int) -> list[str]:
        deadline = time.monotonic() + 30
        while len(found := log.read_text().splitlines()) < count:
            assert child.poll() is None or len(log.read_text().splitlines()) >= count, (
                f"{argv} ended with {child.returncode}: {log.read_text()}"
            )
            assert time.monotonic() < deadline, f"{argv} printed only {found}"
            time.sleep(0.02)
        return found

    out: TextIO
    with log.open("w") as out:
        child = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT
        )
    try:
        yield lines
    finally:
        if child.poll() is None:
            child.send_signal(signal.SIGINT)
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def test_get(twins: Twins) -> None:
    assert twins("get", "a") == "a\nchanged\n"
    assert twins("get", "none") == ""
    assert twins("get", "a", "--rev=8", "--print-value-only") == "value of a\n"
    assert twins("get", "--prefix", "/registry/pods/", "--keys-only").split() == list(KEYS[3:5])
    assert twins("get", "--from-key", "c/2", "--keys-only").split() == ["c/2", "z"]
    assert twins("get", "a", "c/2", "--keys-only").split() == ["a", "c/1"]
    assert '"Count" : 10' in twins("get", "--prefix", "", "--count-only", "-w", "fields")
    for target in ("CREATE", "KEY", "MODIFY", "VALUE"):
        for order in ("ASCEND", "DESCEND"):
            twins("get", "--prefix", "", f"--sort-by={target}", f"--order={order}", "-w", "json")
    versions = ("get", "--prefix", "a", "--sort-by=VERSION", "--order=DESCEND", "-w", "json")
    assert json.loads(twins(*versions))["kvs"][0]["version"] == 2
    twins("get", "--prefix", "", "--limit=3", "-w", "json")
    twins("get", "--prefix", "", "--limit=3", "--sort-by=VALUE", "--order=DESCEND", "-w", "json")
    twins("get", "--prefix", "", "--consistency=s", "-w", "json")
    twins("get", "--prefix", "", "--rev=9", "-w", "json")
    if NEW_ETCDCTL:
        twins("get", "--prefix", "", "--min-mod-rev=5", "--max-mod-rev=12", "-w", "json")
        twins("get", "--prefix", "", "--min-create-rev=5", "--max-create-rev=9", "-w", "json")
    twins("get", "a", "-w", "fields")
    twins("get", "a", "--hex")
    twins.fails("etcdserver: mvcc: required revision is a future revision", "get", "a", "--rev=99")


@slow
def test_get_stream(twins: Twins) -> None:
    """RangeStream, which is new in etcd 3.7."""
    if not NEW_ETCDCTL:
        pytest.skip("etcdctl 3.7 or newer could not be had, older ones have no --stream")
    assert twins("get", "--stream", "a") == "a\nchanged\n"
    twins("get", "--stream", "--prefix", "", "-w", "json")
    twins("get", "--stream", "--prefix", "", "--rev=9", "--limit=4", "-w", "json")
    twins("get", "--stream", "--prefix", "", "--keys-only")


@slow
def test_put(twins: Twins) -> None:
    assert twins("put", "a", "2", "--prev-kv") == "OK\na\nchanged\n"
    assert twins("put", "empty", "") == "OK\n"
    assert twins("put", "from-stdin", input="many\nlines\n") == "OK\n"
    assert twins("get", "from-stdin") == "from-stdin\nmany\nlines\n\n"
    twins("put", "a", "--ignore-value")
    twins("get", "a", "-w", "json")
    twins("put", "z", "last", "-w", "json")
    twins.fails("etcdserver: key not found", "put", "none", "--ignore-value")
    twins.fails("etcdserver: requested lease not found", "put", "a", "1", "--lease=1234")
    twins.fails("etcdserver: key is not provided", "put", "", "1")


@slow
def test_put_too_large(twins: Twins) -> None:
    value = "x" * (1536 * 1024 + 1)
    twins.fails("etcdserver: request is too large", "put", "a", input=value)
    assert twins("get", "a", "--print-value-only") == "changed\n"


@slow
def test_del(twins: Twins) -> None:
    assert twins("del", "none") == "0\n"
    assert twins("del", "a", "--prev-kv") == "1\na\nchanged\n"
    assert twins("del", "/registry/", "--prefix") == "6\n"
    assert twins("del", *RANGE, "c/1", "c/2") == "1\n"
    assert twins("del", "c", "--from-key", "--prev-kv").startswith("2\nc/2\n")
    assert twins("get", "--prefix", "", "-w", "json")
    assert twins("get", "--prefix", "", "--rev=14", "--keys-only").split() == sorted(
        set(KEYS) - {"b"}
    )


def test_txn(twins: Twins) -> None:
    create = 'version("t") = "0"\n\nput t "1"\nget a\n\nget t\n\n'
    assert twins("txn", input=create).startswith("SUCCESS\n\nOK\n\na\nchanged\n")
    assert twins("txn", input=create) == "FAILURE\n\nt\n1\n"
    twins("txn", "-w", "json", input='value("a") > "b"\nmod("a") < "20"\n\ndel a\nput b new\n\n\n')
    clear = f"del {' '.join(RANGE)} / 0"
    twins("txn", "-w", "json", input=f'create("x") = "0"\n\n{clear}\nget --prefix ""\n\n\n')
    twins("get", "--prefix", "", "-w", "json")
    twins.fails(
        "etcdserver: duplicate key given in txn request", "txn", input="\nput x 1\nput x 2\n\n\n"
    )
    twins.fails(
        "etcdserver: duplicate key given in txn request", "txn", input="\nput x 1\ndel x\n\n\n"
    )
    many = "".join(f"put k{n} v\n" for n in range(129))
    twins.fails("etcdserver: too many operations in txn request", "txn", input=f"\n{many}\n\n")
    twins("txn", input="\n" + "".join(f"put k{n} v\n" for n in range(128)) + "\n\n")
    twins("get", "--prefix", "k", "-w", "json")


def test_watch(twins: Twins, tmp_path: Path) -> None:
    """From the past over all shards, live, with previous values, and of one key."""
    history = ("watch", "--prefix", "", "--rev=2", "--prev-kv")
    live = ("watch", "/registry/pods/default/p1", "-w", "json")
    seen = []
    for number, one in enumerate((twins.store, twins.etcd)):
        with (
            running(one, tmp_path / f"history-{number}", *history) as past,
            running(one, tmp_path / f"live-{number}", *live) as key,
        ):
            # Puts are three lines, two more with a previous value; the delete has an empty value.
            first = past(3 * 11 + 5 + 5)
            # Only once the server has confirmed a watch are later events sure to be in it; the
            # key is changed until its watch tells of it.
            change = ("put", "/registry/pods/default/p1", "new")
            etcdctl(one, *change)
            changes = 1
            while not (tmp_path / f"live-{number}").read_text():
                etcdctl(one, *change)
                changes += 1
                time.sleep(0.2)
            event = strip_ids(json.loads(key(1)[0]))
            etcdctl(one, "del", "z")
            assert past(len(first) + 5 * changes + 5)[-5:] == ["DELETE", "z", "value of z", "z", ""]
            seen.append((first, set(event)))
    assert seen[0] == seen[1]
    assert seen[0][0][:3] == ["PUT", KEYS[0], f"value of {KEYS[0]}"]
    # With previous values: what `a` was before its change, what `b` was before its end.
    assert seen[0][0][33:] == [
        "PUT",
        "a",
        "value of a",
        "a",
        "changed",
        "DELETE",
        "b",
        "value of b",
        "b",
        "",
    ]


@slow
def test_watch_of_a_compacted_revision(twins: Twins) -> None:
    twins("compaction", "10")
    twins.fails("required revision has been compacted", "watch", "a", "--rev=5")


@slow
def test_leases(twins: Twins) -> None:
    twins.grant(600)
    twins("put", "leased", "1", "--lease=ID")
    twins("put", "a", "leased as well", "--lease=ID")
    left = twins("lease", "timetolive", "ID", "--keys")
    assert "[a leased]" in left or "[leased a]" in left
    assert twins("lease", "list") == f"found 1 leases\n{twins.leases[0]}\n"
    twins("lease", "keep-alive", "--once", "ID")
    twins("put", "a", "kept", "--ignore-lease")
    twins("put", "a", "released")
    assert twins("lease", "timetolive", "ID", "--keys").endswith("attached keys([leased])\n")
    twins("lease", "revoke", "ID")
    assert twins("get", "leased") == ""
    assert twins("get", "a", "--print-value-only") == "released\n"
    assert twins("lease", "list") == "found 0 leases\n"
    twins("lease", "timetolive", "ID")
    twins.fails("etcdserver: requested lease not found", "lease", "revoke", "1234")


@slow
def test_lease_is_kept_alive_and_then_expires(twins: Twins, tmp_path: Path) -> None:
    store = twins.store
    lease = grant(store, 3)
    etcdctl(store, "put", "short", "1", f"--lease={lease}")
    with running(store, tmp_path / "keep-alive", "lease", "keep-alive", lease) as kept:
        # Each line is one renewal; three of them take longer than the lease lives unrenewed.
        assert kept(4)[0] == f"lease {lease} keepalived with TTL(3)"
        assert etcdctl(store, "get", "short").stdout == "short\n1\n"
    deadline = time.monotonic() + 30
    while etcdctl(store, "get", "short").stdout:
        assert time.monotonic() < deadline, "the lease never expired"
        time.sleep(0.2)
    assert "already expired" in etcdctl(store, "lease", "timetolive", lease).stdout


@slow
def test_compaction(twins: Twins) -> None:
    assert twins("compaction", "9") == "compacted revision 9\n"
    compacted = "etcdserver: mvcc: required revision has been compacted"
    twins.fails(compacted, "get", "a", "--rev=8")
    twins.fails(compacted, "compaction", "9")
    assert twins("get", "b", "--rev=9") == "b\nvalue of b\n"
    future = "etcdserver: mvcc: required revision is a future revision"
    twins.fails(future, "compaction", "99")
    assert twins("compaction", "14", "--physical") == "compacted revision 14\n"
    twins("get", "--prefix", "", "--rev=14", "-w", "json")


@slow
def test_endpoint_status(twins: Twins) -> None:
    ours, theirs = (
        json.loads(etcdctl(one, "endpoint", "status", "-w", "json").stdout)[0]["Status"]
        for one in (twins.store, twins.etcd)
    )
    assert ours["header"]["revision"] == theirs["header"]["revision"] == 14
    assert ours["leader"] == ours["header"]["member_id"] != 0
    assert ours["raftTerm"] >= 1
    assert ours["dbSize"] >= ours["dbSizeInUse"] > 0
    assert ours["dbSizeQuota"] == theirs["dbSizeQuota"] == 2 << 30
    # kube-apiserver reads it to know what the store can do.
    assert tuple(map(int, ours["version"].split(".")[:2])) >= (3, 7) or STORE == "etcd"
    assert not ours.get("errors")
    table = etcdctl(twins.store, "endpoint", "status", "-w", "table").stdout
    assert twins.store.endpoint in table


@slow
@pytest.mark.parametrize("quota", [-1, 100 << 20])
def test_what_is_said_of_a_quota(tmp_path: Path, quota: int) -> None:
    """Alerts divide by it: where there is none it must not be 0."""
    flag = f"--quota-backend-bytes={quota}"
    found = []
    for start in (start_store, lambda path, flag: peers.start_etcd(path, [flag])):
        with start(tmp_path, flag) as server:
            answer = json.loads(etcdctl(server, "endpoint", "status", "-w", "json").stdout)
            with urllib.request.urlopen(f"{server.metrics_url}/metrics", timeout=10) as reply:
                text = reply.read().decode()
            gauge = re.search(r"^etcd_server_quota_backend_bytes (\S+)$", text, re.MULTILINE)
            assert gauge is not None
            found.append((answer[0]["Status"]["dbSizeQuota"], float(gauge[1])))
    assert found == [(quota, quota)] * 2


@slow
def test_endpoint_health(twins: Twins) -> None:
    done = etcdctl(twins.store, "endpoint", "health")
    assert done.returncode == 0
    text = done.stdout + done.stderr
    assert f"{twins.store.endpoint} is healthy: successfully committed proposal" in text


@slow
def test_endpoint_hashkv(twins: Twins) -> None:
    def hashes(*args: str) -> list[dict[str, Any]]:
        return [
            json.loads(etcdctl(one, "endpoint", "hashkv", *args, "-w", "json").stdout)[0]["HashKV"]
            for one in (twins.store, twins.etcd)
        ]

    before, oracle = hashes()
    assert before["hash"] == hashes()[0]["hash"] != 0
    past, _ = hashes("--rev=13")
    assert past["hash"] != before["hash"]
    twins("put", "a", "again")
    twins("compaction", "14", "--physical")
    after, oracle = hashes()
    assert after["hash"] != before["hash"]
    for field in ("compact_revision", "hash_revision"):
        assert after.get(field) == oracle.get(field)
    # I5: the hash is of the data, not of the process.
    twins.store.stop()
    twins.store.restart()
    assert hashes()[0]["hash"] == after["hash"]


@slow
def test_member_list(twins: Twins) -> None:
    members = json.loads(etcdctl(twins.store, "member", "list", "-w", "json").stdout)["members"]
    assert len(members) == 1
    assert members[0]["clientURLs"] == [twins.store.url]
    assert members[0]["ID"] != 0
    assert ", started, " in etcdctl(twins.store, "member", "list").stdout


@slow
def test_alarm_list_and_defrag(twins: Twins) -> None:
    assert twins("alarm", "list") == ""
    assert twins("defrag").startswith("Finished defragmenting etcd member")
    twins("get", "--prefix", "", "-w", "json")


@slow
def test_lock(twins: Twins) -> None:
    """A lock is made of a lease, a transaction and a watch by the client."""
    assert twins("lock", "mutex", "echo", "held") == "held\n"


@slow
def test_make_mirror(tmp_path: Path) -> None:
    """From the store to a real etcd: what is there already, and what is written meanwhile."""
    peers.require("etcdctl")
    with start_store(tmp_path / "store") as source, peers.start_etcd(tmp_path / "mirror") as mirror:
        put_all(source, {f"{KEYS[n % len(KEYS)]}-{n}": f"value {n}" for n in range(300)})
        args = ("make-mirror", "--dest-prefix=copy:", "--prefix=", mirror.endpoint)
        with running(source, tmp_path / "log", *args):

            def same() -> bool:
                ours = etcdctl(source, "get", "--prefix", "").stdout.splitlines()
                theirs = etcdctl(mirror, "get", "--prefix", "copy:").stdout.splitlines()
                copied = [line.removeprefix("copy:") for line in theirs]
                return len(ours) > 0 and ours == copied

            def wait_until_same() -> None:
                deadline = time.monotonic() + 30
                while not same():
                    assert time.monotonic() < deadline, (tmp_path / "log").read_text()
                    time.sleep(0.1)

            wait_until_same()
            etcdctl(source, "put", "live", "1")
            etcdctl(source, "del", "--prefix", "/registry/pods/")
            etcdctl(source, "txn", input="\nput t1 1\nput t2 2\ndel a-6\n\n\n")
            wait_until_same()


@slow
def test_check_perf(tmp_path: Path) -> None:
    """A small load for some seconds: interrupted, etcdctl reports on what it did until then.

    Its verdict depends on the machine, so only errors count here, and that it tidied up.
    """
    peers.require("etcdctl")
    with start_store(tmp_path / "store") as store:
        log = tmp_path / "log"
        args = ("check", "perf", "--load=s", "--prefix=/check/")
        with running(store, log, *args):
            deadline = time.monotonic() + 60
            while count(store, "/check/") < 500:
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.5)
        report = log.read_text()
        assert "ERROR" not in report
        assert re.search(r"(Throughput is|Throughput too low:) \d+ writes/s", report)
        assert count(store, "/check/") == 0


def count(store: peers.Process, prefix: str) -> int:
    done = etcdctl(store, "get", "--prefix", prefix, "--count-only", "-w", "fields")
    found = re.search(r'"Count" : (\d+)', done.stdout)
    assert found, done
    return int(found[1])
