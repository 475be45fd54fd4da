"""Reads the structure of the package out of its sources: who imports whom, and who touches the world outside.

Works on text alone, nothing is imported or run. Each check returns sentences, one per violation; none means it holds.
A module is named by its path in the package: `actors.errors`, `sharding` for a folder's `__init__`, and `` for the door.
"""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

PACKAGE = "atoll"
FLOORS = ("actors", "persistence", "sharding", "cluster")
"""The lowest first; a module may import its own floor and those before it."""

WORLDLY_MODULES = frozenset(
    """apsw asyncpg concurrent fcntl http mmap multiprocessing os pathlib platform psutil random ray secrets
    select selectors shutil signal socket sqlite3 ssl subprocess tempfile threading time urllib uuid uvloop""".split()  # noqa: SIM905 - words read better than a column of quotes
)
"""Clock, luck, files, sockets, processes, threads: what a module may use only as a named shell."""

WORLDLY_NAMES = frozenset(
    """asyncio.create_task asyncio.ensure_future asyncio.to_thread asyncio.run asyncio.Runner
    asyncio.open_connection asyncio.start_server asyncio.create_subprocess_exec asyncio.new_event_loop
    datetime.datetime.now datetime.datetime.utcnow datetime.datetime.today datetime.date.today""".split()  # noqa: SIM905 - as above
)
"""The same inside modules that are harmless otherwise. Timers of the running loop are allowed, since a simulator
replaces the loop as a whole, and so are `gather` and `TaskGroup`, whose tasks end with their caller."""

WORLDLY_BUILTINS = frozenset({"open", "print", "input", "breakpoint"})
WORLDLY_METHODS = frozenset({"create_task", "run_in_executor", "create_connection", "create_server"})
"""Of an event loop, whatever the variable is called."""


@dataclass(frozen=True)
class Import:
    target: str
    """A module of ours as this file names them, or the dotted name of a foreign one."""
    ours: bool
    line: int
    relative: bool
    for_types: bool
    """Under `if TYPE_CHECKING`: it does not happen at run time."""


@dataclass(frozen=True)
class Module:
    name: str
    tree: ast.Module
    is_package: bool

    @classmethod
    def of(cls, name: str, source: str, *, is_package: bool = False) -> Module:
        return cls(name, ast.parse(source), is_package)

    @property
    def floor(self) -> str:
        return self.name.split(".")[0]


def read_package(root: Path) -> dict[str, Module]:
    """All modules of the package whose root folder is `root`."""
    modules = {"": Module.of("", (root / "__init__.py").read_text(), is_package=True)}
    for floor in FLOORS:
        for path in sorted((root / floor).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            is_package = parts[-1] == "__init__"
            name = ".".join(parts[:-1] if is_package else parts)
            modules[name] = Module.of(name, path.read_text(), is_package=is_package)
    return modules


# ---- who imports whom


def imports(module: Module, known: Collection[str]) -> Iterator[Import]:
    """Every import of `module`, at the top, inside functions and under TYPE_CHECKING alike."""
    guarded = {
        id(inner)
        for node in ast.walk(module.tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).rpartition(".")[2] == "TYPE_CHECKING"
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(module.tree):
        for_types = id(node) in guarded
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield _named(alias.name, node.lineno, for_types=for_types)
        elif isinstance(node, ast.ImportFrom):
            if node.level == 0:
                assert node.module is not None
                base = _named(node.module, node.lineno, for_types=for_types)
            else:
                base = Import(_resolved(module, node), True, node.lineno, relative=True, for_types=for_types)
            if not base.ours:
                yield base
                continue
            for alias in node.names:  # `from . import spi` names a module, `from .spi import Store` something in one
                deeper = f"{base.target}.{alias.name}".removeprefix(".")
                yield replace(base, target=deeper if deeper in known else base.target)


def _named(name: str, line: int, *, for_types: bool) -> Import:
    first, _, rest = name.partition(".")
    ours = first == PACKAGE
    return Import(rest if ours else name, ours, line, relative=False, for_types=for_types)


def _resolved(module: Module, node: ast.ImportFrom) -> str:
    parts = module.name.split(".") if module.name else []
    up = node.level - 1 if module.is_package else node.level
    base = parts[: len(parts) - up]
    return ".".join([*base, *(node.module.split(".") if node.module else [])])


# ---- what must hold


def against_floors(modules: Mapping[str, Module]) -> list[str]:
    """Imports only go down, are relative, and nobody inside goes through the door."""
    found = []
    for module in modules.values():
        for imported in imports(module, modules):
            if not imported.ours:
                continue
            at = f"{module.name or 'the door'}:{imported.line}"
            if not imported.relative:
                found.append(f"{at} imports {PACKAGE}.{imported.target} by its full name; inside, imports are relative")
            if module.name == "":
                continue
            if imported.target == "":
                found.append(f"{at} imports the door; import the module that holds it")
            elif FLOORS.index(imported.target.split(".")[0]) > FLOORS.index(module.floor):
                found.append(f"{at} imports {imported.target}, which is a floor above it")
    return found


def against_cycles(modules: Mapping[str, Module]) -> list[str]:
    """No module can be reached from itself. Imports for types alone do not count: two files may know each other's
    names where only one of them needs the other to run."""
    graph = {
        name: {i.target for i in imports(module, modules) if i.ours and not i.for_types and i.target != name}
        for name, module in modules.items()
    }
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        # graphlib lists a node before those that need it
        return ["a cycle of imports: " + " -> ".join(reversed(error.args[1]))]
    return []


def importers(modules: Mapping[str, Module], foreign: str) -> list[str]:
    """The modules that import the foreign package `foreign`, or something in it."""
    return sorted(
        name
        for name, module in modules.items()
        if any(not i.ours and i.target.split(".")[0] == foreign for i in imports(module, modules))
    )


def worldly_uses(module: Module) -> dict[str, int]:
    """What `module` touches of the world outside, each with its first line.

    A module is named (`time`) unless only something in it is worldly (`asyncio.create_task`). Using a name in an
    annotation alone is no use: `random.Random` may be the type of what is handed in.
    """
    aliases: dict[str, str] = {}  # local name -> full dotted name
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                aliases[alias.asname or alias.name.split(".")[0]] = (
                    alias.name if alias.asname else alias.name.split(".")[0]
                )
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            for alias in node.names:
                aliases[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    found: dict[str, int] = {}
    for node in _outside_annotations(module.tree):
        if isinstance(node, ast.Name | ast.Attribute):
            full = _full_name(node, aliases)
            if full.split(".")[0] in WORLDLY_MODULES and isinstance(node, ast.Name):
                found.setdefault(full.split(".")[0], node.lineno)
            elif full in WORLDLY_NAMES:
                found.setdefault(full, node.lineno)
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name) and node.func.id in WORLDLY_BUILTINS and node.func.id not in aliases:
                found.setdefault(node.func.id, node.lineno)
            elif isinstance(node.func, ast.Attribute) and node.func.attr in WORLDLY_METHODS:
                full = _full_name(node.func, aliases)
                found.setdefault(full if full in WORLDLY_NAMES else f"loop.{node.func.attr}", node.lineno)
    return found


def _full_name(node: ast.expr, aliases: Mapping[str, str]) -> str:
    if isinstance(node, ast.Attribute):
        inner = _full_name(node.value, aliases)
        return f"{inner}.{node.attr}" if inner else ""
    return aliases.get(node.id, "") if isinstance(node, ast.Name) else ""


def _outside_annotations(tree: ast.AST) -> Iterator[ast.AST]:
    for name, value in ast.iter_fields(tree):
        if name in ("annotation", "returns"):
            continue
        for node in value if isinstance(value, list) else [value]:
            if isinstance(node, ast.AST):
                yield node
                yield from _outside_annotations(node)


def against_purity(modules: Mapping[str, Module], shells: Mapping[str, Sequence[str]]) -> list[str]:
    """Only the named shells touch the world, each what it was allowed to; and no permission is left over."""
    found = [f"the table of shells names {name}, which does not exist" for name in shells if name not in modules]
    for name, module in modules.items():
        allowed = set(shells.get(name, ()))
        used = worldly_uses(module)
        found += [f"{name}:{line} uses {what}" for what, line in used.items() if what not in allowed]
        found += [f"{name} is allowed {what} and does not use it" for what in sorted(allowed - set(used))]
    return found


def against_deciding_alone(modules: Mapping[str, Module], decisions: Iterable[str]) -> list[str]:
    """A decision runs on paper: it never waits, and knows no event loop."""
    found = []
    for name in decisions:
        if name not in modules:
            found.append(f"the list of decisions names {name}, which does not exist")
            continue
        module = modules[name]
        if any(i.target.split(".")[0] == "asyncio" for i in imports(module, modules) if not i.ours):
            found.append(f"{name} imports asyncio")
        found += [
            f"{name}:{node.lineno} is asynchronous"
            for node in ast.walk(module.tree)
            if isinstance(node, ast.AsyncFunctionDef | ast.Await | ast.AsyncFor | ast.AsyncWith)
        ]
    return found
