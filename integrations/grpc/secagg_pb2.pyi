from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class JoinRequest(_message.Message):
    __slots__ = ("site",)
    SITE_FIELD_NUMBER: _ClassVar[int]
    site: str
    def __init__(self, site: _Optional[str] = ...) -> None: ...

class JoinReply(_message.Message):
    __slots__ = ("round", "min_clients", "max_clients", "round_timeout", "key", "epoch", "project", "base", "deposits")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    MIN_CLIENTS_FIELD_NUMBER: _ClassVar[int]
    MAX_CLIENTS_FIELD_NUMBER: _ClassVar[int]
    ROUND_TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    PROJECT_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    DEPOSITS_FIELD_NUMBER: _ClassVar[int]
    round: int
    min_clients: int
    max_clients: int
    round_timeout: float
    key: str
    epoch: int
    project: bytes
    base: bytes
    deposits: bool
    def __init__(self, round: _Optional[int] = ..., min_clients: _Optional[int] = ..., max_clients: _Optional[int] = ..., round_timeout: _Optional[float] = ..., key: _Optional[str] = ..., epoch: _Optional[int] = ..., project: _Optional[bytes] = ..., base: _Optional[bytes] = ..., deposits: _Optional[bool] = ...) -> None: ...

class SkipRequest(_message.Message):
    __slots__ = ("site", "round")
    SITE_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    site: str
    round: int
    def __init__(self, site: _Optional[str] = ..., round: _Optional[int] = ...) -> None: ...

class SkipReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Chunk(_message.Message):
    __slots__ = ("data", "frame")
    DATA_FIELD_NUMBER: _ClassVar[int]
    FRAME_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    frame: int
    def __init__(self, data: _Optional[bytes] = ..., frame: _Optional[int] = ...) -> None: ...

class ResumeReply(_message.Message):
    __slots__ = ("already_added", "frame", "receipt")
    ALREADY_ADDED_FIELD_NUMBER: _ClassVar[int]
    FRAME_FIELD_NUMBER: _ClassVar[int]
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    already_added: bool
    frame: int
    receipt: bytes
    def __init__(self, already_added: _Optional[bool] = ..., frame: _Optional[int] = ..., receipt: _Optional[bytes] = ...) -> None: ...

class UploadReply(_message.Message):
    __slots__ = ("already_added", "receipt")
    ALREADY_ADDED_FIELD_NUMBER: _ClassVar[int]
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    already_added: bool
    receipt: bytes
    def __init__(self, already_added: _Optional[bool] = ..., receipt: _Optional[bytes] = ...) -> None: ...

class DepositReply(_message.Message):
    __slots__ = ("already_added", "receipt", "done", "parts")
    ALREADY_ADDED_FIELD_NUMBER: _ClassVar[int]
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    already_added: bool
    receipt: bytes
    done: bool
    parts: _containers.RepeatedCompositeFieldContainer[PartTarget]
    def __init__(self, already_added: _Optional[bool] = ..., receipt: _Optional[bytes] = ..., done: _Optional[bool] = ..., parts: _Optional[_Iterable[_Union[PartTarget, _Mapping]]] = ...) -> None: ...

class PartTarget(_message.Message):
    __slots__ = ("number", "offset", "nbytes", "url")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    NBYTES_FIELD_NUMBER: _ClassVar[int]
    URL_FIELD_NUMBER: _ClassVar[int]
    number: int
    offset: int
    nbytes: int
    url: str
    def __init__(self, number: _Optional[int] = ..., offset: _Optional[int] = ..., nbytes: _Optional[int] = ..., url: _Optional[str] = ...) -> None: ...

class DownloadRequest(_message.Message):
    __slots__ = ("round", "nonce", "kind", "frame", "head")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    FRAME_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    round: int
    nonce: bytes
    kind: str
    frame: int
    head: bytes
    def __init__(self, round: _Optional[int] = ..., nonce: _Optional[bytes] = ..., kind: _Optional[str] = ..., frame: _Optional[int] = ..., head: _Optional[bytes] = ...) -> None: ...

class StatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StatusReply(_message.Message):
    __slots__ = ("round", "attempt", "state", "added", "waiting_for", "seconds_left", "aggregates", "models", "epoch", "time", "disk_used", "disk_quota", "uploads_in_flight", "base", "project_serial", "disk_free", "trouble", "skipped", "stage")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    ADDED_FIELD_NUMBER: _ClassVar[int]
    WAITING_FOR_FIELD_NUMBER: _ClassVar[int]
    SECONDS_LEFT_FIELD_NUMBER: _ClassVar[int]
    AGGREGATES_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    DISK_USED_FIELD_NUMBER: _ClassVar[int]
    DISK_QUOTA_FIELD_NUMBER: _ClassVar[int]
    UPLOADS_IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    PROJECT_SERIAL_FIELD_NUMBER: _ClassVar[int]
    DISK_FREE_FIELD_NUMBER: _ClassVar[int]
    TROUBLE_FIELD_NUMBER: _ClassVar[int]
    SKIPPED_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    round: int
    attempt: int
    state: str
    added: _containers.RepeatedScalarFieldContainer[str]
    waiting_for: _containers.RepeatedScalarFieldContainer[str]
    seconds_left: float
    aggregates: _containers.RepeatedScalarFieldContainer[int]
    models: _containers.RepeatedScalarFieldContainer[int]
    epoch: int
    time: float
    disk_used: int
    disk_quota: int
    uploads_in_flight: int
    base: bytes
    project_serial: int
    disk_free: int
    trouble: str
    skipped: _containers.RepeatedScalarFieldContainer[str]
    stage: str
    def __init__(self, round: _Optional[int] = ..., attempt: _Optional[int] = ..., state: _Optional[str] = ..., added: _Optional[_Iterable[str]] = ..., waiting_for: _Optional[_Iterable[str]] = ..., seconds_left: _Optional[float] = ..., aggregates: _Optional[_Iterable[int]] = ..., models: _Optional[_Iterable[int]] = ..., epoch: _Optional[int] = ..., time: _Optional[float] = ..., disk_used: _Optional[int] = ..., disk_quota: _Optional[int] = ..., uploads_in_flight: _Optional[int] = ..., base: _Optional[bytes] = ..., project_serial: _Optional[int] = ..., disk_free: _Optional[int] = ..., trouble: _Optional[str] = ..., skipped: _Optional[_Iterable[str]] = ..., stage: _Optional[str] = ...) -> None: ...
