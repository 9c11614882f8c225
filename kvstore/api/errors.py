"""etcd's errors: codes and texts, exactly (api/v3rpc/rpctypes/error.go).

kube-apiserver and etcd's clients match on the text.
"""

from __future__ import annotations

from google.protobuf.message import DecodeError

from kvstore.cluster import errors as cluster_errors
from kvstore.mvcc import errors as store_errors
from kvstore.node import errors as node_errors
from kvstore.transport import seam
from kvstore.transport.seam import Code


class ApiError(Exception):
    """An answer that is an error."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


EMPTY_KEY = ApiError(Code.INVALID_ARGUMENT, "etcdserver: key is not provided")
KEY_NOT_FOUND = ApiError(Code.INVALID_ARGUMENT, "etcdserver: key not found")
VALUE_PROVIDED = ApiError(Code.INVALID_ARGUMENT, "etcdserver: value is provided")
LEASE_PROVIDED = ApiError(Code.INVALID_ARGUMENT, "etcdserver: lease is provided")
TOO_MANY_OPS = ApiError(Code.INVALID_ARGUMENT, "etcdserver: too many operations in txn request")
DUPLICATE_KEY = ApiError(Code.INVALID_ARGUMENT, "etcdserver: duplicate key given in txn request")
INVALID_SORT_OPTION = ApiError(Code.INVALID_ARGUMENT, "etcdserver: invalid sort option")
COMPACTED = ApiError(Code.OUT_OF_RANGE, "etcdserver: mvcc: required revision has been compacted")
FUTURE_REVISION = ApiError(
    Code.OUT_OF_RANGE, "etcdserver: mvcc: required revision is a future revision"
)
NO_SPACE = ApiError(Code.RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded")
LEASE_NOT_FOUND = ApiError(Code.NOT_FOUND, "etcdserver: requested lease not found")
LEASE_EXISTS = ApiError(Code.FAILED_PRECONDITION, "etcdserver: lease already exists")
LEASE_TTL_TOO_LARGE = ApiError(Code.OUT_OF_RANGE, "etcdserver: too large lease TTL")
REQUEST_TOO_LARGE = ApiError(Code.INVALID_ARGUMENT, "etcdserver: request is too large")
TOO_MANY_REQUESTS = ApiError(Code.RESOURCE_EXHAUSTED, "etcdserver: too many requests")
STOPPED = ApiError(Code.UNAVAILABLE, seam.STOPPED)
TIMEOUT = ApiError(Code.UNAVAILABLE, "etcdserver: request timed out")
NO_LEADER = ApiError(Code.UNAVAILABLE, "etcdserver: no leader")
LEADER_CHANGED = ApiError(Code.UNAVAILABLE, "etcdserver: leader changed")
LEADER_FAILED = ApiError(
    Code.UNAVAILABLE,
    "etcdserver: request timed out, possibly due to previous leader failure",
)
NOT_LEADER = ApiError(Code.FAILED_PRECONDITION, "etcdserver: not leader")
BAD_TRANSFEREE = ApiError(Code.FAILED_PRECONDITION, "etcdserver: bad leader transferee")
TRANSFER_TIMEOUT = ApiError(
    Code.UNAVAILABLE, "etcdserver: request timed out, leader transfer took too long"
)
MEMBER_NOT_FOUND = ApiError(Code.NOT_FOUND, "etcdserver: member not found")
# etcd has no code for it.
LAST_MEMBER = ApiError(
    Code.UNKNOWN,
    "etcdserver: re-configuration failed due to not enough started members",
)
# Ours: a member of etcd's that is removed stops.
MEMBER_IS_LIVE = ApiError(
    Code.FAILED_PRECONDITION,
    "etcdserver: the member is live and would come back: stop it, then remove it",
)
# Ours: of an action that does not exist etcd dies.
INVALID_ALARM_ACTION = ApiError(Code.INVALID_ARGUMENT, "etcdserver: invalid alarm action")
CORRUPT = ApiError(Code.DATA_LOSS, "etcdserver: corrupt cluster")
STREAM_SORT = ApiError(Code.UNIMPLEMENTED, "RangeStream does not support custom sort orders")
STREAM_FILTERS = ApiError(Code.UNIMPLEMENTED, "RangeStream does not support revision filters")


def malformed(error: DecodeError) -> ApiError:
    """What a unary request that cannot be parsed gets."""
    return ApiError(Code.INTERNAL, f"grpc: error unmarshalling request: {_parse_error(error)}")


def malformed_message(error: DecodeError) -> ApiError:
    """What ends a stream with a message that cannot be parsed."""
    reason = _parse_error(error)
    return ApiError(Code.INTERNAL, f"grpc: failed to unmarshal the received message: {reason}")


def _parse_error(error: DecodeError) -> str:
    """Go's words for what protobuf's parser found; that tells its findings apart by text alone."""
    found = str(error)
    if "MaxDepth" in found:
        return "proto: exceeded maximum recursion depth"
    if "UTF-8" in found:
        return "string field contains invalid UTF-8"
    return "proto: cannot parse invalid wire-format data"


_BY_TYPE: dict[type[BaseException], ApiError] = {
    store_errors.Compacted: COMPACTED,
    store_errors.FutureRevision: FUTURE_REVISION,
    store_errors.LeaseNotFound: LEASE_NOT_FOUND,
    store_errors.LeaseExists: LEASE_EXISTS,
    store_errors.LeaseTTLTooLarge: LEASE_TTL_TOO_LARGE,
    store_errors.KeyNotFound: KEY_NOT_FOUND,
    node_errors.NoSpace: NO_SPACE,
    node_errors.TooManyRequests: TOO_MANY_REQUESTS,
    node_errors.RequestTooLarge: REQUEST_TOO_LARGE,
    node_errors.RequestTimeout: TIMEOUT,
    node_errors.Stopped: STOPPED,
    node_errors.LeaderChanged: LEADER_CHANGED,
    node_errors.LeaderFailed: LEADER_FAILED,
    cluster_errors.NotLeader: NOT_LEADER,
    cluster_errors.BadTransferee: BAD_TRANSFEREE,
    cluster_errors.TransferTimeout: TRANSFER_TIMEOUT,
    cluster_errors.MemberNotFound: MEMBER_NOT_FOUND,
    cluster_errors.LastMember: LAST_MEMBER,
    cluster_errors.MemberIsLive: MEMBER_IS_LIVE,
    cluster_errors.MemberChangeTimeout: TIMEOUT,
    node_errors.CorruptAlarm: CORRUPT,
}


def to_api_error(error: BaseException) -> ApiError:
    """The answer that stands for an error of store or node."""
    if isinstance(error, ApiError):
        return error
    return _BY_TYPE.get(type(error)) or ApiError(Code.UNKNOWN, f"{type(error).__name__}: {error}")
