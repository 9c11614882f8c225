"""Why a node does not answer a request. The api layer owns etcd's codes and texts for these."""

from __future__ import annotations


class NodeError(Exception):
    """The node could not serve a request, whatever the request was."""


class NoSpace(NodeError):
    """A quota, a shard's budget or the journal's disk is used up."""


class TooManyRequests(NodeError):
    """More is in flight than the node will hold (I8)."""


class RequestTooLarge(NodeError):
    """What a request would change does not fit into one journal entry."""


class RequestTimeout(NodeError):
    """etcd's server-side time limit passed; the outcome is open (R12)."""


class Stopped(NodeError):
    """The node is shutting down, or its journal failed."""


class LeaderChanged(NodeError):
    """This node led when the request came, and leads no more; nothing was written."""


class LeaderFailed(NodeError):
    """The same, and whether the request took effect is not known (I7)."""


class CorruptAlarm(NodeError):
    """The CORRUPT alarm is raised: nothing is written (etcd's applierV3Corrupt)."""
