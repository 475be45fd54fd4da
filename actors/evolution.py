"""How stored data outlives the code that wrote it: every event and state carries the version of its class.

The version of a class is 1 plus the number of its upcasts. Reading walks a stored dict through the upcasts that came
after it, and then decodes it as the class is now: unknown fields are ignored, missing ones take their defaults.

    @atoll.upcast(Deposited, version=1)              # version 1 had `cents`, version 2 has `amount`
    def _(old: dict[str, Any]) -> dict[str, Any]:
        return {"amount": old["cents"] / 100}

An upcast sees what MessagePack holds: UUIDs, decimals and enums as their text or value.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import msgspec

Upcast = Callable[[dict[str, Any]], dict[str, Any]]
_Upcast = TypeVar("_Upcast", bound=Upcast)

_registered: WeakKeyDictionary[type, dict[int, Upcast]] = WeakKeyDictionary()
_decode_any = msgspec.msgpack.Decoder().decode
_encode = msgspec.msgpack.Encoder().encode


def upcasts_of(cls: type) -> dict[int, Upcast]:
    """The upcasts of `cls` by the version that they lift; shared with those registered later."""
    return _registered.setdefault(cls, {})


def upcast(cls: type, *, version: int) -> Callable[[_Upcast], _Upcast]:
    """Register the decorated function as what turns a stored dict of `version` of `cls` into one of `version` + 1.

    `cls` is an event class or an entity class (its state). Versions begin at 1. Raises `TypeError` for something that
    is no class, a version below 1, or one that has its upcast already; a gap is reported when the `App` is made.
    """
    if not isinstance(cls, type):
        raise TypeError(f"@atoll.upcast takes an event class or an entity class, not {cls!r}")
    if type(version) is not int or version < 1:
        raise TypeError(f"@atoll.upcast({cls.__name__}): version is the one that is lifted, 1 or more, not {version!r}")

    def register(function: _Upcast) -> _Upcast:
        known = upcasts_of(cls)
        if version in known:
            raise TypeError(f"@atoll.upcast({cls.__name__}, version={version}) is registered twice")
        known[version] = function
        return function

    return register


class Versioned:
    """The stored form of one class: its current version, and how to read every earlier one."""

    __slots__ = ("_upcasts", "cls", "decode_current")

    def __init__(self, cls: type, stored_as: Any) -> None:
        self.cls = cls
        self.decode_current: Callable[[bytes], Any] = msgspec.msgpack.Decoder(stored_as).decode
        self._upcasts = upcasts_of(cls)

    @property
    def version(self) -> int:
        return 1 + len(self._upcasts)

    def check(self) -> None:
        """Raise `TypeError` when an upcast is missing between version 1 and the current one."""
        for version in range(1, self.version):
            if version not in self._upcasts:
                raise TypeError(
                    f"{self.cls.__name__} has an upcast from version {max(self._upcasts)}, but none from {version}: "
                    f"register @atoll.upcast({self.cls.__name__}, version={version})"
                )

    def decode(self, version: int, data: bytes) -> Any:
        """The value that was stored as `version`. Raises whatever decoding or an upcast raises, and `ValueError` for
        a version that this code does not know; the caller says which entity it was."""
        if version == self.version:
            return self.decode_current(data)
        if not 1 <= version < self.version:
            raise ValueError(
                f"{self.cls.__name__} was stored by version {version} of its class, and this code knows 1 to "
                f"{self.version}: run the newer code"
            )
        old = _decode_any(data)
        for step in range(version, self.version):
            old = self._upcasts[step](old)
            if not isinstance(old, dict):
                raise TypeError(f"the upcast of {self.cls.__name__} from version {step} returned no dict")
        return self.decode_current(_encode(old))
