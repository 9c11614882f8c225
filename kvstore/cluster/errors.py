"""Why leadership was not had, or not moved. The api layer owns etcd's codes and texts for these."""

from __future__ import annotations


class ClusterError(Exception):
    """Something about who leads."""


class Superseded(ClusterError):
    """A later term has begun."""


class NotLeader(ClusterError):
    """Only the leader can do this, and it is another node."""


class BadTransferee(ClusterError):
    """The node that is to lead is no member."""


class TransferTimeout(ClusterError):
    """The node that was to lead has not taken over in time."""
