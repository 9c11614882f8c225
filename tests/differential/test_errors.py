"""Every error that etcd's API layer has for these services, provoked on both servers.

Each case names the text it is about, so that a case which stopped hitting its error is noticed.
After each, nothing was written and a healthy request is answered.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from google.protobuf.message import Message

from kvstore.pb import rpc_pb2 as rpc
from tests.differential.conftest import needs_oracle
from tests.differential.strategies import wrap
from tests.oracle.faults import CURRENT as CURRENT_ETCD
from tests.oracle.faults import FAIR
from tests.oracle.pair import COMPACTED, CURRENT, Pair

pytestmark = pytest.mark.slow

UNKNOWN, INVALID, NOT_FOUND, EXHAUSTED, PRECONDITION, OUT_OF_RANGE, UNIMPLEMENTED = (
    2,
    3,
    5,
    8,
    9,
    11,
    12,
)

EMPTY_KEY = "etcdserver: key is not provided"
KEY_NOT_FOUND = "etcdserver: key not found"
VALUE_PROVIDED = "etcdserver: value is provided"
LEASE_PROVIDED = "etcdserver: lease is provided"
TOO_MANY_OPS = "etcdserver: too many operations in txn request"
DUPLICATE_KEY = "etcdserver: duplicate key given in txn request"
BAD_SORT = "etcdserver: invalid sort option"
IS_COMPACTED = "etcdserver: mvcc: required revision has been compacted"
IS_FUTURE = "etcdserver: mvcc: required revision is a future revision"
NO_LEASE = "etcdserver: requested lease not found"
LEASE_EXISTS = "etcdserver: lease already exists"
TTL_TOO_LARGE = "etcdserver: too large lease TTL"
NO_SPACE = "etcdserver: mvcc: database space exceeded"
DATA_LOSS = 15
CORRUPT = "etcdserver: corrupt cluster"
LAST_MEMBER = "etcdserver: re-configuration failed due to not enough started members"


@dataclass(frozen=True)
class Case:
    name: str
    method: str
    request: Message
    code: int
    text: str


def get(key: bytes = b"k", **how: object) -> rpc.RangeRequest:
    return rpc.RangeRequest(key=key, **how)


def put(key: bytes = b"k", value: bytes = b"v", **how: object) -> rpc.PutRequest:
    return rpc.PutRequest(key=key, value=value, **how)


def delete(key: bytes = b"k", **how: object) -> rpc.DeleteRangeRequest:
    return rpc.DeleteRangeRequest(key=key, **how)


def txn(
    *ops: Message, failure: tuple[Message, ...] = (), compare: tuple[rpc.Compare, ...] = ()
) -> rpc.TxnRequest:
    return rpc.TxnRequest(
        compare=compare,
        success=[op if isinstance(op, rpc.RequestOp) else wrap(op) for op in ops],
        failure=[wrap(op) for op in failure],
    )


def many(count: int) -> list[rpc.PutRequest]:
    return [put(b"many%d" % n) for n in range(count)]


CASES = [
    # Range
    Case("range: no key", "KV.Range", get(b""), INVALID, EMPTY_KEY),
    Case("range: no key before sort", "KV.Range", get(b"", sort_order=9), INVALID, EMPTY_KEY),
    Case("range: sort order", "KV.Range", get(sort_order=3), INVALID, BAD_SORT),
    Case("range: negative order", "KV.Range", get(sort_order=-1), INVALID, BAD_SORT),
    Case("range: sort target", "KV.Range", get(sort_target=5), INVALID, BAD_SORT),
    Case(
        "range: sort before revision",
        "KV.Range",
        get(sort_target=-1, revision=1 << 62),
        INVALID,
        BAD_SORT,
    ),
    Case("range: future", "KV.Range", get(revision=CURRENT + 1), OUT_OF_RANGE, IS_FUTURE),
    Case("range: far future", "KV.Range", get(revision=(1 << 63) - 1), OUT_OF_RANGE, IS_FUTURE),
    Case("range: compacted", "KV.Range", get(revision=COMPACTED - 1), OUT_OF_RANGE, IS_COMPACTED),
    Case(
        "range: compacted count",
        "KV.Range",
        get(revision=1, count_only=True),
        OUT_OF_RANGE,
        IS_COMPACTED,
    ),
    Case(
        "range: serializable future",
        "KV.Range",
        get(revision=CURRENT + 1, serializable=True),
        OUT_OF_RANGE,
        IS_FUTURE,
    ),
    # RangeStream
    Case("stream: no key", "KV.RangeStream", get(b""), INVALID, EMPTY_KEY),
    Case("stream: enum", "KV.RangeStream", get(sort_order=7), INVALID, BAD_SORT),
    Case(
        "stream: descending",
        "KV.RangeStream",
        get(sort_order=2),
        UNIMPLEMENTED,
        "RangeStream does not support custom sort orders",
    ),
    Case(
        "stream: by version",
        "KV.RangeStream",
        get(sort_order=1, sort_target=1),
        UNIMPLEMENTED,
        "RangeStream does not support custom sort orders",
    ),
    Case(
        "stream: filter",
        "KV.RangeStream",
        get(max_create_revision=-1),
        UNIMPLEMENTED,
        "RangeStream does not support revision filters",
    ),
    Case(
        "stream: order before filter",
        "KV.RangeStream",
        get(sort_order=2, min_mod_revision=1),
        UNIMPLEMENTED,
        "RangeStream does not support custom sort orders",
    ),
    Case("stream: future", "KV.RangeStream", get(revision=CURRENT + 1), OUT_OF_RANGE, IS_FUTURE),
    Case("stream: compacted", "KV.RangeStream", get(revision=1), OUT_OF_RANGE, IS_COMPACTED),
    # Put
    Case("put: no key", "KV.Put", put(b""), INVALID, EMPTY_KEY),
    Case(
        "put: no key before the rest",
        "KV.Put",
        put(b"", ignore_value=True, lease=77),
        INVALID,
        EMPTY_KEY,
    ),
    Case("put: value with ignore_value", "KV.Put", put(ignore_value=True), INVALID, VALUE_PROVIDED),
    Case(
        "put: value before lease",
        "KV.Put",
        put(ignore_value=True, ignore_lease=True, lease=7),
        INVALID,
        VALUE_PROVIDED,
    ),
    Case(
        "put: lease with ignore_lease",
        "KV.Put",
        put(ignore_lease=True, lease=1),
        INVALID,
        LEASE_PROVIDED,
    ),
    Case(
        "put: ignore_value of nothing",
        "KV.Put",
        put(b"no", b"", ignore_value=True),
        INVALID,
        KEY_NOT_FOUND,
    ),
    Case(
        "put: ignore_lease of nothing",
        "KV.Put",
        put(b"no", ignore_lease=True),
        INVALID,
        KEY_NOT_FOUND,
    ),
    Case("put: no such lease", "KV.Put", put(lease=77), NOT_FOUND, NO_LEASE),
    Case("put: negative lease", "KV.Put", put(lease=-1), NOT_FOUND, NO_LEASE),
    Case(
        "put: lease before key",
        "KV.Put",
        put(b"no", b"", ignore_value=True, lease=77),
        NOT_FOUND,
        NO_LEASE,
    ),
    # DeleteRange
    Case("delete: no key", "KV.DeleteRange", delete(b"", range_end=b"\0"), INVALID, EMPTY_KEY),
    # Txn: shape
    Case("txn: empty operation", "KV.Txn", txn(put(), rpc.RequestOp()), INVALID, KEY_NOT_FOUND),
    Case(
        "txn: compare without key",
        "KV.Txn",
        txn(put(), compare=(rpc.Compare(),)),
        INVALID,
        EMPTY_KEY,
    ),
    Case("txn: 129 operations", "KV.Txn", txn(*many(129)), INVALID, TOO_MANY_OPS),
    Case("txn: 129 in else", "KV.Txn", txn(failure=tuple(many(129))), INVALID, TOO_MANY_OPS),
    Case(
        "txn: 129 compares",
        "KV.Txn",
        txn(compare=(rpc.Compare(key=b"k"),) * 129),
        INVALID,
        TOO_MANY_OPS,
    ),
    Case("txn: count before keys", "KV.Txn", txn(*many(128), put(b"")), INVALID, TOO_MANY_OPS),
    Case(
        "txn: nested over the rest",
        "KV.Txn",
        txn(txn(*many(65)), compare=(rpc.Compare(key=b"k"),) * 64),
        INVALID,
        TOO_MANY_OPS,
    ),
    Case(
        "txn: compare before op",
        "KV.Txn",
        txn(get(sort_order=9), compare=(rpc.Compare(),)),
        INVALID,
        EMPTY_KEY,
    ),
    Case("txn: range without key", "KV.Txn", txn(put(), get(b"")), INVALID, EMPTY_KEY),
    Case("txn: put without key", "KV.Txn", txn(put(), put(b"")), INVALID, EMPTY_KEY),
    Case("txn: delete without key", "KV.Txn", txn(put(), delete(b"")), INVALID, EMPTY_KEY),
    Case("txn: sort", "KV.Txn", txn(put(), get(sort_target=9)), INVALID, BAD_SORT),
    Case(
        "txn: value provided",
        "KV.Txn",
        txn(put(b"o"), put(ignore_value=True)),
        INVALID,
        VALUE_PROVIDED,
    ),
    Case(
        "txn: lease provided",
        "KV.Txn",
        txn(put(b"o"), put(ignore_lease=True, lease=1)),
        INVALID,
        LEASE_PROVIDED,
    ),
    Case(
        "txn: nested shape", "KV.Txn", txn(put(), txn(txn(rpc.RequestOp()))), INVALID, KEY_NOT_FOUND
    ),
    Case("txn: shape in else", "KV.Txn", txn(put(), failure=(put(b""),)), INVALID, EMPTY_KEY),
    # Txn: duplicate keys
    Case("txn: put twice", "KV.Txn", txn(put(), put()), INVALID, DUPLICATE_KEY),
    Case("txn: put twice in else", "KV.Txn", txn(failure=(put(), put())), INVALID, DUPLICATE_KEY),
    Case("txn: put, delete", "KV.Txn", txn(put(), delete()), INVALID, DUPLICATE_KEY),
    Case("txn: delete, put", "KV.Txn", txn(delete(), put()), INVALID, DUPLICATE_KEY),
    Case(
        "txn: put in deleted range",
        "KV.Txn",
        txn(put(b"kk"), delete(range_end=b"l")),
        INVALID,
        DUPLICATE_KEY,
    ),
    Case("txn: put below and here", "KV.Txn", txn(txn(put()), put()), INVALID, DUPLICATE_KEY),
    Case("txn: put in two below", "KV.Txn", txn(txn(put()), txn(put())), INVALID, DUPLICATE_KEY),
    Case(
        "txn: put below, delete here", "KV.Txn", txn(txn(put()), delete()), INVALID, DUPLICATE_KEY
    ),
    Case(
        "txn: delete below, put here", "KV.Txn", txn(txn(delete()), put()), INVALID, DUPLICATE_KEY
    ),
    Case(
        "txn: delete below, put in next",
        "KV.Txn",
        txn(txn(delete()), txn(put())),
        INVALID,
        DUPLICATE_KEY,
    ),
    Case(
        "txn: in an else below", "KV.Txn", txn(put(), txn(failure=(put(),))), INVALID, DUPLICATE_KEY
    ),
    Case("txn: shape before duplicates", "KV.Txn", txn(put(), put(), put(b"")), INVALID, EMPTY_KEY),
    # Txn: execution
    Case("txn: no such lease", "KV.Txn", txn(put(b"o"), put(lease=77)), NOT_FOUND, NO_LEASE),
    Case("txn: nested lease", "KV.Txn", txn(put(b"o"), txn(put(lease=77))), NOT_FOUND, NO_LEASE),
    Case(
        "txn: ignore_value of nothing",
        "KV.Txn",
        txn(put(), put(b"no", b"", ignore_value=True)),
        INVALID,
        KEY_NOT_FOUND,
    ),
    Case(
        "txn: ignore_lease of what it puts itself",
        "KV.Txn",
        txn(txn(put(b"no")), put(b"no1", ignore_lease=True)),
        INVALID,
        KEY_NOT_FOUND,
    ),
    Case("txn: future", "KV.Txn", txn(put(), get(revision=CURRENT + 10)), OUT_OF_RANGE, IS_FUTURE),
    Case(
        "txn: its own revision",
        "KV.Txn",
        txn(put(), get(revision=CURRENT + 1)),
        OUT_OF_RANGE,
        IS_FUTURE,
    ),
    Case(
        "txn: compacted",
        "KV.Txn",
        txn(put(), get(revision=COMPACTED - 1)),
        OUT_OF_RANGE,
        IS_COMPACTED,
    ),
    Case(
        "txn: negative revision", "KV.Txn", txn(put(), get(revision=-1)), OUT_OF_RANGE, IS_COMPACTED
    ),
    Case(
        "txn: read only, future", "KV.Txn", txn(get(revision=CURRENT + 1)), OUT_OF_RANGE, IS_FUTURE
    ),
    Case("txn: first of two", "KV.Txn", txn(put(lease=77), get(revision=1)), NOT_FOUND, NO_LEASE),
    Case(
        "txn: other first of two",
        "KV.Txn",
        txn(get(revision=1), put(lease=77)),
        OUT_OF_RANGE,
        IS_COMPACTED,
    ),
    # Compact
    Case(
        "compact: again",
        "KV.Compact",
        rpc.CompactionRequest(revision=COMPACTED),
        OUT_OF_RANGE,
        IS_COMPACTED,
    ),
    Case(
        "compact: before",
        "KV.Compact",
        rpc.CompactionRequest(revision=COMPACTED - 1),
        OUT_OF_RANGE,
        IS_COMPACTED,
    ),
    Case(
        "compact: zero", "KV.Compact", rpc.CompactionRequest(revision=0), OUT_OF_RANGE, IS_COMPACTED
    ),
    Case(
        "compact: negative",
        "KV.Compact",
        rpc.CompactionRequest(revision=-5, physical=True),
        OUT_OF_RANGE,
        IS_COMPACTED,
    ),
    Case(
        "compact: future",
        "KV.Compact",
        rpc.CompactionRequest(revision=CURRENT + 1),
        OUT_OF_RANGE,
        IS_FUTURE,
    ),
    # Lease
    Case(
        "grant: again",
        "Lease.LeaseGrant",
        rpc.LeaseGrantRequest(ID=1, TTL=60),
        PRECONDITION,
        LEASE_EXISTS,
    ),
    Case(
        "grant: too long",
        "Lease.LeaseGrant",
        rpc.LeaseGrantRequest(ID=5, TTL=9_000_000_001),
        OUT_OF_RANGE,
        TTL_TOO_LARGE,
    ),
    Case(
        "grant: too long before again",
        "Lease.LeaseGrant",
        rpc.LeaseGrantRequest(ID=1, TTL=(1 << 63) - 1),
        OUT_OF_RANGE,
        TTL_TOO_LARGE,
    ),
    Case("revoke: none", "Lease.LeaseRevoke", rpc.LeaseRevokeRequest(ID=77), NOT_FOUND, NO_LEASE),
    Case("revoke: zero", "Lease.LeaseRevoke", rpc.LeaseRevokeRequest(ID=0), NOT_FOUND, NO_LEASE),
    # Maintenance
    Case(
        "hash: future",
        "Maintenance.HashKV",
        rpc.HashKVRequest(revision=CURRENT + 1),
        OUT_OF_RANGE,
        IS_FUTURE,
    ),
    Case(
        "hash: compacted",
        "Maintenance.HashKV",
        rpc.HashKVRequest(revision=COMPACTED - 1),
        OUT_OF_RANGE,
        IS_COMPACTED,
    ),
]


def _prepare(pair: Pair) -> None:
    """Keys ``k`` and ``o`` with some history, a lease 1, and a compaction that nothing hides."""
    pair.reset()
    pair.call("Lease.LeaseGrant", rpc.LeaseGrantRequest(ID=1, TTL=5000))
    for value in (b"1", b"2", b"3"):
        pair.call("KV.Put", put(b"k", value))
        pair.call("KV.Put", put(b"o", value, lease=1))
    pair.call("KV.Compact", rpc.CompactionRequest(revision=CURRENT - 2, physical=True))


def _untouched(pair: Pair, revision: int) -> None:
    """No write came through, and the server is well."""
    assert pair.call("KV.Range", get(b"\0", range_end=b"\0")).message.header.revision == revision
    pair.call("Maintenance.HashKV", rpc.HashKVRequest(revision=CURRENT))


def test_every_error(servers: Pair) -> None:
    _prepare(servers)
    for case in CASES:
        if case.text == BAD_SORT and servers.version < FAIR:
            continue
        revision = servers.revision
        answer = servers.call(case.method, case.request)
        if servers.version >= CURRENT_ETCD or not case.name.endswith("first of two"):
            assert (answer.code, answer.text) == (case.code, case.text), case.name
        _untouched(servers, revision)


@pytest.mark.parametrize("method", ["KV.Range", "KV.Put", "KV.Txn"])
def test_has_leader_metadata(pair: Pair, method: str) -> None:
    """Clients may insist on a leader; there is one."""
    request = {"KV.Range": get(), "KV.Put": put(), "KV.Txn": txn(put())}[method]
    for md in ([("hasleader", "true")], [("hasleader", "x")], [("client-api-version", "3.7")]):
        assert pair.call(method, request, metadata=md).ok


@needs_oracle(FAIR, "forbids less when there is no space")
def test_space(pair: Pair) -> None:
    """What a NOSPACE alarm forbids and what it leaves."""
    pair.call("Lease.LeaseGrant", rpc.LeaseGrantRequest(ID=1, TTL=5000))
    pair.call("KV.Put", put(b"k", b"v", lease=1))
    raised = rpc.AlarmRequest(action=rpc.AlarmRequest.ACTIVATE, memberID=5, alarm=rpc.NOSPACE)
    lowered = rpc.AlarmRequest(action=rpc.AlarmRequest.DEACTIVATE, memberID=5, alarm=rpc.NOSPACE)
    pair.call("Maintenance.Alarm", lowered)
    pair.call("Maintenance.Alarm", raised)
    pair.call("Maintenance.Alarm", raised)
    try:
        for alarm in (rpc.NONE, rpc.NOSPACE, rpc.CORRUPT, 9):
            pair.call("Maintenance.Alarm", rpc.AlarmRequest(alarm=alarm))
        pair.call("Maintenance.Status", rpc.StatusRequest())
        for method, request in (
            ("KV.Put", put()),
            ("KV.Txn", txn(put())),
            ("KV.Txn", txn(txn(txn(put(b"z"))))),
            ("KV.Txn", txn(failure=(put(b"z"),))),
            ("Lease.LeaseGrant", rpc.LeaseGrantRequest(ID=2, TTL=60)),
        ):
            answer = pair.call(method, request)
            assert (answer.code, answer.text) == (EXHAUSTED, NO_SPACE)
        for method, request in (
            # Checked before space.
            ("KV.Put", put(b"")),
            ("KV.Txn", txn(put(), put())),
            ("KV.Put", put(lease=77)),
            # Allowed.
            ("KV.Range", get()),
            ("KV.Txn", txn(get())),
            ("KV.Txn", txn()),
            ("KV.Txn", txn(delete(b"x"))),
            ("KV.DeleteRange", delete()),
            ("KV.Compact", rpc.CompactionRequest(revision=CURRENT)),
            ("Lease.LeaseRevoke", rpc.LeaseRevokeRequest(ID=1)),
        ):
            pair.call(method, request)
    finally:
        pair.call("Maintenance.Alarm", lowered)
    assert pair.call("KV.Put", put()).ok
    pair.call("Maintenance.Alarm", rpc.AlarmRequest())


def test_corruption(pair: Pair) -> None:
    """What a CORRUPT alarm forbids and what it leaves: nothing is written or expires any more."""
    pair.call("Lease.LeaseGrant", rpc.LeaseGrantRequest(ID=1, TTL=5000))
    pair.call("KV.Put", put(b"k", b"v", lease=1))
    raised = rpc.AlarmRequest(action=rpc.AlarmRequest.ACTIVATE, memberID=5, alarm=rpc.CORRUPT)
    lowered = rpc.AlarmRequest(action=rpc.AlarmRequest.DEACTIVATE, memberID=5, alarm=rpc.CORRUPT)
    full = rpc.AlarmRequest(action=rpc.AlarmRequest.ACTIVATE, memberID=5, alarm=rpc.NOSPACE)
    emptied = rpc.AlarmRequest(action=rpc.AlarmRequest.DEACTIVATE, memberID=5, alarm=rpc.NOSPACE)
    pair.call("Maintenance.Alarm", raised)
    try:
        pair.call("Maintenance.Alarm", rpc.AlarmRequest())
        for requests in range(2):
            for method, request in (
                ("KV.Put", put()),
                ("KV.Put", put(lease=77)),
                ("KV.Put", put(b"none", b"", ignore_value=True)),
                ("KV.DeleteRange", delete()),
                ("KV.DeleteRange", delete(b"none")),
                ("KV.Txn", txn(put())),
                ("KV.Txn", txn(failure=(put(b"z"),))),
                ("KV.Txn", txn(delete(b"none"))),
                ("KV.Compact", rpc.CompactionRequest(revision=CURRENT)),
                ("KV.Compact", rpc.CompactionRequest(revision=CURRENT + 1)),
                ("Lease.LeaseGrant", rpc.LeaseGrantRequest(ID=2, TTL=60)),
                ("Lease.LeaseGrant", rpc.LeaseGrantRequest(ID=1, TTL=60)),
                ("Lease.LeaseRevoke", rpc.LeaseRevokeRequest(ID=1)),
                ("Lease.LeaseRevoke", rpc.LeaseRevokeRequest(ID=77)),
            ):
                answer = pair.call(method, request)
                assert (answer.code, answer.text) == (DATA_LOSS, CORRUPT), request
            if not requests:
                # Space is asked about behind that.
                pair.call("Maintenance.Alarm", full)
        for method, request in (
            # Checked before that.
            ("KV.Put", put(b"")),
            ("KV.Txn", txn(put(), put())),
            # Allowed.
            ("KV.Range", get()),
            ("KV.Txn", txn(get())),
            ("KV.Txn", txn()),
            ("Lease.LeaseTimeToLive", rpc.LeaseTimeToLiveRequest(ID=1, keys=True)),
            ("Lease.LeaseLeases", rpc.LeaseLeasesRequest()),
            ("Maintenance.HashKV", rpc.HashKVRequest()),
        ):
            pair.call(method, request)
    finally:
        pair.call("Maintenance.Alarm", emptied)
        pair.call("Maintenance.Alarm", lowered)
    assert pair.call("KV.Put", put()).ok
    pair.call("Maintenance.Alarm", rpc.AlarmRequest())


def test_first_compactions(servers: Pair) -> None:
    """What holds only as long as nothing was ever compacted."""
    servers.fresh()
    servers.call("KV.Compact", rpc.CompactionRequest(revision=-1))
    servers.call("KV.Compact", rpc.CompactionRequest(revision=CURRENT + 1))
    for revision in (0, -1, -7, 1, 2):
        servers.call("KV.Range", get(revision=revision))
        servers.call("KV.Txn", txn(get(revision=revision)))
        servers.call("Maintenance.HashKV", rpc.HashKVRequest(revision=revision))
    servers.call("KV.Put", put())
    for revision in (0, -1, -2, 1):
        servers.call("KV.Txn", txn(put(), get(revision=revision)))
    servers.call("KV.Compact", rpc.CompactionRequest(revision=0))
    servers.call("KV.Compact", rpc.CompactionRequest(revision=0))
    for revision in (0, -1, 1):
        servers.call("KV.Txn", txn(put(), get(revision=revision)))
    servers.call("KV.Compact", rpc.CompactionRequest(revision=1))
    servers.in_step = False  # HashKV(0) of this etcd has a memory of its own now.


def test_lease_lives(pair: Pair) -> None:
    """The shortest time to live, expiry in one revision, and what is left of the lease."""
    pair.call("Lease.LeaseGrant", rpc.LeaseGrantRequest(ID=9, TTL=5000))
    for ttl in (1, 0, -5, 2):
        # Gone before it expires: nothing here may take two seconds.
        pair.call("Lease.LeaseGrant", rpc.LeaseGrantRequest(ID=4, TTL=ttl))
        pair.call("Lease.LeaseRevoke", rpc.LeaseRevokeRequest(ID=4))
    with pair.right.open("Watch.Watch") as right, pair.left.open("Watch.Watch") as left:
        request = rpc.WatchRequest(
            create_request=rpc.WatchCreateRequest(
                key=b"\0", range_end=b"\0", prev_kv=True, filters=[rpc.WatchCreateRequest.NOPUT]
            )
        )
        for stream in (left, right):
            stream.send(request)
            assert stream.next().created
        pair.call("Lease.LeaseGrant", rpc.LeaseGrantRequest(ID=4, TTL=1))
        for key in (b"/registry/pods/x", b"/registry/events/x", b"a", b"/registry/minions/x"):
            pair.call("KV.Put", put(key, b"leased", lease=4))
        pair.call("KV.Put", put(b"a", b"not leased any more"))
        one, other = left.next(), right.next()
        assert [(e.type, e.kv, e.prev_kv) for e in one.events] == [
            (e.type, e.kv, e.prev_kv) for e in other.events
        ]
        assert len(one.events) == 3
        assert one.header.revision == other.header.revision
    pair.call("Lease.LeaseTimeToLive", rpc.LeaseTimeToLiveRequest(ID=4, keys=True))
    pair.keep_alive([4, 9])
    pair.call("KV.Range", get(b"\0", range_end=b"\0"))


def test_the_only_member_stays(pair: Pair) -> None:
    """tests/cluster has what several do."""
    for client in (pair.left, pair.right):
        (member,) = client.call("Cluster.MemberList", rpc.MemberListRequest()).message.members
        for member_id, code, text in (
            (0, NOT_FOUND, "etcdserver: member not found"),
            (1, NOT_FOUND, "etcdserver: member not found"),
            (member.ID, UNKNOWN, LAST_MEMBER),
        ):
            answer = client.call("Cluster.MemberRemove", rpc.MemberRemoveRequest(ID=member_id))
            assert (answer.code, answer.text) == (code, text)
