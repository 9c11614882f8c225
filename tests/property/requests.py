"""Random requests over few keys, in several shards and across them."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from kvstore.pb import rpc_pb2 as pb

KEYS = [b"a", b"a/", b"a/1", b"a/2", b"a/3", b"a0", b"b/1", b"b/2", b"b/3", b"c", b"zz"]
ENDS = [b"\x00", b"a/2", b"a/3", b"a0", b"b/2", b"b0", b"c\x00", b"zzz"]
LEASES = [11, 12, 13]

keys = st.sampled_from(KEYS)
range_ends = st.one_of(st.just(b""), st.sampled_from(ENDS))
values = st.sampled_from([b"", b"x", b"y", b"value " * 5])
bools = st.booleans()
leases = st.sampled_from([0, 0, 0, *LEASES])
revisions = st.integers(-1, 25)


@st.composite
def puts(draw: Any) -> pb.PutRequest:
    ignore_value, ignore_lease = draw(bools) and draw(bools), draw(bools) and draw(bools)
    return pb.PutRequest(
        key=draw(keys),
        value=b"" if ignore_value else draw(values),
        lease=0 if ignore_lease else draw(leases),
        prev_kv=draw(bools),
        ignore_value=ignore_value,
        ignore_lease=ignore_lease,
    )


@st.composite
def deletes(draw: Any) -> pb.DeleteRangeRequest:
    return pb.DeleteRangeRequest(key=draw(keys), range_end=draw(range_ends), prev_kv=draw(bools))


@st.composite
def ranges(draw: Any) -> pb.RangeRequest:
    request = pb.RangeRequest(
        key=draw(st.sampled_from([b"a", b"a/", b"b/1", *KEYS])),
        range_end=draw(st.one_of(range_ends, st.sampled_from(ENDS))),
        revision=draw(st.one_of(st.just(0), revisions)),
        limit=draw(st.sampled_from([0, 0, 1, 2, 4, 100])),
        keys_only=draw(bools) and draw(bools),
        count_only=draw(bools) and draw(bools),
    )
    if draw(bools):
        request.sort_order = draw(st.sampled_from([0, 1, 2]))
        request.sort_target = draw(st.sampled_from([0, 1, 2, 3, 4]))
    if draw(bools) and draw(bools):
        for name in ("min_mod", "max_mod", "min_create", "max_create"):
            setattr(request, f"{name}_revision", draw(st.sampled_from([0, 0, 2, 4, 6])))
    return request


@st.composite
def compares(draw: Any) -> pb.Compare:
    target = draw(st.sampled_from([0, 1, 2, 3, 4]))
    compare = pb.Compare(
        target=target,
        result=draw(st.sampled_from([0, 1, 2, 3])),
        key=draw(keys),
        range_end=draw(st.one_of(st.just(b""), range_ends)),
    )
    name = draw(st.sampled_from(["", "", "version", "create_revision", "mod_revision", "lease"]))
    if target == pb.Compare.VALUE:
        compare.value = draw(values)
    elif name:
        setattr(compare, name, draw(st.integers(0, 6)))
    return compare


def _txns(ops: Any) -> Any:
    return st.builds(
        pb.TxnRequest,
        compare=st.lists(compares(), max_size=2),
        success=st.lists(ops, max_size=4),
        failure=st.lists(ops, max_size=3),
    )


_points = st.one_of(
    st.builds(pb.RequestOp, request_put=puts()),
    st.builds(pb.RequestOp, request_delete_range=deletes()),
    st.builds(pb.RequestOp, request_range=ranges()),
)
txns = _txns(
    st.one_of(_points, _points, _points, st.builds(pb.RequestOp, request_txn=_txns(_points)))
)

grants = st.builds(pb.LeaseGrantRequest, ID=st.sampled_from(LEASES), TTL=st.just(60))
revokes = st.builds(pb.LeaseRevokeRequest, ID=st.sampled_from(LEASES))
compactions = st.builds(pb.CompactionRequest, revision=st.integers(1, 25), physical=bools)
