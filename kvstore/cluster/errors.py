"""Why leadership was not had or not moved, and why a member stays.

The api layer owns etcd's codes and texts for these.
"""

from __future__ import annotations


class ClusterError(Exception):
    """Something about who leads, or who there is."""


class Superseded(ClusterError):
    """A later term has begun."""


class NotLeader(ClusterError):
    """Only the leader can do this, and it is another node."""


class BadTransferee(ClusterError):
    """The node that is to lead is no member."""


class TransferTimeout(ClusterError):
    """The node that was to lead has not taken over in time."""


class MemberNotFound(ClusterError):
    """There is no such member."""


class LastMember(ClusterError):
    """There is no other member that could go on."""


class MemberIsLive(ClusterError):
    """The member takes part: it would make itself known again at once."""


class MemberChangeTimeout(ClusterError):
    """The control journal did not take the change in time; it may still do so."""
