"""What annotations mean: the fields of a class, resolved, and whether their types can travel.

State fields, the fields of `Rejected` subclasses, parameters and results of handlers all pass through here, once, when
their class is defined. Which types can travel is msgspec's word: builtins, dataclasses, Structs, datetime, UUID,
Decimal, enums, optionals and the unions it accepts. A class of one's own that is none of these is refused by name.

Rules: everything here runs at class definition and raises `TypeError` that names class, member and type. Nothing here
knows of handlers, events or storage.
"""

from __future__ import annotations

import copy
import enum
import functools
import inspect
import re
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, TypeVar, overload

import msgspec
import msgspec.inspect

T = TypeVar("T")

REQUIRED: Final = msgspec.UNSET
"""Stands for a default that is not there."""
SCALARS: Final = (int, str, bool, float, bytes, type(None))
"""Immutable builtins: shared between activations instead of copied, and checked by their exact type."""
_NOT_A_FIELD = re.compile(r"(\w+\.)*(ClassVar|Final)\b")


class Default:
    """What `field` leaves in the class body until the class is compiled."""

    __slots__ = ("factory", "value")

    def __init__(self, value: Any, factory: Callable[[], Any] | None) -> None:
        self.value = value
        self.factory = factory


@overload
def field(*, default: T) -> T: ...
@overload
def field(*, default_factory: Callable[[], T]) -> T: ...
def field(*, default: Any = REQUIRED, default_factory: Any = None) -> Any:
    """The default of a state field: a value (copied per entity), or a function that makes one.

    `items: dict[str, int] = atoll.field(default_factory=dict)`. Raises `TypeError` unless exactly one is given.
    """
    if (default is REQUIRED) == (default_factory is None):
        raise TypeError("atoll.field takes either default or default_factory")
    return Default(default, default_factory)


class Field(msgspec.Struct, frozen=True):
    """One annotated name of a class."""

    name: str
    type: Any
    default: Any = REQUIRED
    factory: Callable[[], Any] | None = None

    @property
    def required(self) -> bool:
        return self.default is REQUIRED and self.factory is None

    def made(self) -> Any:
        """A fresh default."""
        return self.factory() if self.factory is not None else copy.deepcopy(self.default)

    def as_struct_field(self) -> tuple[str, Any] | tuple[str, Any, Any]:
        """This field as `msgspec.defstruct` takes it; a default that could be changed is copied each time."""
        if self.required:
            return (self.name, self.type)
        return (self.name, self.type, struct_default(self.default, self.factory))


def struct_default(default: Any, factory: Callable[[], Any] | None = None) -> Any:
    """A default as msgspec takes it: shared when it cannot change, else made anew for every use."""
    if factory is not None:
        return msgspec.field(default_factory=factory)
    if type(default) in SCALARS or isinstance(default, enum.Enum):
        return default
    return msgspec.field(default_factory=functools.partial(copy.deepcopy, default))


def annotated_fields(cls: type, above: tuple[type, ...]) -> tuple[Field, ...]:
    """The fields of `cls`: its public annotated names and those it inherits, up to the classes in `above`.

    `ClassVar`, `Final` and `_underscore` names are not fields. A default is the class attribute of that name. Raises
    `TypeError` for a type that cannot travel, a default that does not fit, or a member that is both field and method.
    """
    found: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        if base is object or base in above:
            continue
        for name, annotation in inspect.get_annotations(base).items():
            if name.startswith("_") or (isinstance(annotation, str) and _NOT_A_FIELD.match(annotation)):
                continue
            module = sys.modules.get(base.__module__)
            resolved = resolve(annotation, vars(module) if module else {}, base.__module__, f"{cls.__name__}.{name}")
            if resolved is Final or typing.get_origin(resolved) in (typing.ClassVar, Final):
                continue
            found[name] = resolved
    return tuple(_field(cls, name, resolved) for name, resolved in found.items())


def _field(cls: type, name: str, resolved: Any) -> Field:
    where = f"{cls.__name__}.{name}"
    check_type(resolved, where)
    default = inspect.getattr_static(cls, name, REQUIRED)
    if isinstance(default, Default):
        result = Field(name, resolved, default.value, default.factory)
    else:
        result = Field(name, resolved, default)
    if result.required or result.factory is not None:
        return result
    if callable(result.default) or hasattr(result.default, "__get__"):
        raise TypeError(f"{where} is annotated as a field, and is a {type(result.default).__name__} too: rename one")
    try:
        msgspec.msgpack.Decoder(resolved).decode(msgspec.msgpack.encode(result.default))
    except Exception as error:  # noqa: BLE001 - whatever a user's type raises, the default does not fit
        raise TypeError(f"{where}: the default {result.default!r} is no {type_name(resolved)}: {error}") from None
    return result


def resolve(annotation: Any, globalns: Mapping[str, Any], module: str, where: str) -> Any:
    """The type that `annotation` means, also when it is a string (`from __future__ import annotations`).

    Names are looked up in `globalns`, then in the functions of `module` that are running (classes defined inside
    functions). Raises `TypeError` naming `where` when that fails.
    """
    # `get_type_hints` wants a class to accept ClassVar; one that holds nothing but this annotation fails for no other.
    holder = type("Annotated", (), {"__annotations__": {"it": annotation}})
    try:
        return typing.get_type_hints(holder, dict(globalns), include_extras=True)["it"]
    except NameError:
        pass
    except Exception as error:  # noqa: BLE001 - an annotation is arbitrary code
        raise TypeError(f"{where}: the annotation {annotation!r} cannot be read: {error}") from None
    try:
        names = dict(globalns) | _local_names(module)
        return typing.get_type_hints(holder, names, include_extras=True)["it"]
    except Exception as error:  # noqa: BLE001 - an annotation is arbitrary code
        raise TypeError(
            f"{where}: the annotation {annotation!r} cannot be read: {error}; "
            f"define that type before the class, and import it outside `if TYPE_CHECKING`"
        ) from None


def _local_names(module: str) -> dict[str, Any]:
    """Local variables of the running functions of `module`, inner ones over outer ones."""
    frames: list[types.FrameType] = []
    frame: types.FrameType | None = sys._getframe(1)  # noqa: SLF001 - the only way to see the scope of a class body
    while frame is not None:
        if frame.f_globals.get("__name__") == module and frame.f_locals is not frame.f_globals:
            frames.append(frame)
        frame = frame.f_back
    names: dict[str, Any] = {}
    for each in reversed(frames):
        names.update(each.f_locals)
    return names


def check_type(wanted: Any, where: str) -> None:
    """Raise `TypeError` naming `where` and the type unless values of type `wanted` can be encoded and decoded."""
    try:
        info = msgspec.inspect.type_info(wanted)
        msgspec.msgpack.Decoder(wanted)
    except Exception as error:  # noqa: BLE001 - msgspec resolves the annotations of user classes here
        raise TypeError(f"{where}: {type_name(wanted)} cannot be used: {error}") from None
    for custom in _custom_types(info, set()):
        raise TypeError(
            f"{where}: {type_name(wanted)} cannot be used: {type_name(custom)} is not a type that can be stored or "
            f"sent; make it a dataclass or msgspec.Struct, or use builtins, datetime, UUID, Decimal, enums or Any"
        )


def _custom_types(node: Any, seen: set[int]) -> Iterator[type]:
    """The classes inside a type that msgspec could not carry by itself."""
    if isinstance(node, msgspec.inspect.CustomType):
        yield node.cls
    elif isinstance(node, tuple):
        for each in node:
            yield from _custom_types(each, seen)
    elif isinstance(node, msgspec.inspect.Type | msgspec.inspect.Field) and id(node) not in seen:
        seen.add(id(node))  # a type may contain itself
        for name in node.__struct_fields__:
            if name not in ("cls", "default", "default_factory"):
                yield from _custom_types(getattr(node, name), seen)


def type_name(wanted: Any) -> str:
    """A type as its author wrote it."""
    if isinstance(wanted, type) and not isinstance(wanted, types.GenericAlias):
        return wanted.__qualname__
    return str(wanted).replace("typing.", "")
