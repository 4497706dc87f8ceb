from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Vector(_message.Message):
    __slots__ = ("name", "codec", "entries", "body")
    NAME_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    name: str
    codec: str
    entries: int
    body: bytes
    def __init__(self, name: _Optional[str] = ..., codec: _Optional[str] = ..., entries: _Optional[int] = ..., body: _Optional[bytes] = ...) -> None: ...

class Number(_message.Message):
    __slots__ = ("name", "real", "whole")
    NAME_FIELD_NUMBER: _ClassVar[int]
    REAL_FIELD_NUMBER: _ClassVar[int]
    WHOLE_FIELD_NUMBER: _ClassVar[int]
    name: str
    real: float
    whole: int
    def __init__(self, name: _Optional[str] = ..., real: _Optional[float] = ..., whole: _Optional[int] = ...) -> None: ...

class Batches(_message.Message):
    __slots__ = ("split", "size", "epochs", "steps", "shuffle")
    SPLIT_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    EPOCHS_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    SHUFFLE_FIELD_NUMBER: _ClassVar[int]
    split: str
    size: int
    epochs: int
    steps: int
    shuffle: bool
    def __init__(self, split: _Optional[str] = ..., size: _Optional[int] = ..., epochs: _Optional[int] = ..., steps: _Optional[int] = ..., shuffle: _Optional[bool] = ...) -> None: ...

class Down(_message.Message):
    __slots__ = ("version", "exchange", "client", "key", "program", "vectors", "numbers", "batches", "memory", "settled")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    EXCHANGE_FIELD_NUMBER: _ClassVar[int]
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    PROGRAM_FIELD_NUMBER: _ClassVar[int]
    VECTORS_FIELD_NUMBER: _ClassVar[int]
    NUMBERS_FIELD_NUMBER: _ClassVar[int]
    BATCHES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    SETTLED_FIELD_NUMBER: _ClassVar[int]
    version: int
    exchange: int
    client: int
    key: int
    program: str
    vectors: _containers.RepeatedCompositeFieldContainer[Vector]
    numbers: _containers.RepeatedCompositeFieldContainer[Number]
    batches: Batches
    memory: int
    settled: int
    def __init__(self, version: _Optional[int] = ..., exchange: _Optional[int] = ..., client: _Optional[int] = ..., key: _Optional[int] = ..., program: _Optional[str] = ..., vectors: _Optional[_Iterable[_Union[Vector, _Mapping]]] = ..., numbers: _Optional[_Iterable[_Union[Number, _Mapping]]] = ..., batches: _Optional[_Union[Batches, _Mapping]] = ..., memory: _Optional[int] = ..., settled: _Optional[int] = ...) -> None: ...

class Up(_message.Message):
    __slots__ = ("version", "exchange", "client", "vectors", "metrics", "weight", "refused")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    EXCHANGE_FIELD_NUMBER: _ClassVar[int]
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    VECTORS_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    version: int
    exchange: int
    client: int
    vectors: _containers.RepeatedCompositeFieldContainer[Vector]
    metrics: _containers.RepeatedCompositeFieldContainer[Number]
    weight: float
    refused: str
    def __init__(self, version: _Optional[int] = ..., exchange: _Optional[int] = ..., client: _Optional[int] = ..., vectors: _Optional[_Iterable[_Union[Vector, _Mapping]]] = ..., metrics: _Optional[_Iterable[_Union[Number, _Mapping]]] = ..., weight: _Optional[float] = ..., refused: _Optional[str] = ...) -> None: ...
