from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Member(_message.Message):
    __slots__ = ("id", "name", "client_urls")
    ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    CLIENT_URLS_FIELD_NUMBER: _ClassVar[int]
    id: int
    name: str
    client_urls: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, id: _Optional[int] = ..., name: _Optional[str] = ..., client_urls: _Optional[_Iterable[str]] = ...) -> None: ...

class Control(_message.Message):
    __slots__ = ("kind", "term", "leader", "claim", "lease_ms", "successor", "members")
    class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        MEMBERS: _ClassVar[Control.Kind]
        CLAIM: _ClassVar[Control.Kind]
        RENEW: _ClassVar[Control.Kind]
        VACATE: _ClassVar[Control.Kind]
    MEMBERS: Control.Kind
    CLAIM: Control.Kind
    RENEW: Control.Kind
    VACATE: Control.Kind
    KIND_FIELD_NUMBER: _ClassVar[int]
    TERM_FIELD_NUMBER: _ClassVar[int]
    LEADER_FIELD_NUMBER: _ClassVar[int]
    CLAIM_FIELD_NUMBER: _ClassVar[int]
    LEASE_MS_FIELD_NUMBER: _ClassVar[int]
    SUCCESSOR_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    kind: Control.Kind
    term: int
    leader: int
    claim: bytes
    lease_ms: int
    successor: int
    members: _containers.RepeatedCompositeFieldContainer[Member]
    def __init__(self, kind: _Optional[_Union[Control.Kind, str]] = ..., term: _Optional[int] = ..., leader: _Optional[int] = ..., claim: _Optional[bytes] = ..., lease_ms: _Optional[int] = ..., successor: _Optional[int] = ..., members: _Optional[_Iterable[_Union[Member, _Mapping]]] = ...) -> None: ...
