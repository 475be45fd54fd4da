"""An app: what runs together under one name, on one store. Hosts and clients are made from it.

    app = atoll.App("bank", entities=[Account, Cart])

Nothing happens when it is made but checks: whatever could only fail later on a host fails here.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

import msgspec

from .errors import Rejected, known_rejections
from .ids import KIND_PATTERN, VERSION_PATTERN
from .kind import EntityKind, kind_of
from .reference import KindsOfApp
from .requirements import Requirements, checked, merged
from .settings import Settings

Resources = Callable[[], AbstractAsyncContextManager[Any]]


class App:
    """The entities, settings and resources of one application.

    `name`: letters, digits, `_`, `.`, `-`; it names store and cluster. `entities`: entity classes, no two of one kind.
    `settings`: a mapping of those that differ from the defaults, or a `Settings`; the environment comes over it.
    `store`: where the state is kept, e.g. `sqlite:./data`, or several URLs, always in the same order, among which the
    app's shards are divided when it is started for the first time; None for the default. `resources`: makes the
    asynchronous context manager that each host enters once, and whose value handlers find in `self.context.resources`.

    `version`: of your code, at most 64 of the characters of a name and `+`. `atoll start` of another version of an app
    that runs replaces its code, host by host; old and new serve the same entities meanwhile, so each must read what the
    other one stores. `requires`: what a node must have to get a host, as Ray says: a number is the least of a resource,
    a string the value of a label, e.g. `{"GPU": 1, "zone": "eu-1"}`. Added to it is what the entity classes require:
    all kinds share the hosts.

    Raises `TypeError` for something that is no entity class or an upcast that is missing, `ValueError` for a name,
    version, kind or setting that cannot be, and for requirements that no node can meet.
    """

    def __init__(
        self,
        name: str,
        *,
        entities: Iterable[type],
        settings: Settings | Mapping[str, Any] | None = None,
        store: str | Sequence[str] | None = None,
        resources: Resources | None = None,
        version: str = "",
        requires: Requirements | None = None,
    ) -> None:
        if not isinstance(name, str) or not KIND_PATTERN.fullmatch(name):
            raise ValueError(f"{name!r} cannot name an app; it must match {KIND_PATTERN.pattern}")
        self.name = name
        if not isinstance(version, str) or not VERSION_PATTERN.fullmatch(version):
            raise ValueError(
                f"{version!r} cannot be a version; it must be a string that matches {VERSION_PATTERN.pattern}"
            )
        self.version = version
        kinds: dict[str, EntityKind] = {}
        for entity_class in entities:
            kind = kind_of(entity_class)
            if inspect.isabstract(entity_class):
                raise TypeError(f"{entity_class.__name__} has abstract methods; register the class that defines them")
            if kind.name in kinds:
                both = f"{kinds[kind.name].entity_class.__qualname__} and {entity_class.__qualname__}"
                raise ValueError(f'{both} are both of kind {kind.name!r}; name one with the class argument kind="..."')
            kind.check_upcasts()
            kinds[kind.name] = kind
        if not kinds:
            raise ValueError(f"the app {name!r} has no entities; pass entities=[...]")
        self.kinds: Mapping[str, EntityKind] = types.MappingProxyType(kinds)
        self.settings_asked: Mapping[str, Any] = _differing(settings)
        Settings.load(self.settings_asked, {})
        if resources is not None and not callable(resources):
            raise TypeError("resources is a function that returns an async context manager, not the manager itself")
        self.stores: tuple[str, ...] = _urls(store)
        self.resources = resources
        own = checked({} if requires is None else requires, f"the app {name!r}")
        self.requires: Requirements = types.MappingProxyType(
            merged([own, *(kind.requires for kind in kinds.values())], f"the app {name!r}")
        )
        self._known_to_references = KindsOfApp(name, kinds)

    @property
    def rejections(self) -> Mapping[str, type[Rejected]]:
        """The `Rejected` subclasses that an answer may name: all that this process has, looked up by name."""
        return known_rejections()

    def __repr__(self) -> str:
        return f"<app {self.name}: {', '.join(sorted(self.kinds))}>"


def _urls(store: str | Sequence[str] | None) -> tuple[str, ...]:
    """None for the default is none."""
    if store is None:
        return ()
    urls = (store,) if isinstance(store, str) else store
    if not isinstance(urls, Sequence) or not urls or not all(isinstance(url, str) and url for url in urls):
        raise TypeError(f"store is a URL, or a list of them, not {store!r}")
    return tuple(urls)


def _differing(settings: Settings | Mapping[str, Any] | None) -> Mapping[str, Any]:
    """What was asked for; of a whole `Settings`, what is not a default."""
    if settings is None:
        return {}
    if not isinstance(settings, Settings):
        return dict(settings)
    defaults = Settings()
    values = msgspec.structs.asdict(settings)
    return {name: value for name, value in values.items() if value != getattr(defaults, name)}
