"""``jotd journal`` on journals that a real server wrote."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from kvstore.pb import rpc_pb2
from tests.peers import jotd_command, start_jotd


def jotd(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*jotd_command(), "journal", *argv],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory after puts, a delete, a transaction, a lease and a compaction."""
    data = tmp_path_factory.mktemp("journal") / "data"
    with start_jotd(data) as server, grpc.insecure_channel(server.endpoint) as channel:

        def call(method: str, request: object) -> bytes:
            stub: Callable[..., bytes] = channel.unary_unary(f"/etcdserverpb.{method}")
            return stub(request.SerializeToString(), timeout=10)  # type: ignore[attr-defined]

        call("KV/Put", rpc_pb2.PutRequest(key=b"a\xff", value=b"1"))
        call("KV/Put", rpc_pb2.PutRequest(key=b"long", value=b"x" * 1000))
        call("Lease/LeaseGrant", rpc_pb2.LeaseGrantRequest(ID=0xABC, TTL=100))
        txn = rpc_pb2.TxnRequest()
        for key in (b"t1", b"t2"):
            txn.success.add().request_put.MergeFrom(
                rpc_pb2.PutRequest(key=key, value=b"v", lease=0xABC)
            )
        call("KV/Txn", txn)
        call("KV/DeleteRange", rpc_pb2.DeleteRangeRequest(key=b"long"))
        call("KV/Compact", rpc_pb2.CompactionRequest(revision=3))
        call("Lease/LeaseRevoke", rpc_pb2.LeaseRevokeRequest(ID=0xABC))
        server.stop()
    return data


def test_verify_an_intact_journal(written: Path) -> None:
    for directory in (written, written / "journal"):
        done = jotd("verify", str(directory))
        assert done.returncode == 0, done.stderr
        assert done.stdout.rstrip().endswith("ok")
    found = json.loads(jotd("verify", str(written), "--format=json").stdout)
    assert found["ok"] is True
    assert found["tail"] == 8
    assert found["segments"][0]["last"] == 8


def test_dump_says_what_was_written(written: Path) -> None:
    done = jotd("dump", str(written))
    assert done.returncode == 0, done.stderr
    text = done.stdout
    assert "term 1 begins" in text
    assert r"revision 2: put 'a\xff' = '1' (version 1, created at 2)" in text
    assert "... (1000 bytes)" in text
    assert "lease 0000000000000abc granted, 100 s" in text
    assert "revision 4: put 't2' = 'v' (version 1, created at 4, lease 0000000000000abc)" in text
    assert "revision 5: delete 'long'" in text
    assert "compact at revision 3" in text
    assert "lease 0000000000000abc revoked" in text


def test_dump_as_json_keeps_every_byte(written: Path) -> None:
    done = jotd("dump", str(written), "--format=json")
    batches = [json.loads(line) for line in done.stdout.splitlines()]
    assert [batch["sequence"] for batch in batches] == list(range(1, 9))
    versions = [
        version
        for batch in batches
        for record in batch["records"]
        for version in record.get("versions", ())
    ]
    assert versions[0]["key"].encode("latin-1") == b"a\xff"
    assert versions[1]["value"] == "x" * 1000
    part = jotd("dump", str(written), "--format=json", "--after=3", "--limit=2")
    assert [json.loads(line)["sequence"] for line in part.stdout.splitlines()] == [4, 5]


@pytest.mark.slow
def test_damage_is_found_and_named(written: Path, tmp_path: Path) -> None:
    copy = tmp_path / "journal"
    copy.mkdir()
    for path in (written / "journal").iterdir():
        if path.is_file():
            (copy / path.name).write_bytes(path.read_bytes())
    segment = next(copy.glob("*.seg"))
    data = bytearray(segment.read_bytes())
    data[data.index(b"x" * 100) + 50] ^= 1
    segment.write_bytes(data)
    done = jotd("verify", str(copy))
    assert done.returncode == 1
    assert "DAMAGED" in done.stdout and segment.name in done.stdout
    assert json.loads(jotd("verify", str(copy), "--format=json").stdout)["ok"] is False
    done = jotd("dump", str(copy))
    assert done.returncode == 1
    assert segment.name in done.stderr


def test_no_journal_is_an_error(tmp_path: Path) -> None:
    for action in ("verify", "dump"):
        done = jotd(action, str(tmp_path / "nothing"))
        assert done.returncode == 2
        assert "nothing" in done.stderr
    assert list(tmp_path.iterdir()) == []
