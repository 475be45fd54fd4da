"""Every error of Atoll, and what each says about the fate of the command.

    AtollError
      Rejected           the entity refused it; repeating will not help        (yours to raise and to subclass)
      InvalidCommand     it does not fit the entity's schema; it never ran
      HandlerFailed      the handler raised; nothing was kept
      NotExecuted        it surely did not run, repeating it is safe
        Overloaded, DeadlineExceeded, Unavailable, CallCycle
      OutcomeUnknown     it may have run: repeat it with the same command ID
      CircuitOpen        inside handlers: a service outside is not called now
      StoreError         inside the house
        Fenced, StoreUnavailable, IncompatibleStore, CorruptRecord

A caller who catches `NotExecuted` may always repeat; one who catches `OutcomeUnknown` must repeat under the same
`command_id`, or look at the entity. Nothing else leaves the fate of a command open.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, ClassVar, Self
from weakref import WeakValueDictionary

from .schema import Field, annotated_fields


class AtollError(Exception):
    """Root of all errors that Atoll raises on purpose."""


class Rejected(AtollError):
    """The entity refused the command; nothing was written, and repeating it will not help.

    Raise it in a handler. A subclass with annotated fields travels with them and arrives as itself at the caller:

        class InsufficientFunds(atoll.Rejected):
            balance: int
            needed: int

        raise InsufficientFunds(balance=self.balance, needed=amount)

    Fields are given by keyword or in order; `message=` replaces the text made from them. A caller that does not know
    the subclass gets a plain `Rejected` with that text.
    """

    rejection_fields: ClassVar[tuple[Field, ...]] = ()
    """The annotated fields of this class, the inherited ones first."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in inspect.get_annotations(cls):
            if hasattr(Rejected, name) or name == "message":
                raise TypeError(f"{cls.__name__}.{name}: every Rejected has `{name}` already; rename yours")
        cls.rejection_fields = annotated_fields(cls, tuple(Rejected.__mro__))
        _known[cls.__qualname__] = cls
        _known[f"{cls.__module__}:{cls.__qualname__}"] = cls

    def __init__(self, *args: Any, message: str | None = None, **fields: Any) -> None:
        cls = type(self)
        values: dict[str, Any] = {}
        if cls.rejection_fields:
            if len(args) > len(cls.rejection_fields):
                raise TypeError(f"{cls.__name__} has {len(cls.rejection_fields)} fields, {len(args)} values were given")
            values = dict(zip((field.name for field in cls.rejection_fields), args, strict=False))
            args = ()
        for name, value in fields.items():
            if name in values or all(field.name != name for field in cls.rejection_fields):
                raise TypeError(f"{cls.__name__}: {name} is {'given twice' if name in values else 'not a field'}")
            values[name] = value
        for field in cls.rejection_fields:
            if field.name not in values:
                if field.required:
                    raise TypeError(f"{cls.__name__}: the field {field.name} is missing")
                values[field.name] = field.made()
        if message is None and cls.rejection_fields:
            message = f"{cls.__name__}({', '.join(f'{name}={value!r}' for name, value in values.items())})"
        super().__init__(*(args if message is None else (message,)))
        self.__dict__.update(values)

    @classmethod
    def rebuilt(cls, message: str, fields: Mapping[str, Any]) -> Self:
        """The error as it was raised elsewhere, made without running an `__init__` that a subclass may have."""
        error = cls.__new__(cls)
        error.args = (message,) if message else ()
        error.__dict__.update(fields)
        return error

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self).rebuilt, (str(self), dict(self.__dict__))


_known: WeakValueDictionary[str, type[Rejected]] = WeakValueDictionary()


def known_rejections() -> Mapping[str, type[Rejected]]:
    """All subclasses of `Rejected` in this process, by qualified name and by `module:qualified name`. A live view."""
    return _known


class InvalidCommand(AtollError):
    """The command does not fit the entity's schema (names the field or the limit); it never ran. Correct the call."""


class HandlerFailed(AtollError):
    """The handler raised something other than `Rejected`; its effects were dropped and the state is as before."""


class NotExecuted(AtollError):
    """The command surely did not run; repeating it is safe."""


class Overloaded(NotExecuted):
    """A queue on the way is full, or so long that the answer would be too late: one to the entity, or the outbox for
    what it would have sent (nothing of the command was kept then). Wait `retry_after_s` seconds (with jitter), then
    repeat."""

    def __init__(self, message: str = "a queue on the way is full", retry_after_s: float = 0.1) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DeadlineExceeded(NotExecuted):
    """The time-out passed before the command began to run."""


class Unavailable(NotExecuted):
    """No host could take the command before its deadline (cluster starting, shard moving, store away)."""


class CallCycle(NotExecuted):
    """The command would wait for itself: A asks B while B's caller chain holds A. Use `tell`, or split the work."""


class OutcomeUnknown(AtollError):
    """The time-out passed while the command may have run. Repeat it with the same `command_id` to learn the truth."""


class CircuitOpen(AtollError):
    """A service outside failed lately and is not called for `retry_after_s` seconds (see `CircuitBreaker`)."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class StoreError(AtollError):
    """Something about the store; commands that met it are told their own fate with the errors above."""


class Fenced(StoreError):
    """Another owner sealed this incarnation's log: it may write nothing any more, and its process ends."""


class StoreUnavailable(StoreError):
    """The store did not answer, or answered with an I/O error: the outcome is unknown, the same write is repeated."""


class IncompatibleStore(StoreError):
    """The store belongs to another app, schema version, shard count or machine; the message says what to do."""


class CorruptRecord(StoreError):
    """A stored record fails its checksum or its schema; the message says where it lies. It is never guessed at."""
