"""The election without a journal: the rules of R6, one by one."""

from __future__ import annotations

from kvstore.cluster.election import Election, Member, Timing
from kvstore.pb import control_pb2 as pb

TIMING = Timing(lease_s=2.0, margin_s=0.2)
A, B = Member(1, "a", ("http://a",)), Member(2, "b", ("http://b",))


def two() -> tuple[Election, Election]:
    """Two nodes, both known; `a` leads since time 10."""
    a, b = Election(A, b"claim-a", TIMING), Election(B, b"claim-b", TIMING)
    a.committed(1, a.joining(), 9.0)
    b.observe(1, a.control, 9.1)
    b.committed(2, b.joining(), 9.2)
    a.observe(2, b.control, 9.3)
    a.committed(3, a.claim(4), 10.0)
    b.observe(3, a.control, 10.3)
    return a, b


def test_the_lease_counts_from_before_the_claim_was_sent() -> None:
    a, b = two()
    assert a.holds and a.control.term == 5
    assert a.leads(11.7) and not a.leads(11.8)
    assert not b.leads(10.5)


def test_a_challenger_waits_a_lease_and_the_margin_from_what_it_saw_last() -> None:
    _, b = two()
    assert not b.may_claim(10.3 + 2.19)
    assert b.may_claim(10.3 + 2.21)
    assert b.claim(0).term == 6


def test_no_two_lead_at_once() -> None:
    """Whenever a challenger may claim, the leader it saw has stopped: for any delay between."""
    for delay in (0.0, 0.1, 1.0, 5.0):
        a, b = two()
        a.committed(4, a.renewal(), 20.0)
        b.observe(4, a.control, 20.0 + delay)
        at = 20.0
        while not b.may_claim(at):
            at += 0.01
        assert not a.leads(at)


def test_members_who_join_do_not_keep_a_dead_leader_alive() -> None:
    a, b = two()
    c = Election(Member(3, "c"), b"claim-c", TIMING)
    c.observe(3, a.control, 12.0)
    b.observe(4, c.joining(), 12.1)
    assert b.may_claim(10.3 + 2.21)
    assert not c.may_claim(12.0 + 2.19), "it saw the leader's entry at 12"


def test_an_outage_of_the_journal_is_no_death_of_the_leader() -> None:
    _, b = two()
    b.lost_contact()
    assert not b.may_claim(100.0)
    assert b.leader(100.0) is None
    b.reached(100.0)
    assert not b.may_claim(102.1), "the leader has had no chance to renew before"
    assert b.may_claim(102.3)


def test_a_leader_is_the_first_when_a_silent_journal_answers_again() -> None:
    _, b = two()
    b.reached(17.0, silent_s=6.0)
    assert not b.may_claim(19.1), "the leader has asked in vain as well"
    assert b.leader(19.1) is None, "but it has not done so yet"
    assert b.may_claim(19.3)


def test_a_journal_that_is_always_slow_does_not_keep_a_dead_leader_in_office() -> None:
    _, b = two()
    for at in range(11, 18):
        b.reached(at, silent_s=0.9)
    assert b.may_claim(17.0)
    b.observe(4, two()[0].renewal(), 18.0)
    b.reached(25.0, silent_s=6.0)
    assert not b.may_claim(27.1), "it has lived since, so it has its turn again"


def test_an_entry_of_ones_own_that_was_long_in_going_is_a_silence() -> None:
    a, _ = two()
    c = Election(Member(3, "c"), b"claim-c", TIMING)
    c.observe(3, a.control, 10.3)
    c.committed(4, c.joining(), 10.4)
    c.reached(17.0, silent_s=6.6)
    assert not c.may_claim(19.1) and c.may_claim(19.3)


def test_a_short_silence_is_none() -> None:
    _, b = two()
    b.reached(12.3, silent_s=0.4)
    assert b.may_claim(12.6)


def test_a_lapsed_lease_is_renewed_in_the_same_term() -> None:
    a, _ = two()
    assert a.holds and not a.leads(60.0)
    a.committed(4, a.renewal(), 60.0)
    assert a.leads(61.0) and a.control.term == 5


def test_only_anothers_claim_ends_a_term() -> None:
    a, b = two()
    b.committed(4, b.claim(5), 13.0)
    a.observe(4, b.control, 13.1)
    assert not a.holds and not a.leads(13.1) and not a.leads(10.0)
    assert b.holds and b.control.term == 6


def test_a_process_that_was_started_anew_is_another_leader() -> None:
    a, _ = two()
    again = Election(A, b"claim-a2", TIMING)
    again.observe(3, a.control, 11.0)
    assert not again.holds and not again.leads(11.0)
    assert not again.may_claim(13.1) and again.may_claim(13.3)


def test_a_vacant_lead_is_for_the_one_that_is_named() -> None:
    a, b = two()
    c = Election(Member(3, "c"), b"claim-c", TIMING)
    a.release()
    assert not a.leads(10.1)
    vacancy = a.vacancy(B.id)
    for node in (b, c):
        node.observe(4, vacancy, 11.0)
    assert b.may_claim(11.0)
    assert not c.may_claim(11.0) and c.may_claim(13.3), "unless that one does not come"
    for node in (b, c):
        node.observe(4, a.vacancy(0), 11.0)
        assert node.may_claim(11.0)


def test_every_entry_carries_all_members() -> None:
    a, b = two()
    assert a.members() == b.members() == [A, B]
    moved = Election(Member(2, "b", ("http://elsewhere",)), b"claim-b2", TIMING)
    moved.observe(3, a.control, 11.0)
    assert not moved.is_known
    entry = moved.joining()
    assert [tuple(m.client_urls) for m in entry.members] == [("http://a",), ("http://elsewhere",)]
    assert (entry.leader, entry.term, entry.claim) == (A.id, 5, b"claim-a"), "the leader goes on"
    assert entry.kind == pb.Control.MEMBERS


def test_a_removal_takes_one_member_off_and_leaves_the_rest_as_it_is() -> None:
    a, b = two()
    entry = a.removal(B.id)
    assert (entry.kind, entry.term, entry.leader) == (pb.Control.MEMBERS, 5, A.id)
    until = a.lease_until
    a.committed(4, entry, 10.4)
    assert a.members() == [A] and a.holds and a.lease_until == until
    # The one that was removed sees it, and that the leader wrote something is no sign of its life.
    b.observe(4, entry, 11.0)
    assert not b.is_known and b.may_claim(10.3 + 2.21)
    a.observe(5, b.joining(), 11.1)
    assert a.members() == [A, B]
