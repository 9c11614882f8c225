from kvstore.pb import kv_pb2 as _kv_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Batch(_message.Message):
    __slots__ = ("records",)
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    records: _containers.RepeatedCompositeFieldContainer[Record]
    def __init__(self, records: _Optional[_Iterable[_Union[Record, _Mapping]]] = ...) -> None: ...

class Record(_message.Message):
    __slots__ = ("revision", "versions", "lease_grant", "lease_revoke", "delete_range", "compact", "term", "alarm")
    REVISION_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    LEASE_GRANT_FIELD_NUMBER: _ClassVar[int]
    LEASE_REVOKE_FIELD_NUMBER: _ClassVar[int]
    DELETE_RANGE_FIELD_NUMBER: _ClassVar[int]
    COMPACT_FIELD_NUMBER: _ClassVar[int]
    TERM_FIELD_NUMBER: _ClassVar[int]
    ALARM_FIELD_NUMBER: _ClassVar[int]
    revision: int
    versions: _containers.RepeatedCompositeFieldContainer[_kv_pb2.KeyValue]
    lease_grant: LeaseGrant
    lease_revoke: int
    delete_range: KeyRange
    compact: int
    term: Term
    alarm: Alarm
    def __init__(self, revision: _Optional[int] = ..., versions: _Optional[_Iterable[_Union[_kv_pb2.KeyValue, _Mapping]]] = ..., lease_grant: _Optional[_Union[LeaseGrant, _Mapping]] = ..., lease_revoke: _Optional[int] = ..., delete_range: _Optional[_Union[KeyRange, _Mapping]] = ..., compact: _Optional[int] = ..., term: _Optional[_Union[Term, _Mapping]] = ..., alarm: _Optional[_Union[Alarm, _Mapping]] = ...) -> None: ...

class LeaseGrant(_message.Message):
    __slots__ = ("id", "ttl_s")
    ID_FIELD_NUMBER: _ClassVar[int]
    TTL_S_FIELD_NUMBER: _ClassVar[int]
    id: int
    ttl_s: int
    def __init__(self, id: _Optional[int] = ..., ttl_s: _Optional[int] = ...) -> None: ...

class KeyRange(_message.Message):
    __slots__ = ("key", "range_end")
    KEY_FIELD_NUMBER: _ClassVar[int]
    RANGE_END_FIELD_NUMBER: _ClassVar[int]
    key: bytes
    range_end: bytes
    def __init__(self, key: _Optional[bytes] = ..., range_end: _Optional[bytes] = ...) -> None: ...

class Term(_message.Message):
    __slots__ = ("term", "member_id", "cluster_id")
    TERM_FIELD_NUMBER: _ClassVar[int]
    MEMBER_ID_FIELD_NUMBER: _ClassVar[int]
    CLUSTER_ID_FIELD_NUMBER: _ClassVar[int]
    term: int
    member_id: int
    cluster_id: int
    def __init__(self, term: _Optional[int] = ..., member_id: _Optional[int] = ..., cluster_id: _Optional[int] = ...) -> None: ...

class Alarm(_message.Message):
    __slots__ = ("member_id", "type", "active")
    MEMBER_ID_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_FIELD_NUMBER: _ClassVar[int]
    member_id: int
    type: int
    active: bool
    def __init__(self, member_id: _Optional[int] = ..., type: _Optional[int] = ..., active: _Optional[bool] = ...) -> None: ...

class SnapshotHeader(_message.Message):
    __slots__ = ("format", "sequence", "revision", "compact_revision", "term", "cluster_id", "member_id", "alarms")
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    COMPACT_REVISION_FIELD_NUMBER: _ClassVar[int]
    TERM_FIELD_NUMBER: _ClassVar[int]
    CLUSTER_ID_FIELD_NUMBER: _ClassVar[int]
    MEMBER_ID_FIELD_NUMBER: _ClassVar[int]
    ALARMS_FIELD_NUMBER: _ClassVar[int]
    format: int
    sequence: int
    revision: int
    compact_revision: int
    term: int
    cluster_id: int
    member_id: int
    alarms: _containers.RepeatedCompositeFieldContainer[Alarm]
    def __init__(self, format: _Optional[int] = ..., sequence: _Optional[int] = ..., revision: _Optional[int] = ..., compact_revision: _Optional[int] = ..., term: _Optional[int] = ..., cluster_id: _Optional[int] = ..., member_id: _Optional[int] = ..., alarms: _Optional[_Iterable[_Union[Alarm, _Mapping]]] = ...) -> None: ...

class SnapshotChunk(_message.Message):
    __slots__ = ("positions", "versions", "leases")
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    LEASES_FIELD_NUMBER: _ClassVar[int]
    positions: _containers.RepeatedScalarFieldContainer[int]
    versions: _containers.RepeatedCompositeFieldContainer[_kv_pb2.KeyValue]
    leases: _containers.RepeatedCompositeFieldContainer[LeaseGrant]
    def __init__(self, positions: _Optional[_Iterable[int]] = ..., versions: _Optional[_Iterable[_Union[_kv_pb2.KeyValue, _Mapping]]] = ..., leases: _Optional[_Iterable[_Union[LeaseGrant, _Mapping]]] = ...) -> None: ...
