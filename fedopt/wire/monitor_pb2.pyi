from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FollowRequest(_message.Message):
    __slots__ = ("version", "after", "last")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    version: int
    after: int
    last: bytes
    def __init__(self, version: _Optional[int] = ..., after: _Optional[int] = ..., last: _Optional[bytes] = ...) -> None: ...

class Event(_message.Message):
    __slots__ = ("about", "recorded", "links", "over")
    ABOUT_FIELD_NUMBER: _ClassVar[int]
    RECORDED_FIELD_NUMBER: _ClassVar[int]
    LINKS_FIELD_NUMBER: _ClassVar[int]
    OVER_FIELD_NUMBER: _ClassVar[int]
    about: About
    recorded: Recorded
    links: Links
    over: Over
    def __init__(self, about: _Optional[_Union[About, _Mapping]] = ..., recorded: _Optional[_Union[Recorded, _Mapping]] = ..., links: _Optional[_Union[Links, _Mapping]] = ..., over: _Optional[_Union[Over, _Mapping]] = ...) -> None: ...

class About(_message.Message):
    __slots__ = ("facts", "after")
    FACTS_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    facts: bytes
    after: int
    def __init__(self, facts: _Optional[bytes] = ..., after: _Optional[int] = ...) -> None: ...

class Recorded(_message.Message):
    __slots__ = ("number", "line", "more")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    LINE_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    number: int
    line: bytes
    more: bool
    def __init__(self, number: _Optional[int] = ..., line: _Optional[bytes] = ..., more: _Optional[bool] = ...) -> None: ...

class Links(_message.Message):
    __slots__ = ("states",)
    STATES_FIELD_NUMBER: _ClassVar[int]
    states: _containers.RepeatedCompositeFieldContainer[State]
    def __init__(self, states: _Optional[_Iterable[_Union[State, _Mapping]]] = ...) -> None: ...

class State(_message.Message):
    __slots__ = ("name", "clients", "first")
    NAME_FIELD_NUMBER: _ClassVar[int]
    CLIENTS_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    name: str
    clients: int
    first: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, name: _Optional[str] = ..., clients: _Optional[int] = ..., first: _Optional[_Iterable[int]] = ...) -> None: ...

class Over(_message.Message):
    __slots__ = ("status", "reason")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    status: str
    reason: str
    def __init__(self, status: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...
