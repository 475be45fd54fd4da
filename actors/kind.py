"""The compiled description of one entity class: its handlers, its state fields, its events.

Made once, when the class is defined, so that a mistake shows where it was made and not when the first command comes:
unsupported types, fields without a default, clashes with reserved names, two events of one name. What it cannot see
yet are upcasts, which are registered after the class; the `App` checks them.
"""

from __future__ import annotations

import inspect
import operator
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from weakref import WeakValueDictionary

import msgspec

from .evolution import Versioned
from .handlers import APPLIES, BatchedCommand, Command, Query
from .ids import KIND_PATTERN
from .requirements import Requirements
from .schema import annotated_fields, check_type, resolve, type_name
from .signature import Handler
from .stored import StoredEvent, StoredState

__all__ = ["HOOKS", "KIND_ATTRIBUTE", "EntityKind", "EventType", "Handler", "kind_of", "newest_kind"]

KIND_ATTRIBUTE = "__atoll_kind__"
"""Where an entity class keeps its own kind."""
HOOKS = ("on_activate", "on_passivate")
_EVENT_NAME = "__event_name__"

_encode = msgspec.msgpack.Encoder().encode
_as_tuple = msgspec.structs.astuple
_put = object.__setattr__
"""Sets a field past the guard of event-sourced entities."""


class EventType(Versioned):
    """One class of events of one kind."""

    __slots__ = ("_label", "apply", "name")

    def __init__(self, label: str, event_class: type, apply: Callable[[Any, Any], None]) -> None:
        super().__init__(event_class, event_class)
        self._label = label
        self.name: str = event_class.__dict__.get(_EVENT_NAME, event_class.__name__)
        """What is stored: the class's name, or its `__event_name__`, which keeps a renamed class readable."""
        self.apply = apply

    def stored(self, event: Any) -> tuple[StoredEvent, Any]:
        """The event as it will be stored, and as it will be read. Raises `ValueError` when it could not be."""
        try:
            data = _encode(event)
            read = self.decode_current(data)
        except Exception as problem:  # noqa: BLE001 - a user's type may raise anything
            raise ValueError(f"{self._label}: the event {self.name} cannot be stored: {problem}") from None
        return StoredEvent(self.name, self.version, data), read


class EntityKind:
    """What Atoll knows of an entity class. Get one with `kind_of`."""

    __slots__ = (
        "__weakref__",
        "_state_class",
        "_values",
        "durable",
        "entity_class",
        "event_sourced",
        "events",
        "events_by_name",
        "field_names",
        "handlers",
        "has_on_activate",
        "has_on_passivate",
        "name",
        "requires",
        "state_versions",
        "turns_max",
    )

    def __init__(
        self,
        cls: type,
        above: tuple[type, ...],
        *,
        name: str,
        durable: bool,
        event_sourced: bool,
        requires: Requirements,
        turns_max: int | None = None,
    ) -> None:
        """`above`: the base classes that are Atoll's own. Raises `TypeError` or `ValueError`, naming the class."""
        if not KIND_PATTERN.fullmatch(name):
            raise TypeError(f"{cls.__name__}: {name!r} cannot name a kind; it must match {KIND_PATTERN.pattern}")
        if event_sourced and not durable:
            raise TypeError(f"{cls.__name__}: events are there to be stored; for durable=False use atoll.Entity")
        self.name = name
        self.entity_class = cls
        self.durable = durable
        self.event_sourced = event_sourced
        self.requires = requires
        if turns_max is not None and (not isinstance(turns_max, int) or isinstance(turns_max, bool) or turns_max < 1):
            raise ValueError(f"{cls.__name__}: turns_max is a number of turns from 1 on, not {turns_max!r}")
        self.turns_max = turns_max
        members = _members(cls, above)
        _check_names(cls, members, event_sourced=event_sourced)
        self.has_on_activate, self.has_on_passivate = (_overrides_hook(cls, members, hook) for hook in HOOKS)
        self.handlers: Mapping[str, Handler] = {
            member: Handler(
                cls,
                member,
                value.__wrapped__,
                is_query=isinstance(value, Query),
                is_batched=isinstance(value, BatchedCommand),
            )
            for member, value in members.items()
            if isinstance(value, Command | Query)
        }
        fields = annotated_fields(cls, above)
        for field in fields:
            if field.required:
                raise TypeError(f"{cls.__name__}.{field.name} has no default; every entity begins from its defaults")
        self.field_names = frozenset(field.name for field in fields)
        self._state_class: Callable[..., Any] = msgspec.defstruct(
            f"{cls.__name__}State", [field.as_struct_field() for field in fields], gc=False, module=cls.__module__
        )
        self._values = _getter(tuple(field.name for field in fields))
        self.state_versions = Versioned(cls, self._state_class)
        appliers = dict(_appliers(cls, members))
        if appliers and not event_sourced:
            raise TypeError(f"{cls.__name__}: @atoll.apply is for events; derive from atoll.EventSourced to have them")
        self.events: Mapping[type, EventType] = {
            event: EventType(cls.__name__, event, method) for event, method in appliers.items()
        }
        self.events_by_name: dict[str, EventType] = {}
        for event_type in self.events.values():
            if event_type.name in self.events_by_name:
                raise TypeError(
                    f"{cls.__name__} has two events named {event_type.name}; rename one, or set {_EVENT_NAME} in it"
                )
            self.events_by_name[event_type.name] = event_type
        _newest[name] = self

    # ---- entities and their state ----------------------------------------------------------------------------------

    def made(self) -> Any:
        """A new object of the class, its fields not yet set."""
        return object.__new__(self.entity_class)

    def set_defaults(self, entity: Any) -> None:
        self._fill(entity, self._state_class())

    def set_state(self, entity: Any, state: StoredState) -> None:
        """Set all fields as stored. Raises whatever decoding raises."""
        self._fill(entity, self.state_versions.decode(state.version, state.data))

    def _fill(self, entity: Any, state: Any) -> None:
        for name, value in zip(state.__struct_fields__, _as_tuple(state), strict=True):
            _put(entity, name, value)

    def encode_state(self, entity: Any) -> bytes:
        """The fields as a MessagePack map by name. Raises `ValueError` naming the field that cannot be stored."""
        try:
            return _encode(self._state_class(*self._values(entity.__dict__)))
        except Exception as problem:  # noqa: BLE001 - a user's type may raise anything
            raise ValueError(f"the state cannot be stored: {self._blame(entity, problem)}") from None

    def check_state(self, data: bytes) -> None:
        """Raise `ValueError` unless an encoded state could be read again."""
        try:
            self.state_versions.decode_current(data)
        except Exception as problem:  # noqa: BLE001 - a user's type may raise anything
            raise ValueError(f"the state could not be read again: {problem}") from None

    def read_state(self, data: bytes) -> dict[str, Any]:
        """An encoded state of the current version, by field name."""
        return msgspec.structs.asdict(self.state_versions.decode_current(data))

    def _blame(self, entity: Any, problem: Exception) -> str:
        for name in sorted(self.field_names):
            if name not in entity.__dict__:
                return f"{name} was deleted; set it to a value instead"
            try:
                _encode(getattr(entity, name))
            except Exception as its_problem:  # noqa: BLE001 - as above
                return f"{name}: {its_problem}"
        return str(problem)

    def stray_names(self, entity: Any) -> list[str]:
        """Public attributes that are no state: they would be lost with the activation."""
        attributes = entity.__dict__
        if len(attributes) == len(self.field_names):
            return []
        return [name for name in attributes if not name.startswith("_") and name not in self.field_names]

    def read_event(self, stored: StoredEvent) -> Any:
        """A stored event as its class is now. Raises what decoding raises, and `ValueError` for a name it has not."""
        event_type = self.events_by_name.get(stored.name)
        if event_type is None:
            raise ValueError(
                f"{self.name} has no @atoll.apply method for a stored event {stored.name}; keep the classes of events "
                f"that were stored, or give their successor `{_EVENT_NAME} = {stored.name!r}`"
            )
        return event_type.decode(stored.version, stored.data)

    def check_upcasts(self) -> None:
        """Raise `TypeError` when the upcasts of its state or of one of its events leave a gap."""
        for versioned in (self.state_versions, *self.events.values()):
            versioned.check()

    def __repr__(self) -> str:
        return f"<kind {self.name}: {self.entity_class.__qualname__}>"


_newest: WeakValueDictionary[str, EntityKind] = WeakValueDictionary()


def newest_kind(name: str) -> EntityKind | None:
    """The kind of that name that this process defined last, for references that came without their class."""
    return _newest.get(name)


def kind_of(entity_class: Any) -> EntityKind:
    """The kind of an entity class. Raises `TypeError` for anything else."""
    kind = entity_class.__dict__.get(KIND_ATTRIBUTE) if isinstance(entity_class, type) else None
    if not isinstance(kind, EntityKind):
        raise TypeError(
            f"{entity_class!r} is not an entity class: derive one from atoll.Entity or atoll.EventSourced, "
            f"and pass the class itself"
        )
    return kind


# ---- reading the class ---------------------------------------------------------------------------------------------


def _members(cls: type, above: tuple[type, ...]) -> dict[str, Any]:
    """What the class and its bases define, apart from Atoll's own and `object`; the nearest definition wins."""
    members: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        if base is not object and base not in above and base.__module__ not in ("typing", "abc"):
            members.update(vars(base))
            members.update(dict.fromkeys(set(inspect.get_annotations(base)) - set(vars(base))))
    return members


def _check_names(cls: type, members: Mapping[str, Any], *, event_sourced: bool) -> None:
    for reserved in ("context", "emit") if event_sourced else ("context",):
        if reserved in members:
            raise TypeError(f"{cls.__name__}.{reserved}: the name {reserved} is Atoll's own; rename this member")
    for constructor in ("__init__", "__new__"):
        if getattr(members.get(constructor), "__module__", "typing") != "typing":  # protocols get one from typing
            raise TypeError(
                f"{cls.__name__}.{constructor}: an entity begins from its stored state; "
                f"give fields defaults, and set up the rest in on_activate"
            )
    for name, value in members.items():
        if isinstance(value, Command | Query) and name.startswith("_"):
            raise TypeError(f"{cls.__name__}.{name}: a handler is called from outside; its name has no leading _")


def _overrides_hook(cls: type, members: Mapping[str, Any], hook: str) -> bool:
    if hook not in members:
        return False
    if not inspect.iscoroutinefunction(members[hook]):
        raise TypeError(f"{cls.__name__}.{hook} is a hook: write it as `async def {hook}(self) -> None`")
    return True


def _appliers(cls: type, members: Mapping[str, Any]) -> Iterator[tuple[type, Callable[[Any, Any], None]]]:
    """Each event class, and the method that applies it."""
    methods: dict[type, str] = {}
    for name, method in members.items():
        if not (inspect.isfunction(method) and APPLIES in method.__dict__):
            continue
        where = f"{cls.__name__}.{name}"
        parameters = list(inspect.signature(method).parameters.values())
        if len(parameters) != 2 or parameters[1].annotation is inspect.Parameter.empty:
            raise TypeError(f"{where}: an @atoll.apply method takes self and one event, annotated with its class")
        wanted = resolve(parameters[1].annotation, method.__globals__, method.__module__, where)
        is_union = typing.get_origin(wanted) in (typing.Union, types.UnionType)
        for event_class in typing.get_args(wanted) if is_union else (wanted,):
            _check_event(event_class, where)
            if event_class in methods:
                raise TypeError(f"{where} and {methods[event_class]} both apply {type_name(event_class)}; keep one")
            methods[event_class] = name
            yield event_class, method


def _check_event(event_class: Any, where: str) -> None:
    if not isinstance(event_class, type) or not (
        hasattr(event_class, "__dataclass_fields__")
        or hasattr(event_class, "__attrs_attrs__")
        or (issubclass(event_class, msgspec.Struct) and not event_class.__struct_config__.array_like)
    ):
        raise TypeError(
            f"{where}: {type_name(event_class)} cannot be an event; make it a dataclass or a msgspec.Struct, "
            f"since events are stored by field name"
        )
    check_type(event_class, where)


def _getter(names: tuple[str, ...]) -> Callable[[dict[str, Any]], tuple[Any, ...]]:
    """Takes the fields out of an object's attributes: not by `getattr`, which would find the class's default where a
    field was deleted."""
    if len(names) == 1:
        get = operator.itemgetter(names[0])
        return lambda attributes: (get(attributes),)
    if names:
        return operator.itemgetter(*names)
    return lambda _attributes: ()
