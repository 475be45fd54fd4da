"""The decorators of an entity class: `command`, `query` and `apply`, used bare.

They only mark. What a mark means is worked out when the whole class is there (kind.py). `Command` and `Query` are what
type checkers see on a reference: `alice.deposit(10)` is a coroutine of the handler's result, `alice.deposit.tell(10)`
exists for commands only. At run time a reference has sendable ones of its own (reference.py); the ones here stand in
the class, are values that name their handler (`context.schedule` takes them), and refuse to be called: inside an
entity, shared logic belongs in a plain method.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, Generic, Literal, NoReturn, ParamSpec, TypeVar, overload

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
PriorityName = Literal["normal", "interactive", "background"]
_Method = TypeVar("_Method", bound=Callable[..., None])


class Command(Generic[P, R]):
    """A command of an entity class. On a reference it is sent by calling it; see `tell` and `using`."""

    __wrapped__: Callable[..., Any]

    def __init__(self, function: Callable[..., Any]) -> None:
        _adopt(self, function)

    def __set_name__(self, owner: type, name: str) -> None:
        self.__name__ = name
        self.__qualname__ = f"{owner.__qualname__}.{name}"

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]:
        """Ask: the result, after the command's effects are committed. Raises the `AtollError` that tells its fate."""
        _refuse_call(self.__qualname__)

    def tell(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, None]:
        """Return once the command is durably accepted: it then takes effect exactly once, whoever dies, and its result
        goes nowhere.

        Neither does a refusal. While its handler fails it is tried again, with growing pauses; after
        `tell_attempts_max` runs, and at once when it is `Rejected`, it is a dead letter, to be looked at and replayed.
        What is raised here says that it was not accepted (`InvalidCommand`, `NotExecuted`), or perhaps not
        (`OutcomeUnknown`).
        """
        _refuse_call(self.__qualname__)

    def using(
        self,
        *,
        command_id: str | None = None,
        timeout: float | None = None,
        fail_fast: bool | None = None,
        priority: PriorityName | None = None,
    ) -> Command[P, R]:
        """The same command, sent with other options.

        `command_id`: idempotency key, so that a repeat of it returns the recorded reply; `timeout`: seconds until its
        deadline; `fail_fast`: at a full queue raise `Overloaded` at once instead of waiting; `priority`: of 21 turns at
        a busy host 16 are for interactive, 4 for normal and 1 for background commands. What a handler asks has the
        priority of the command that it runs. Commands to one entity run in the order in which they arrive all the same.
        """
        _refuse_call(self.__qualname__)

    def __repr__(self) -> str:
        return f"<command {self.__qualname__}>"


class BatchedCommand(Command[P, R]):
    """A command whose handler takes many of them in one turn."""


class Query(Generic[P, R]):
    """A query of an entity class. On a reference it is sent by calling it. It never writes, and has no `tell`."""

    __wrapped__: Callable[..., Any]

    def __init__(self, function: Callable[..., Any]) -> None:
        _adopt(self, function)

    def __set_name__(self, owner: type, name: str) -> None:
        self.__name__ = name
        self.__qualname__ = f"{owner.__qualname__}.{name}"

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]:
        """Ask: the result, after all that it saw is committed. Raises the `AtollError` that tells its fate."""
        _refuse_call(self.__qualname__)

    def using(
        self, *, timeout: float | None = None, fail_fast: bool | None = None, priority: PriorityName | None = None
    ) -> Query[P, R]:
        """The same query, sent with other options: see `Command.using`."""
        _refuse_call(self.__qualname__)

    def __repr__(self) -> str:
        return f"<query {self.__qualname__}>"


def _adopt(mark: Any, function: Callable[..., Any]) -> None:
    """Let the mark look like its function, also to `inspect.signature` and documentation tools."""
    kind = type(mark).__name__.lower()
    if not inspect.isfunction(function):
        raise TypeError(f"@atoll.{kind} is used bare, right above a def or async def; it got {function!r}")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise TypeError(f"@atoll.{kind} {function.__qualname__}: a handler returns its result, it cannot yield")
    mark.__wrapped__ = function
    mark.__name__ = function.__name__
    mark.__qualname__ = function.__qualname__
    mark.__module__ = function.__module__
    mark.__doc__ = function.__doc__
    mark.__isabstractmethod__ = getattr(function, "__isabstractmethod__", False)


def _refuse_call(name: str) -> NoReturn:
    raise TypeError(
        f"{name} is a handler and cannot be called inside an entity or on its class: move what handlers share into a "
        f"plain method and call that; from outside, call it on a reference"
    )


@overload
def command(function: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]]) -> Command[P, R]: ...
@overload
def command(function: Callable[Concatenate[Any, P], R]) -> Command[P, R]: ...
def command(function: Callable[..., Any]) -> Command[..., Any]:
    """Mark a method (`def` or `async def`) as a command: it may change state, and runs exactly once."""
    return Command(function)


@overload
def query(function: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]]) -> Query[P, R]: ...
@overload
def query(function: Callable[Concatenate[Any, P], R]) -> Query[P, R]: ...
def query(function: Callable[..., Any]) -> Query[..., Any]:
    """Mark a method (`def` or `async def`) as a query: it reads, and a change that it made is undone and refused."""
    return Query(function)


def batched(function: Callable[[Any, list[T]], list[R]]) -> Command[[T], R]:
    """Mark a method (a plain `def`) as a command that takes many in one turn: a list of arguments to a list of results.

        @atoll.batched
        def add(self, amounts: list[int]) -> list[int]:
            results = []
            for amount in amounts:
                self.balance += amount
                results.append(self.balance)
            return results

    Callers send one each, as any command: `await account.add(5)`. What waits in the mailbox next to each other comes
    together, in order, from whichever callers; the state is encoded and committed once for all of it, and each caller
    gets its result exactly once. A result that is a `Rejected` is raised at its caller, who must have had no effect.
    When the handler raises, nothing is kept and each is run alone, so that one caller's mistake is not the others'.
    """
    return BatchedCommand(function)


def apply(method: _Method) -> _Method:
    """Mark `def _name(self, event: SomeEvent)` as what changes state for that event: the only place that may.

    It runs when the event is emitted and again whenever state is rebuilt, so it must depend on state and event alone.
    The annotation may be a union of events.
    """
    if not inspect.isfunction(method) or inspect.iscoroutinefunction(method):
        raise TypeError(f"@atoll.apply is used bare, right above a def (not async: it is replayed); it got {method!r}")
    method.__dict__[APPLIES] = True
    return method


APPLIES = "__atoll_apply__"
"""The mark that `apply` leaves on its method."""
