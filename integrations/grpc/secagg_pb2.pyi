from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class JoinRequest(_message.Message):
    __slots__ = ("site",)
    SITE_FIELD_NUMBER: _ClassVar[int]
    site: str
    def __init__(self, site: _Optional[str] = ...) -> None: ...

class JoinReply(_message.Message):
    __slots__ = ("round", "min_clients", "max_clients", "round_timeout", "key")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    MIN_CLIENTS_FIELD_NUMBER: _ClassVar[int]
    MAX_CLIENTS_FIELD_NUMBER: _ClassVar[int]
    ROUND_TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    round: int
    min_clients: int
    max_clients: int
    round_timeout: float
    key: str
    def __init__(self, round: _Optional[int] = ..., min_clients: _Optional[int] = ..., max_clients: _Optional[int] = ..., round_timeout: _Optional[float] = ..., key: _Optional[str] = ...) -> None: ...

class Chunk(_message.Message):
    __slots__ = ("data",)
    DATA_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    def __init__(self, data: _Optional[bytes] = ...) -> None: ...

class UploadReply(_message.Message):
    __slots__ = ("already_added",)
    ALREADY_ADDED_FIELD_NUMBER: _ClassVar[int]
    already_added: bool
    def __init__(self, already_added: _Optional[bool] = ...) -> None: ...

class DownloadRequest(_message.Message):
    __slots__ = ("round", "nonce")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    round: int
    nonce: bytes
    def __init__(self, round: _Optional[int] = ..., nonce: _Optional[bytes] = ...) -> None: ...

class StatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StatusReply(_message.Message):
    __slots__ = ("round", "attempt", "state", "added", "waiting_for", "seconds_left", "aggregates")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    ADDED_FIELD_NUMBER: _ClassVar[int]
    WAITING_FOR_FIELD_NUMBER: _ClassVar[int]
    SECONDS_LEFT_FIELD_NUMBER: _ClassVar[int]
    AGGREGATES_FIELD_NUMBER: _ClassVar[int]
    round: int
    attempt: int
    state: str
    added: _containers.RepeatedScalarFieldContainer[str]
    waiting_for: _containers.RepeatedScalarFieldContainer[str]
    seconds_left: float
    aggregates: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, round: _Optional[int] = ..., attempt: _Optional[int] = ..., state: _Optional[str] = ..., added: _Optional[_Iterable[str]] = ..., waiting_for: _Optional[_Iterable[str]] = ..., seconds_left: _Optional[float] = ..., aggregates: _Optional[_Iterable[int]] = ...) -> None: ...
