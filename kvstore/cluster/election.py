"""The election: who leads, and until when. No I/O here, and time comes in as an argument.

Leadership is a lease in the control journal (R6). Whoever holds it renews it by appending; each
append is conditional on the entry that its writer saw last, so of two claims one fails.

- The *leader* may serve linearizable reads until the time sampled before it sent its last
  committed claim or renewal, plus the lease, minus the margin.
- A *challenger* claims when it has seen nothing new of the leader for a lease plus the margin,
  counted from its own last observation. That was later than the leader's sending, so the leader
  has stopped by then whatever the network did; the margin is for clocks that do not run alike.
- The wait starts anew when a node comes back into contact with the journal. While nobody can reach
  it the leader cannot renew either, and an outage of the journal alone changes no leader. Where one
  answer was long in coming (the journal had its own election) the leader is given a moment to be
  the first; once for each entry, so that a journal that is always slow does not keep a dead leader
  in office.
- A lease that lapsed may be renewed in the same term: nobody else has led meanwhile, or the
  renewal would be refused. Only another's claim ends a term.

All times are seconds of one clock that goes on while the machine sleeps (CLOCK_BOOTTIME).
"""

from __future__ import annotations

from dataclasses import dataclass

from kvstore.pb import control_pb2 as pb


@dataclass(frozen=True, slots=True)
class Member:
    """One node, as the others know it."""

    id: int
    name: str
    client_urls: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Timing:
    """How long things take."""

    lease_s: float = 2.0
    """For how long a claim or a renewal holds."""
    margin_s: float = 0.2
    """By how much clocks of two machines may differ over one lease, generously."""

    @property
    def renewal_s(self) -> float:
        """A leader renews this often: three of them may fail."""
        return self.lease_s / 4

    @property
    def grace_s(self) -> float:
        """What a leader needs to renew when the journal answers again, generously: it may just have
        asked in vain, asks again after as long as between two renewals, and what has only just come
        to lead the journal may take its time to store that."""
        return self.lease_s + self.margin_s


class Election:
    """What one node knows of the control journal, and what it may do about it."""

    def __init__(self, me: Member, claim: bytes, timing: Timing, delay_s: float = 0.0) -> None:
        """`claim`: random bytes of this process. `delay_s`: this node's claims come that much
        later than they could, so that not all come at once."""
        self.me = me
        self.timing = timing
        self.control = pb.Control()
        self.sequence = 0
        """Of the last entry that was seen."""
        self.lease_until = 0.0
        self._claim = claim
        self._delay_s = delay_s
        self._observed_at: float | None = None
        self._graced = -1
        """The entry behind which the leader had its grace, which lasted until:"""
        self._grace_until = 0.0

    # -- what is known ---------------------------------------------------------------------

    @property
    def holds(self) -> bool:
        """Whether this very process made the claim in force; its lease may have lapsed."""
        control = self.control
        return control.leader == self.me.id and control.claim == self._claim

    def leads(self, now: float) -> bool:
        """Whether linearizable reads may be served (R6)."""
        return now < self.lease_until

    @property
    def in_contact(self) -> bool:
        """Whether the journal answered the last time it was asked."""
        return self._observed_at is not None

    def leader(self, now: float) -> Member | None:
        """Who leads, if somebody does as far as can be told from here."""
        control = self.control
        if not control.leader:
            return None
        if self.holds:
            known = now <= self.lease_until + self._patience_s()
        else:
            seen_at = self._observed_at
            known = seen_at is not None and now - seen_at <= self._patience_s()
        return self.member(control.leader) if known else None

    def member(self, member_id: int) -> Member | None:
        """The member of that id."""
        return next((member for member in self.members() if member.id == member_id), None)

    def members(self) -> list[Member]:
        """Everybody who is known, in the order of their ids."""
        found = [Member(m.id, m.name, tuple(m.client_urls)) for m in self.control.members]
        return sorted(found, key=lambda member: member.id)

    @property
    def is_known(self) -> bool:
        """Whether the members' list has this node as it is."""
        return self.member(self.me.id) == self.me

    # -- what happens ----------------------------------------------------------------------

    def observe(self, sequence: int, control: pb.Control, now: float) -> None:
        """An entry was read. `now` is sampled after that."""
        self.sequence = sequence
        self.control = control
        if control.kind != pb.Control.MEMBERS or self._observed_at is None:
            self._observed_at = now
        if not self.holds:
            self.lease_until = 0.0

    def reached(self, now: float, silent_s: float = 0.0) -> None:
        """The journal answered, with or without something new, after `silent_s`."""
        if self._observed_at is None:
            self._observed_at = now
        elif silent_s > self.timing.renewal_s and self._graced != self.sequence:
            self._graced = self.sequence
            self._grace_until = now + self.timing.grace_s

    def lost_contact(self) -> None:
        """The journal did not answer: nothing is known of the leader from here on."""
        self._observed_at = None

    def committed(self, sequence: int, control: pb.Control, sent_at: float) -> None:
        """An entry of this node's was appended; `sent_at` was sampled before it was sent."""
        self.sequence = sequence
        self.control = control
        self._observed_at = sent_at
        if control.kind in (pb.Control.CLAIM, pb.Control.RENEW):
            self.lease_until = sent_at + self.timing.lease_s - self.timing.margin_s

    def release(self) -> None:
        """Stop to lead, before anybody is told (R6)."""
        self.lease_until = 0.0

    # -- what may be done ------------------------------------------------------------------

    def may_claim(self, now: float) -> bool:
        """Whether the leader is gone for sure."""
        control = self.control
        if self._observed_at is None or self.holds:
            return False
        if not control.leader and control.successor in (0, self.me.id):
            return True
        since = max(self._observed_at + self._patience_s(), self._grace_until)
        return now >= since + self._delay_s

    def _patience_s(self) -> float:
        lease_s = max(self.control.lease_ms / 1000, self.timing.lease_s)
        return lease_s + self.timing.margin_s

    def claim(self, term: int) -> pb.Control:
        """The entry with which this node takes the lead, in a term above `term` and all others."""
        entry = self._next(pb.Control.CLAIM)
        entry.term = max(term, entry.term) + 1
        entry.leader = self.me.id
        entry.claim = self._claim
        entry.successor = 0
        entry.lease_ms = round(self.timing.lease_s * 1000)
        return entry

    def renewal(self) -> pb.Control:
        """The entry with which a leader goes on."""
        return self._next(pb.Control.RENEW)

    def vacancy(self, successor: int) -> pb.Control:
        """The entry with which a leader steps down, in favour of a member or (0) of anyone."""
        entry = self._next(pb.Control.VACATE)
        entry.leader = 0
        entry.successor = successor
        return entry

    def joining(self) -> pb.Control:
        """The entry with which this node makes itself known."""
        me = self.me
        entry = self._next(pb.Control.MEMBERS)
        others = [member for member in entry.members if member.id != me.id]
        del entry.members[:]
        entry.members.extend(others)
        entry.members.add(id=me.id, name=me.name, client_urls=me.client_urls)
        return entry

    def removal(self, member_id: int) -> pb.Control:
        """The entry with which a leader takes another member off the list."""
        entry = self._next(pb.Control.MEMBERS)
        others = [member for member in entry.members if member.id != member_id]
        del entry.members[:]
        entry.members.extend(others)
        return entry

    def _next(self, kind: pb.Control.Kind) -> pb.Control:
        entry = pb.Control()
        entry.CopyFrom(self.control)
        entry.kind = kind
        return entry
