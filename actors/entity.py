"""The two classes that users derive from.

`Entity`: state is the annotated fields, saved as a whole when a command changed them. `EventSourced`: state is what its
events made of it, saved as those events with a snapshot now and then; only `@apply` methods may set fields.

An entity object is never made by users: they address it through a reference, and the host keeps the object. The one
name that Atoll takes from the class is `context`, and `emit` where there are events.
"""

from __future__ import annotations

import types
from typing import Any, ClassVar, Final, Self

from .context import Context, Stage
from .kind import KIND_ATTRIBUTE, EntityKind
from .requirements import Requirements, checked, merged

_CLOSED: Final[frozenset[str]] = frozenset()


class Entity:
    """One addressable unit of state. Derive from it, annotate state fields with defaults, and mark handlers.

        class Cart(atoll.Entity, kind="cart"):
            items: dict[str, int] = atoll.field(default_factory=dict)

            @atoll.command
            def add(self, sku: str, count: int = 1) -> int:
                self.items[sku] = self.items.get(sku, 0) + count
                return self.items[sku]

    Class arguments: `kind` names it in the store and on the wire (default: the class's name; set it before you rename
    the class), `durable=False` keeps it in memory only, `requires={"GPU": 1}` says what a node must have to run it: Ray
    resources and labels, added to those of its base classes and of the `App`. Since all kinds of an app share its
    hosts, a node that lacks what one kind requires gets no host at all. `turns_max=8` lets at most eight `async`
    handlers of the class wait at the same time on each host (not those of its subclasses).

    Un-annotated, `ClassVar` and `_underscore` names are not state; the latter are yours for what may be lost at any
    time (caches, clients). An idle entity that has neither such attributes nor hooks is kept as its encoded state, and
    its next command runs on a new object. Raises `TypeError` or `ValueError` for what cannot work.
    """

    __slots__ = ("_atoll_stage",)

    _atoll_stage: Stage | None

    def __init_subclass__(
        cls,
        *,
        kind: str | None = None,
        durable: bool | None = None,
        requires: Requirements | None = None,
        turns_max: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init_subclass__(**kwargs)
        if cls.__module__ == __name__:
            return  # EventSourced, below
        above = _kinds(cls.__mro__[1:])
        if durable is None:
            durable = all(base.durable for base in above)
        own = checked({} if requires is None else requires, cls.__name__)
        compiled = EntityKind(
            cls,
            (Entity, EventSourced),
            name=cls.__name__ if kind is None else kind,
            durable=durable,
            event_sourced=issubclass(cls, EventSourced),
            requires=merged([own, *(base.requires for base in above)], cls.__name__),
            turns_max=turns_max,
        )
        setattr(cls, KIND_ATTRIBUTE, compiled)

    def __new__(cls, *_args: object, **_kwargs: object) -> Self:
        raise TypeError(f"{cls.__name__} objects are made by their host; use cluster.entity({cls.__name__}, id)")

    @property
    def context(self) -> Context:
        """What this turn knows, and may ask for. Raises `RuntimeError` outside of handlers and hooks."""
        stage = self._atoll_stage
        if stage is None:
            raise RuntimeError(
                "context is there while a handler or a hook of the entity runs; "
                "not after it, and not in @atoll.apply methods, which are replayed: put what they need into the event"
            )
        return stage.face()

    async def on_activate(self) -> None:
        """Called when the entity came into memory, before its first command. May set `_underscore` names only."""

    async def on_passivate(self) -> None:
        """Called before the entity leaves memory in good order (not after a crash). May not change state."""


class EventSourced(Entity):
    """An entity whose state is the sum of its events.

    class Account(atoll.EventSourced):
        balance: int = 0

        @atoll.command
        def deposit(self, amount: int) -> int:
            self.emit(Deposited(amount))
            return self.balance

        @atoll.apply
        def _deposited(self, event: Deposited) -> None:
            self.balance += event.amount
    """

    __slots__ = ("_atoll_settable",)

    _atoll_settable: frozenset[str]
    """The fields that may be set now: all of them inside an @apply method, else none."""
    _atoll_fields: ClassVar[frozenset[str]] = _CLOSED

    def __init_subclass__(
        cls,
        *,
        kind: str | None = None,
        durable: bool | None = None,
        requires: Requirements | None = None,
        turns_max: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init_subclass__(kind=kind, durable=durable, requires=requires, turns_max=turns_max, **kwargs)
        cls._atoll_fields = vars(cls)[KIND_ATTRIBUTE].field_names

    def emit(self, event: object) -> None:
        """Record an event: it is applied at once, and committed with this command.

        Raises `TypeError` for an event without `@atoll.apply` method, `ValueError` for one that cannot be stored,
        `RuntimeError` outside of a command.
        """
        stage = self._atoll_stage
        if stage is None:
            raise RuntimeError("emit is for commands: while one runs, and not in @atoll.apply methods")
        read = stage.staged(event)  # what is applied is what a later replay will apply
        self._atoll_stage = None  # an @apply method must depend on state and event alone
        try:
            apply_event(self, stage.kind, read)
        except BaseException as error:
            stage.broken = error
            raise
        finally:
            self._atoll_stage = stage

    def __setattr__(self, name: str, value: object) -> None:
        if name[0] != "_" and name not in self._atoll_settable:
            cls = type(self)
            if name in cls._atoll_fields:
                raise AttributeError(
                    f"{cls.__name__}.{name} is set outside of an @atoll.apply method; "
                    f"emit an event, and set it where that event is applied"
                )
            raise AttributeError(
                f"{cls.__name__}.{name} is not a state field: annotate it in the class, or name it _{name}"
            )
        object.__setattr__(self, name, value)

    def __delattr__(self, name: str) -> None:
        if name[0] != "_":
            raise AttributeError(f"{type(self).__name__}.{name}: a state field cannot be deleted")
        object.__delattr__(self, name)


def apply_event(entity: EventSourced, kind: EntityKind, event: Any) -> None:
    """Run the @apply method for `event`, the only time when fields may be set."""
    set_settable(entity, kind.field_names)
    try:
        kind.events[type(event)].apply(entity, event)
    finally:
        set_settable(entity, _CLOSED)


def prepared(kind: EntityKind) -> Any:
    """A new entity object of that kind, outside of any turn, its fields not yet set."""
    entity = kind.made()
    set_stage(entity, None)
    if kind.event_sourced:
        set_settable(entity, _CLOSED)
    return entity


_stage_slot: types.MemberDescriptorType = vars(Entity)["_atoll_stage"]
_settable_slot: types.MemberDescriptorType = vars(EventSourced)["_atoll_settable"]
set_stage = _stage_slot.__set__
"""Begins and ends a turn of an entity: straight into the slot, past the guard of `EventSourced`."""
set_settable = _settable_slot.__set__


def _kinds(bases: tuple[type, ...]) -> list[EntityKind]:
    return [vars(base)[KIND_ATTRIBUTE] for base in bases if KIND_ATTRIBUTE in vars(base)]
