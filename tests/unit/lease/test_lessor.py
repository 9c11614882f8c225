"""Leases in virtual time, and their capture for a snapshot while they change (R9, R11)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.lease import lessor as module
from kvstore.lease.lessor import MAX_TTL_S, LeaseKeys, Lessor, effective_ttl_s, whole_seconds
from kvstore.mvcc.errors import LeaseExists, LeaseNotFound, LeaseTTLTooLarge
from tests.property.profiles import moderate


def test_a_lease_is_due_when_its_time_is_up_and_named_again_until_it_is_revoked() -> None:
    leases = Lessor()
    leases.grant(1, 10, 100.0)
    leases.grant(2, 5, 100.0)
    assert leases.due(104.9, 10) == []
    assert leases.due(105.0, 10) == [2]
    assert leases.due(105.5, 10) == []
    assert leases.due(106.0, 10) == [2]
    assert leases.due(110.0, 10) == [2, 1]
    leases.revoke(2)
    assert leases.due(112.0, 10) == [1]
    assert leases.due(1e9, 0) == []


def test_a_renewal_starts_the_time_anew_unless_it_is_up() -> None:
    leases = Lessor()
    leases.grant(1, 10, 0.0)
    assert leases.renew(1, 9.9) == 10
    assert leases.due(19.8, 10) == []
    with pytest.raises(LeaseNotFound):
        leases.renew(1, 19.9)
    assert leases.due(19.9, 10) == [1]
    with pytest.raises(LeaseNotFound):
        leases.renew(1, 20.0)
    with pytest.raises(LeaseNotFound):
        leases.renew(2, 0.0)


def test_after_a_restart_every_lease_has_its_full_time() -> None:
    leases = Lessor()
    for n in range(1, 4):
        leases.grant(n, 10 * n, 0.0)
    leases.due(1e9, 10)
    leases.renew_all(50.0)
    assert leases.due(59.9, 10) == []
    assert [leases.due(now, 10) for now in (60.0, 70.0, 80.0)] == [[1], [1, 2], [1, 2, 3]]


def test_due_takes_no_more_than_its_limit_and_goes_on_where_it_was() -> None:
    leases = Lessor()
    for n in range(1, 11):
        leases.grant(n, 5, float(n))
    assert leases.due(100.0, 4) == [1, 2, 3, 4]
    assert leases.due(100.0, 4) == [5, 6, 7, 8]
    assert leases.due(100.0, 4) == [9, 10]


def test_renewed_and_revoked_leases_leave_nothing_to_look_at() -> None:
    """Neither renewals nor revokes make the order longer than there are leases (I8)."""
    leases = Lessor()
    for n in range(1, 101):
        leases.grant(n, MAX_TTL_S, 0.0)
        leases.renew(n, 1.0)
        leases.revoke(n)
        leases.grant(n, 10, 2.0)
        leases.grant(n, 20, 3.0)
    assert len(leases._due) == len(leases) == 100
    assert leases.due(22.9, 1000) == []
    assert len(leases.due(23.0, 1000)) == 100


def test_what_cannot_be_granted() -> None:
    leases = Lessor()
    leases.grant(5, 10, 0.0)
    for lease_id, ttl_s, error in [
        (0, 10, LeaseNotFound),
        (5, 10, LeaseExists),
        (5, MAX_TTL_S + 1, LeaseTTLTooLarge),
        (6, MAX_TTL_S + 1, LeaseTTLTooLarge),
    ]:
        with pytest.raises(error):
            leases.check_grant(lease_id, ttl_s)
    leases.check_grant(-6, MAX_TTL_S)
    assert [effective_ttl_s(n) for n in (-5, 0, 1, 2, 3)] == [2, 2, 2, 2, 3]
    assert [whole_seconds(x) for x in (3.9, 0.1, -0.1, -1.9)] == [3, 0, 0, -1]


def test_keys_move_between_leases() -> None:
    leases = Lessor()
    leases.grant(1, 10, 0.0)
    leases.grant(2, 10, 0.0)

    def keys(lease_id: int) -> set[bytes]:
        lease = leases.get(lease_id)
        assert lease is not None
        return {key for part in lease.keys.parts() for key in part}

    leases.move(b"k", 0, 1)
    leases.move(b"k", 1, 1)
    assert keys(1) == {b"k"}
    leases.move(b"k", 1, 2)
    assert (keys(1), keys(2)) == (set(), {b"k"})
    leases.move(b"k", 2, 99)  # a lease that is gone
    leases.move(b"j", 98, 0)
    assert (keys(1), keys(2)) == (set(), set())


@moderate(50)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 30)), max_size=80))
def test_keys_of_a_lease_are_a_set_in_short_parts(changes: list[tuple[bool, int]]) -> None:
    before, module._SMALL_SET = module._SMALL_SET, 4
    try:
        keys, model = LeaseKeys(), set()
        for add, number in changes:
            key = b"%d" % number
            if add:
                keys.add(key)
                model.add(key)
            else:
                keys.discard(key)
                model.discard(key)
            assert len(keys) == len(model)
            found = [key for part in keys.parts() for key in part]
            assert sorted(found) == sorted(model)
    finally:
        module._SMALL_SET = before


@moderate(150)
@given(
    st.sets(st.integers(1, 40)),
    st.lists(st.tuples(st.sampled_from("grs"), st.integers(1, 40)), max_size=60),
)
def test_a_capture_lists_the_leases_of_its_moment(
    before: set[int], changes: list[tuple[str, int]]
) -> None:
    """Grants, revokes and grants anew of one id, before and after its part is read."""
    leases = Lessor()
    for lease_id in before:
        leases.grant(lease_id, 100 + lease_id, 0.0)
    capture = leases.capture()
    parts: Iterator[list[tuple[int, int]]] = capture.parts()
    listed: list[tuple[int, int]] = []
    for kind, lease_id in changes:
        if kind == "g" and lease_id not in leases:
            leases.grant(lease_id, 7, 0.0)
        elif kind == "r":
            leases.revoke(lease_id)
        elif kind == "s":
            for _ in range(lease_id):
                listed += next(parts, [])
    for part in parts:
        listed += part
    leases.end_capture()
    assert sorted(listed) == [(lease_id, 100 + lease_id) for lease_id in sorted(before)]
    leases.grant(99, 5, 0.0)
    assert sorted(pair for part in leases.capture().parts() for pair in part) == sorted(
        (x.id, x.ttl_s) for part in leases.parts() for x in part
    )
