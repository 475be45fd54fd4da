"""References: the address of one entity, typed as its class, through which commands are sent.

A reference holds nothing but (app, kind, ID) and the caller that carries its requests; making one sends nothing and
activates nothing. Two are equal when they name the same entity. It pickles as those three strings, and an unpickled one
finds its kind among the classes of its process, and its caller among the clusters that this process is connected to,
when it is used first. (It is the user's own pickle, of strings; Atoll itself unpickles nothing.)
"""

from __future__ import annotations

import math
from collections.abc import Coroutine
from typing import Any, Never
from weakref import WeakValueDictionary, ref

import msgspec

from .calls import Caller, Mode, Priority, Request
from .errors import InvalidCommand, Unavailable
from .handlers import PriorityName
from .ids import checked_command_id, checked_entity_id
from .kind import EntityKind, Handler, newest_kind
from .stored import StoredMessage

_callers: dict[str, list[ref[Caller]]] = {}
"""By app name the callers that are connected now, the newest last."""
_apps: WeakValueDictionary[str, KindsOfApp] = WeakValueDictionary()


class KindsOfApp:
    """The kinds of one app, known to references that came without their class."""

    __slots__ = ("__weakref__", "kinds")

    def __init__(self, app_name: str, kinds: dict[str, EntityKind]) -> None:
        self.kinds = kinds
        _apps[app_name] = self


def bind_caller(caller: Caller) -> None:
    """Let unpickled references of its app use `caller`, until `unbind_caller`, or until nobody else holds it."""
    unbind_caller(caller)
    _callers.setdefault(caller.app_name, []).append(ref(caller))


def unbind_caller(caller: Caller) -> None:
    """Undo `bind_caller`; an earlier caller of that app, still connected, is used again."""
    alive = [each for each in _callers.pop(caller.app_name, []) if each() not in (None, caller)]
    if alive:
        _callers[caller.app_name] = alive


def bound_caller(app_name: str) -> Caller:
    """The newest connected caller of that app. Raises `Unavailable` when there is none."""
    for each in reversed(_callers.get(app_name, ())):
        caller = each()
        if caller is not None:
            return caller
    raise Unavailable(
        f"this process is not connected to a cluster of the app {app_name!r}, so the command was not sent; "
        f"use the reference inside `async with atoll.connect({app_name!r})`"
    )


def reference(caller: Caller, kind: EntityKind, id: str) -> Any:
    """The reference to the entity `id` of `kind`. Raises `InvalidCommand` for what cannot be an ID."""
    return Reference(caller.app_name, kind.name, checked_entity_id(id), kind, caller)


class Reference:
    """See above. Its attributes are the entity's handlers; typed as the entity class wherever users get one."""

    __slots__ = ("_app", "_caller", "_id", "_kind", "_kind_name")

    _app: str
    _kind_name: str
    _id: str
    _kind: EntityKind | None
    _caller: Caller | None

    def __init__(self, app: str, kind_name: str, id: str, kind: EntityKind | None, caller: Caller | None) -> None:
        put = object.__setattr__
        put(self, "_app", app)
        put(self, "_kind_name", kind_name)
        put(self, "_id", id)
        put(self, "_kind", kind)
        put(self, "_caller", caller)

    def __getattr__(self, name: str) -> BoundQuery:
        kind = self._kind or self._found_kind(name)
        handler = kind.handlers.get(name)
        if handler is None:
            raise AttributeError(_no_handler(kind, name), name=name, obj=self)
        bound = BoundQuery if handler.is_query else BoundCommand
        return bound(self._app, kind.name, self._id, handler, self._caller)

    def _found_kind(self, wanted: str) -> EntityKind:
        """The kind of an unpickled reference: of the app if it is defined here, else the newest of that name."""
        if wanted.startswith("__"):
            raise AttributeError(wanted)  # a probe of copy, inspect and the like
        app = _apps.get(self._app)
        kind = app.kinds.get(self._kind_name) if app is not None else None
        kind = kind or newest_kind(self._kind_name)
        if kind is None:
            raise Unavailable(
                f"this process does not know the kind {self._kind_name!r} of the app {self._app!r}, so nothing was "
                f"sent; import the module that defines it before using {self!r}"
            )
        object.__setattr__(self, "_kind", kind)
        return kind

    def __setattr__(self, name: str, value: object) -> Never:
        raise AttributeError(f"{self!r} is an address and holds no state: {name} cannot be set, send a command")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Reference):
            return NotImplemented
        return (self._app, self._kind_name, self._id) == (other._app, other._kind_name, other._id)

    def __hash__(self) -> int:
        return hash((self._app, self._kind_name, self._id))

    def __repr__(self) -> str:
        return f"<reference {self._app}: {self._kind_name}/{self._id}>"

    def __dir__(self) -> list[str]:
        return sorted(self._kind.handlers) if self._kind is not None else []

    def __copy__(self) -> Reference:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Reference:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _unbound, (self._app, self._kind_name, self._id)


def _unbound(app: str, kind_name: str, id: str) -> Reference:
    return Reference(app, kind_name, checked_entity_id(id), None, None)


def _no_handler(kind: EntityKind, name: str) -> str:
    handlers = ", ".join(sorted(kind.handlers)) or "none"
    if name in kind.field_names:
        return f"{kind.name}.{name} is state, which a reference cannot read; write an @atoll.query that returns it"
    return f"{kind.name} has no handler {name}; a reference reaches commands and queries only: {handlers}"


class BoundQuery(msgspec.Struct, eq=False):
    """A query of one entity, ready to be sent. Typed as `Query` (handlers.py), which describes its methods.

    A struct, because one is made per call: three times as fast as a class in Python.
    """

    _app: str
    _kind_name: str
    _id: str
    _handler: Handler
    _caller: Caller | None
    _command_id: str = ""
    _timeout_s: float | None = None
    _fail_fast: bool = False
    _priority: Priority = Priority.NORMAL

    async def __call__(self, *args: Any, **kwargs: Any) -> Any:
        handler = self._handler
        caller = self._caller or bound_caller(self._app)
        return handler.decode_reply(await caller.call(self._request(Mode.ASK, args, kwargs)))

    def using(
        self, *, timeout: float | None = None, fail_fast: bool | None = None, priority: PriorityName | None = None
    ) -> BoundQuery:
        return self._with("", timeout, fail_fast, priority)

    def _with(
        self, command_id: str, timeout_s: float | None, fail_fast: bool | None, priority: PriorityName | None
    ) -> BoundQuery:
        if timeout_s is not None and not (_is_number(timeout_s) and 0 < timeout_s < math.inf):
            raise InvalidCommand(f"timeout is a number of seconds above 0, not {timeout_s!r}")
        other = type(self)(self._app, self._kind_name, self._id, self._handler, self._caller)
        other._command_id = command_id or self._command_id  # noqa: SLF001 - of this very class
        other._timeout_s = self._timeout_s if timeout_s is None else float(timeout_s)  # noqa: SLF001
        other._fail_fast = self._fail_fast if fail_fast is None else bool(fail_fast)  # noqa: SLF001
        other._priority = self._priority if priority is None else _priority(priority)  # noqa: SLF001
        return other

    def _request(self, mode: Mode, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Request:
        handler = self._handler
        return Request(
            self._kind_name,
            self._id,
            handler.name,
            handler.encode_arguments(args, kwargs),
            mode,
            handler.is_query,
            self._command_id,
            self._timeout_s,
            self._fail_fast,
            (),
            self._priority,
        )

    def __repr__(self) -> str:
        return f"<{self._handler.name} of {self._app}: {self._kind_name}/{self._id}>"


class BoundCommand(BoundQuery):
    """A command of one entity, ready to be sent. Typed as `Command` (handlers.py)."""

    def tell(self, *args: Any, **kwargs: Any) -> Coroutine[Any, Any, None]:
        return self._told(args, kwargs)

    async def _told(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        caller = self._caller or bound_caller(self._app)
        await caller.call(self._request(Mode.TELL, args, kwargs))

    def using(
        self,
        *,
        command_id: str | None = None,
        timeout: float | None = None,
        fail_fast: bool | None = None,
        priority: PriorityName | None = None,
    ) -> BoundCommand:
        checked = "" if command_id is None else checked_command_id(command_id)
        other = self._with(checked, timeout, fail_fast, priority)
        assert isinstance(other, BoundCommand)
        return other

    def message(self, app_name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> StoredMessage:
        """This command, as an entity of the app `app_name` sends it. Raises `InvalidCommand` for arguments that do not
        fit, `ValueError` for another app, `TypeError` for options that a message has not."""
        if self._app != app_name:
            raise ValueError(f"{self!r} is of another app; an entity of {app_name!r} sends within its app only")
        if self._command_id or self._timeout_s is not None or self._fail_fast or self._priority:
            raise TypeError(f"{self!r} has options, and a message takes none: it has no caller, ID or deadline")
        handler = self._handler
        return StoredMessage(self._kind_name, self._id, handler.name, handler.encode_arguments(args, kwargs))


def _priority(name: str) -> Priority:
    try:
        return _PRIORITIES[name]
    except (KeyError, TypeError):
        raise InvalidCommand(f"priority is one of {', '.join(_PRIORITIES)}, not {name!r}") from None


_PRIORITIES = {priority.name.lower(): priority for priority in Priority}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
