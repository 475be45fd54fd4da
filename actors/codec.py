"""What travels as bytes apart from arguments and results: refusals and the messages of failures.

A `Rejected` becomes (name, module, text, fields). At the other end its class is looked up among the subclasses that
this process knows; nothing is ever imported, let alone unpickled, because of what came over the wire. Where the class
is unknown or its fields do not fit, the caller gets a plain `Rejected` with the same text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn
from weakref import WeakKeyDictionary

import msgspec

from .calls import Status
from .errors import (
    AtollError,
    CallCycle,
    DeadlineExceeded,
    HandlerFailed,
    InvalidCommand,
    OutcomeUnknown,
    Overloaded,
    Rejected,
    Unavailable,
)

MESSAGE_CHARACTERS_MAX = 2000
"""Of an error's text on its way to the caller: enough to read, too little to fill a queue."""


class RejectedPayload(msgspec.Struct, array_like=True, frozen=True, gc=False):
    name: str
    """The class's qualified name."""
    module: str
    """Tells two classes of one name apart where both are known; otherwise it does not matter."""
    message: str
    fields: msgspec.Raw
    """A MessagePack map by field name."""


_encode = msgspec.msgpack.Encoder().encode
_decode_rejected = msgspec.msgpack.Decoder(RejectedPayload).decode
_fields_decoders: WeakKeyDictionary[type[Rejected], msgspec.msgpack.Decoder[Any]] = WeakKeyDictionary()

_RAISED_AS: Mapping[Status, type[AtollError]] = {
    Status.INVALID_COMMAND: InvalidCommand,
    Status.HANDLER_FAILED: HandlerFailed,
    Status.OVERLOADED: Overloaded,
    Status.DEADLINE_EXCEEDED: DeadlineExceeded,
    Status.UNAVAILABLE: Unavailable,
    Status.CALL_CYCLE: CallCycle,
    Status.STORE_AWAY: Unavailable,
}


def encode_message(text: str) -> bytes:
    """An error's text as a payload: bounded, and UTF-8 whatever it holds."""
    if len(text) > MESSAGE_CHARACTERS_MAX:
        text = text[:MESSAGE_CHARACTERS_MAX] + f"... ({len(text)} characters)"
    return text.encode("utf-8", "backslashreplace")


def message_of(status: Status, payload: bytes) -> str:
    """The text of an answer that is not OK."""
    if status is Status.REJECTED:
        return _decode_rejected(payload).message
    return payload.decode("utf-8", "replace")


def encode_rejected(error: Rejected) -> bytes:
    """A refusal as a payload. Raises (TypeError, ValueError ...) when a field's value does not fit its annotation."""
    cls = type(error)
    fields = _encode({field.name: getattr(error, field.name) for field in cls.rejection_fields})
    _fields_decoder(cls).decode(fields)
    message = encode_message(str(error)).decode()
    return _encode(RejectedPayload(cls.__qualname__, cls.__module__, message, msgspec.Raw(fields)))


def decode_rejected(payload: bytes, rejections: Mapping[str, type[Rejected]]) -> Rejected:
    """The refusal as it was raised, or a plain `Rejected` with its text when its class is not known here."""
    refused = _decode_rejected(payload)
    cls = rejections.get(f"{refused.module}:{refused.name}") or rejections.get(refused.name)
    if cls is not None:
        try:
            return cls.rebuilt(refused.message, msgspec.structs.asdict(_fields_decoder(cls).decode(refused.fields)))
        except (msgspec.DecodeError, ValueError, TypeError):
            pass  # the same name with other fields: another version of the class
    return Rejected(refused.message)


def _fields_decoder(cls: type[Rejected]) -> msgspec.msgpack.Decoder[Any]:
    decoder = _fields_decoders.get(cls)
    if decoder is None:
        fields = [field.as_struct_field() for field in cls.rejection_fields]
        decoder = msgspec.msgpack.Decoder(msgspec.defstruct(cls.__name__, fields, kw_only=True))
        _fields_decoders[cls] = decoder
    return decoder


def raise_for(status: Status, payload: bytes, rejections: Mapping[str, type[Rejected]]) -> NoReturn:
    """Raise the error that an answer other than OK stands for. `rejections`: see `App.rejections`."""
    if status is Status.REJECTED:
        try:
            error = decode_rejected(payload, rejections)
        except (msgspec.DecodeError, ValueError) as problem:
            raise Rejected(f"refused, for a reason that cannot be read here: {problem}") from None
        raise error
    if status is Status.BELOW_FLOOR:
        raise OutcomeUnknown("this client had already given the command up; it may have run")
    assert status is not Status.OK, "an OK answer is no error"
    raise _RAISED_AS[status](payload.decode("utf-8", "replace"))
