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


def named(leases: Lessor, now: float, limit: int) -> list[int]:
    return [lease_id for part in leases.due(now, limit) for lease_id in part]


def test_a_lease_is_due_when_its_time_is_up_and_named_again_until_it_is_revoked() -> None:
    leases = Lessor()
    leases.grant(1, 10, 100.0)
    leases.grant(2, 5, 100.0)
    assert named(leases, 104.9, 10) == []
    assert named(leases, 105.0, 10) == [2]
    assert named(leases, 105.5, 10) == []
    assert named(leases, 106.0, 10) == [2]
    assert named(leases, 110.0, 10) == [2, 1]
    leases.revoke(2)
    assert named(leases, 112.0, 10) == [1]
    assert named(leases, 1e9, 0) == []


def test_a_renewal_starts_the_time_anew_unless_it_is_up() -> None:
    leases = Lessor()
    leases.grant(1, 10, 0.0)
    assert leases.renew(1, 9.9) == 10
    assert named(leases, 19.8, 10) == []
    with pytest.raises(LeaseNotFound):
        leases.renew(1, 19.9)
    assert named(leases, 19.9, 10) == [1]
    with pytest.raises(LeaseNotFound):
        leases.renew(1, 20.0)
    with pytest.raises(LeaseNotFound):
        leases.renew(2, 0.0)


def test_after_a_restart_every_lease_has_its_full_time() -> None:
    leases = Lessor()
    for n in range(1, 4):
        leases.grant(n, 10 * n, 0.0)
    assert named(leases, 49.9, 10) == [1, 2, 3]
    leases.renew_all(50.0)
    assert named(leases, 59.9, 10) == []
    assert [named(leases, now, 10) for now in (60.0, 70.0, 80.0)] == [[1], [1, 2], [1, 2, 3]]


def test_after_a_take_over_leases_find_their_place_in_short_steps() -> None:
    """However many there are, none is named before its time or forgotten (I9)."""
    leases = Lessor()
    for n in range(1, 1001):
        leases.grant(n, 10 + n % 2, 0.0)
    order = list(leases._due)
    leases.renew_all(100.0)
    assert list(leases._due) == order, "nothing is done for each in one step"
    assert leases.renew(1, 101.0) == 11, "one whose time was up is alive"
    looked = 0
    for part in leases.due(109.9, 500):
        assert part == []
        looked += module.LOOKS_PER_STEP
        in_place = sum(when >= 100.0 for when, _ in leases._due)
        assert in_place <= looked + 1
    assert looked >= 999
    assert sorted(named(leases, 110.0, 1000)) == list(range(2, 1001, 2))
    assert sorted(named(leases, 111.0, 1000)) == sorted({*range(2, 1001)})
    assert 1 in named(leases, 112.0, 1000)


@moderate(150)
@given(
    st.lists(
        st.tuples(st.sampled_from("gkarn"), st.integers(1, 8), st.integers(0, 30)), max_size=80
    )
)
def test_none_is_named_early_and_each_is_when_its_time_is_up(
    changes: list[tuple[str, int, int]],
) -> None:
    """Grants, keep-alives, take-overs and revokes, against a list of when each should end."""
    leases = Lessor()
    ends: dict[int, float] = {}
    ttls: dict[int, int] = {}
    now = 0.0
    for kind, lease_id, number in changes:
        now += number / 4
        if kind == "g" and lease_id not in ends:
            ttls[lease_id] = 2 + number
            leases.grant(lease_id, ttls[lease_id], now)
            ends[lease_id] = now + ttls[lease_id]
        elif kind == "k" and lease_id in ends:
            if ends[lease_id] > now:
                leases.renew(lease_id, now)
                ends[lease_id] = now + ttls[lease_id]
            else:
                with pytest.raises(LeaseNotFound):
                    leases.renew(lease_id, now)
        elif kind == "a":
            leases.renew_all(now)
            ends = {each: now + ttls[each] for each in ends}
        elif kind == "r":
            leases.revoke(lease_id)
            ends.pop(lease_id, None)
        elif kind == "n":
            found = named(leases, now, 100)
            assert all(ends[each] <= now for each in found), "early"
        for each, end in ends.items():
            lease = leases.get(each)
            assert lease is not None and lease.expires_at == end
        assert len(leases._due) == len(ends)
    now += 100.0
    assert sorted(named(leases, now, 100)) == sorted(ends), "forgotten"


def test_due_takes_no_more_than_its_limit_and_goes_on_where_it_was() -> None:
    leases = Lessor()
    for n in range(1, 11):
        leases.grant(n, 5, float(n))
    assert named(leases, 100.0, 4) == [1, 2, 3, 4]
    assert named(leases, 100.0, 4) == [5, 6, 7, 8]
    assert named(leases, 100.0, 4) == [9, 10]


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
    assert named(leases, 22.9, 1000) == []
    assert len(named(leases, 23.0, 1000)) == 100


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
