"""Transactions of single keys see what is in flight, whatever they ask (R3, R4)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from kvstore.pb import rpc_pb2 as pb
from tests.unit.node.world import (
    World,
    delete_op,
    get_op,
    mod_is,
    put_op,
    run,
    settle,
    txn_op,
    world,
)

SHAPES: list[dict[str, Any]] = [
    {},
    {"limit": 1},
    {"count_only": True},
    {"keys_only": True},
    {"sort_order": pb.RangeRequest.DESCEND},
    {"sort_target": pb.RangeRequest.VALUE, "sort_order": pb.RangeRequest.ASCEND},
    {"sort_target": pb.RangeRequest.MOD, "keys_only": True},
    {"min_mod_revision": 2},
    {"max_mod_revision": 1},
    {"min_create_revision": 2, "limit": 1},
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_range_of_one_key_in_a_transaction_sees_the_write_in_flight(
    shape: dict[str, Any],
) -> None:
    """Answered while the put is in flight, the range is what it is once the put is committed."""

    async def main() -> None:
        async with world() as w:
            w.journal.hold()
            put = w.put(b"a/1", b"new")
            await settle()
            during = w.txn(success=[put_op(b"other"), get_op(b"a/1", **shape)])
            w.journal.release()
            await put
            await during
            after = await w.txn(success=[put_op(b"other"), get_op(b"a/1", **shape)])
            assert (
                during.response.responses[1].response_range.kvs
                == after.response.responses[1].response_range.kvs
            )
            assert during.response.responses[1].response_range.count == 1

    run(main)


def test_a_range_of_one_key_in_a_transaction_sees_the_delete_in_flight() -> None:
    async def main() -> None:
        async with world() as w:
            await w.put(b"a/1", b"old")
            w.journal.hold()
            w.delete(b"a/1")
            await settle()
            during = w.txn(success=[put_op(b"b/1"), *(get_op(b"a/1", **shape) for shape in SHAPES)])
            w.journal.release()
            await during
            for op in during.response.responses[1:]:
                assert not op.response_range.kvs
                assert op.response_range.count == 0

    run(main)


def test_a_transaction_with_a_long_answer_is_one_step() -> None:
    """Single-key transactions never wait, however big the values that they read are."""

    async def main() -> None:
        async with world() as w:
            big = b"x" * 1_500_000
            await w.put(b"a/1", big)
            await w.put(b"a/2", big)
            w.journal.hold()
            w.put(b"b/1")
            await settle()
            reads = [get_op(b"a/1"), get_op(b"a/2")] * 5
            txn = w.txn([mod_is(b"b/1", 0)], [put_op(b"b/1")], [*reads, delete_op(b"b/1")])
            w.journal.release()
            await txn
            ops = txn.response.responses
            assert not txn.response.succeeded
            assert [op.response_range.kvs[0].value for op in ops[:10]] == [big] * 10
            assert ops[10].response_delete_range.deleted == 1

    run(main)


def test_compares_see_the_state_before_and_operations_what_earlier_ones_made() -> None:
    async def main() -> None:
        async with world() as w:
            await w.put(b"a/1", b"v2")
            txn = await w.txn(
                [mod_is(b"a/1", 2)],
                [
                    put_op(b"a/1", b"v3", prev_kv=True),
                    get_op(b"a/1"),
                    txn_op([mod_is(b"a/1", 2)], [get_op(b"a/1")], [delete_op(b"b/", b"b0")]),
                ],
            )
            first, second, nested = txn.response.responses
            assert first.response_put.prev_kv.value == b"v2"
            assert second.response_range.kvs[0].value == b"v3"
            assert nested.response_txn.succeeded
            assert nested.response_txn.responses[0].response_range.kvs[0].value == b"v3"

    run(main)


@pytest.mark.parametrize("in_flight", [False, True])
def test_each_operation_of_one_revision_sees_the_one_before(in_flight: bool) -> None:
    async def main() -> None:
        async with world() as w:
            if in_flight:
                w.journal.hold()
                w.put(b"x")
                await settle()
            txn = w.txn(
                success=[
                    get_op(b"k"),
                    txn_op(success=[put_op(b"k", b"1", prev_kv=True), get_op(b"k")]),
                    txn_op(success=[delete_op(b"k", prev_kv=True), get_op(b"k", count_only=True)]),
                ]
            )
            w.journal.release()
            await txn
            before, put, delete = txn.response.responses
            assert before.response_range.count == 0
            assert not put.response_txn.responses[0].response_put.HasField("prev_kv")
            assert put.response_txn.responses[1].response_range.kvs[0].version == 1
            assert delete.response_txn.responses[0].response_delete_range.prev_kvs[0].value == b"1"
            assert delete.response_txn.responses[1].response_range.count == 0
            assert (await w.get(b"k")).response.count == 0

    run(main)


async def _answers_in_order(w: World) -> list[str]:
    order: list[str] = []

    async def note(name: str, call: Any) -> None:
        await call
        order.append(name)

    tasks = [
        asyncio.create_task(note("put", w.put(b"k", b"1"))),
        asyncio.create_task(note("get", w.txn(success=[get_op(b"k"), put_op(b"z")]))),
    ]
    await settle()
    assert order == []
    w.journal.release()
    await asyncio.gather(*tasks)
    return order


def test_answers_come_in_the_order_of_the_journal() -> None:
    async def main() -> None:
        async with world() as w:
            w.journal.hold()
            assert await _answers_in_order(w) == ["put", "get"]

    run(main)
