"""What a request must look like, and which of several errors a client sees (etcd's order)."""

from __future__ import annotations

from typing import Any

import pytest

from kvstore.pb import rpc_pb2 as pb
from kvstore.transport.seam import Code
from tests.unit.node.world import (
    KV,
    LEASE,
    World,
    delete_op,
    get_op,
    mod_is,
    put_op,
    run,
    txn_op,
    world,
)

EMPTY_KEY = "etcdserver: key is not provided"
SORT = "etcdserver: invalid sort option"
VALUE = "etcdserver: value is provided"
LEASE_GIVEN = "etcdserver: lease is provided"
NOT_FOUND = "etcdserver: key not found"
TOO_MANY = "etcdserver: too many operations in txn request"
DUPLICATE = "etcdserver: duplicate key given in txn request"
TOO_LARGE = "etcdserver: request is too large"
FUTURE = "etcdserver: mvcc: required revision is a future revision"
COMPACTED = "etcdserver: mvcc: required revision has been compacted"
NO_LEASE = "etcdserver: requested lease not found"


def check(answer: Any, text: str | None, code: Code = Code.INVALID_ARGUMENT) -> None:
    if text is None:
        assert answer.code == Code.OK, answer.message
    else:
        assert answer.error == (code, text)


PUTS: list[tuple[dict[str, Any], str]] = [
    ({"ignore_value": True, "value": b"x"}, EMPTY_KEY),
    ({"key": b"k", "ignore_value": True, "value": b"x", "ignore_lease": True, "lease": 1}, VALUE),
    ({"key": b"k", "ignore_lease": True, "lease": 99}, LEASE_GIVEN),
    ({"key": b"k", "ignore_value": True}, NOT_FOUND),
    ({"key": b"k", "ignore_lease": True}, NOT_FOUND),
]


@pytest.mark.parametrize(("fields", "text"), PUTS)
def test_puts(fields: dict[str, Any], text: str) -> None:
    async def main() -> None:
        async with world() as w:
            check(await w.call(KV + "Put", pb.PutRequest(**fields)), text)
            check(await w.txn(success=[pb.RequestOp(request_put=pb.PutRequest(**fields))]), text)
            missing = await w.put(b"k", ignore_value=True, lease=77)
            check(missing, NO_LEASE, Code.NOT_FOUND)
            assert w.revision == 1

    run(main)


RANGES: list[tuple[dict[str, Any], str, Code]] = [
    ({"sort_order": 9}, EMPTY_KEY, Code.INVALID_ARGUMENT),
    ({"key": b"k", "sort_order": 3, "sort_target": 9}, SORT, Code.INVALID_ARGUMENT),
    ({"key": b"k", "sort_target": 5, "revision": 99}, SORT, Code.INVALID_ARGUMENT),
    ({"key": b"k", "sort_target": -1}, SORT, Code.INVALID_ARGUMENT),
    ({"key": b"k", "revision": 99}, FUTURE, Code.OUT_OF_RANGE),
    ({"key": b"k", "revision": 99, "count_only": True}, FUTURE, Code.OUT_OF_RANGE),
    ({"key": b"k", "revision": 2}, COMPACTED, Code.OUT_OF_RANGE),
    ({"key": b"a", "range_end": b"b", "revision": 2}, COMPACTED, Code.OUT_OF_RANGE),
]


@pytest.mark.parametrize(("fields", "text", "code"), RANGES)
def test_ranges(fields: dict[str, Any], text: str, code: Code) -> None:
    async def main() -> None:
        async with world() as w:
            for _ in range(4):
                await w.put(b"k")
            await w.compact(3)
            request = pb.RangeRequest(**fields)
            check(await w.call(KV + "Range", request), text, code)
            ops = [pb.RequestOp(request_range=request)]
            check(await w.txn(success=ops), text, code)
            check(await w.txn(success=[put_op(b"x"), *ops]), text, code)
            for revision in (0, -5, 3, 5):
                check(await w.get(b"k", revision=revision), None)

    run(main)


def nest(levels: int, op: pb.RequestOp) -> pb.RequestOp:
    for _ in range(levels):
        op = txn_op(success=[op])
    return op


TXNS: dict[str, tuple[dict[str, Any], str | None]] = {
    "129 puts": ({"success": [put_op(b"%d" % n) for n in range(129)]}, TOO_MANY),
    "128 puts": ({"success": [put_op(b"%d" % n) for n in range(128)]}, None),
    "129 of both branches, counted apart": (
        {
            "success": [put_op(b"%d" % n) for n in range(100)],
            "failure": [put_op(b"%d" % n) for n in range(100)],
        },
        None,
    ),
    "129 compares": ({"compare": [mod_is(b"k", 0)] * 129}, TOO_MANY),
    "count before the rest": ({"success": [put_op(b"")] * 129}, TOO_MANY),
    "compare without a key": ({"compare": [mod_is(b"", 0)], "success": [put_op(b"")]}, EMPTY_KEY),
    "op without a key": ({"failure": [delete_op(b"")]}, EMPTY_KEY),
    "op without a request": ({"success": [pb.RequestOp()]}, NOT_FOUND),
    "first op first": ({"success": [pb.RequestOp(), put_op(b"")]}, NOT_FOUND),
    "nested budget": (
        {"success": [txn_op(success=[put_op(b"x")]), *[get_op(b"k")] * 127]},
        TOO_MANY,
    ),
    "nested empty ones": ({"success": [txn_op()] * 128}, None),
    "64 times 64": (
        {
            "success": [
                txn_op(success=[put_op(b"%d-%d" % (n, m)) for m in range(64)]) for n in range(63)
            ]
        },
        None,
    ),
    "far too many in all": (
        {
            "success": [
                txn_op(success=[put_op(b"%d-%d" % (n, m)) for m in range(64)]) for n in range(64)
            ]
        },
        TOO_MANY,
    ),
    "put twice": ({"success": [put_op(b"k"), put_op(b"k")]}, DUPLICATE),
    "put twice in the branch not taken": ({"failure": [put_op(b"k"), put_op(b"k")]}, DUPLICATE),
    "put and delete": ({"success": [put_op(b"k"), delete_op(b"k")]}, DUPLICATE),
    "delete and put": ({"success": [delete_op(b"k"), put_op(b"k")]}, DUPLICATE),
    "put in a deleted range": ({"success": [delete_op(b"a", b"l"), put_op(b"k")]}, DUPLICATE),
    "put at the end of a deleted range": ({"success": [delete_op(b"a", b"k"), put_op(b"k")]}, None),
    "put between deleted ranges": (
        {"success": [delete_op(b"a", b"c"), delete_op(b"d", b"f"), put_op(b"c")]},
        None,
    ),
    "put where deleted ranges overlap": (
        {"success": [delete_op(b"a", b"d"), delete_op(b"c", b"f"), put_op(b"e")]},
        DUPLICATE,
    ),
    "delete twice": ({"success": [delete_op(b"k"), delete_op(b"a", b"z")]}, None),
    "delete from a key on and put": ({"success": [delete_op(b"a", b"\x00"), put_op(b"b")]}, None),
    "inverted delete and put": ({"success": [delete_op(b"z", b"a"), put_op(b"k")]}, None),
    "put in both branches": ({"success": [put_op(b"k")], "failure": [put_op(b"k")]}, None),
    "put in both branches of a nested one": (
        {"success": [txn_op(success=[put_op(b"k")], failure=[put_op(b"k")])]},
        None,
    ),
    "put here and in a nested one": (
        {"success": [put_op(b"k"), txn_op(failure=[put_op(b"k")])]},
        DUPLICATE,
    ),
    "put in two nested ones": (
        {"success": [txn_op(success=[put_op(b"k")]), txn_op(failure=[put_op(b"k")])]},
        DUPLICATE,
    ),
    "put in a nested one, deleted here": (
        {"success": [txn_op(success=[put_op(b"k")]), delete_op(b"a", b"l")]},
        DUPLICATE,
    ),
    "put nested, then deleted in a sibling": (
        {"success": [txn_op(success=[put_op(b"k")]), txn_op(success=[delete_op(b"k")])]},
        None,
    ),
    "deleted nested, then put in a sibling": (
        {"success": [txn_op(success=[delete_op(b"k")]), txn_op(success=[put_op(b"k")])]},
        DUPLICATE,
    ),
    "deep": ({"success": [nest(40, put_op(b"k"))]}, None),
}


@pytest.mark.parametrize("name", TXNS)
def test_transactions(name: str) -> None:
    fields, text = TXNS[name]

    async def main() -> None:
        async with world() as w:
            await w.put(b"k")
            revision = w.revision
            check(await w.txn(**fields), text)
            if text is not None:
                assert w.revision == revision

    run(main)


def test_checks_at_execution_see_the_state_before_and_only_what_is_taken() -> None:
    async def main() -> None:
        async with world() as w:
            await w.put(b"k")
            revision = w.revision
            cases: list[tuple[Any, Any, str | None, Code]] = [
                ([put_op(b"new"), put_op(b"x", lease=9)], (), NO_LEASE, Code.NOT_FOUND),
                ([put_op(b"x", ignore_value=True)], (), NOT_FOUND, Code.INVALID_ARGUMENT),
                (
                    [put_op(b"new"), get_op(b"new", revision=revision + 1)],
                    (),
                    FUTURE,
                    Code.OUT_OF_RANGE,
                ),
                (
                    [
                        txn_op(success=[put_op(b"n")]),
                        get_op(b"k", revision=99),
                        put_op(b"x", lease=9),
                    ],
                    (),
                    FUTURE,
                    Code.OUT_OF_RANGE,
                ),
                ([get_op(b"k")], [put_op(b"x", lease=9), get_op(b"k", revision=99)], None, Code.OK),
            ]
            for success, failure, text, code in cases:
                check(await w.txn((), success, failure), text, code)
                assert w.revision == revision

    run(main)


def test_what_makes_etcd_crash_fails_here_and_changes_nothing() -> None:
    """The check passes on the state before; the operation then finds the key deleted."""

    async def main() -> None:
        async with world() as w:
            await w.put(b"k", b"v")
            before = w.revision
            crash = [delete_op(b"a", b"\x00"), put_op(b"k", ignore_value=True)]
            check(await w.txn(success=crash), NOT_FOUND)
            assert w.revision == before
            assert w.get(b"k").response.kvs[0].value == b"v"

    run(main)


@pytest.mark.parametrize("method", ["Put", "DeleteRange", "Txn", "Compact", "Range"])
def test_what_cannot_be_parsed(method: str) -> None:
    async def main() -> None:
        async with world() as w:
            call = await w.call(KV + method, b"\x0a\xff\xff")
            assert call.code == Code.INTERNAL
            assert call.message.startswith("grpc: error unmarshalling request: ")

    run(main)


def test_writes_have_a_limit_of_their_own_and_it_comes_last() -> None:
    async def main() -> None:
        async with world() as w:
            big = b"x" * 1_572_864
            check(await w.put(b"k", big), TOO_LARGE)
            check(await w.put(b"", big), EMPTY_KEY)
            check(await w.txn(success=[put_op(b"k", big)]), TOO_LARGE)
            check(await w.txn(success=[put_op(b"k", big), put_op(b"k")]), DUPLICATE)
            check(await w.delete(big), TOO_LARGE)
            check(await w.get(big), None)
            check(await w.txn(success=[get_op(big)]), None)
            fits = pb.PutRequest(key=b"k")
            fits.value = b"x" * (
                1_572_847 - pb.PutRequest(key=b"k", value=big).ByteSize() + len(big)
            )
            check(await w.call(KV + "Put", fits), None)
            fits.value += b"x"
            check(await w.call(KV + "Put", fits), TOO_LARGE)

    run(main)


def lease(w: World, lease_id: int, ttl_s: int) -> Any:
    return w.call(LEASE + "LeaseGrant", pb.LeaseGrantRequest(ID=lease_id, TTL=ttl_s))


def test_leases() -> None:
    async def main() -> None:
        async with world() as w:
            granted = (await lease(w, 0, 0)).response
            assert granted.ID > 0 and granted.TTL == 2
            assert (await lease(w, -7, 100)).response.ID == -7
            check(
                await lease(w, -7, 9_000_000_001),
                "etcdserver: too large lease TTL",
                Code.OUT_OF_RANGE,
            )
            check(
                await lease(w, -7, 1), "etcdserver: lease already exists", Code.FAILED_PRECONDITION
            )
            check(await w.revoke(0), NO_LEASE, Code.NOT_FOUND)
            check(await w.revoke(8), NO_LEASE, Code.NOT_FOUND)
            assert w.time_to_live(8).response == pb.LeaseTimeToLiveResponse(
                header=w.time_to_live(8).response.header, ID=8, TTL=-1
            )

    run(main)
