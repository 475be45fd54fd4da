"""The arguments and the result of one handler: checked and encoded at the caller, decoded at the host.

Arguments travel as a MessagePack map by parameter name. The caller leaves defaults out and the host fills them in, so
a default belongs to the code that runs. Both ends check: the caller to complain where the mistake is, the host because
the other end may be anything. Everything is compiled when the class is defined; a call costs about a microsecond.
"""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable
from typing import Any, Final

import msgspec

from .errors import AtollError, InvalidCommand, Rejected
from .schema import SCALARS, check_type, resolve, struct_default, type_name

_encode = msgspec.msgpack.Encoder().encode
_as_tuple: Final = msgspec.structs.astuple
_NO_ARGUMENTS = _encode({})
_NONE = _encode(None)
_PLACED = re.compile(r"(?s)(.*) - at `(.*)`")
_MISSING = re.compile(r"Object missing required field `(.*)`")
_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`")


class Handler:
    """One command or query of one kind, compiled."""

    __slots__ = (
        "_decode_struct",
        "_exact",
        "_names",
        "_positional",
        "_quick_count",
        "_reply_decode",
        "_reply_exact",
        "_reply_type",
        "_required",
        "call",
        "call_batch",
        "is_async",
        "is_batched",
        "is_query",
        "label",
        "name",
    )

    def __init__(
        self, cls: type, name: str, function: Callable[..., Any], *, is_query: bool, is_batched: bool = False
    ) -> None:
        self.name = name
        self.label = f"{cls.__name__}.{name}"
        """For messages: `Account.deposit`."""
        self.is_query = is_query
        self.is_batched = is_batched
        """It takes a list of what each caller gave, to a list of results."""
        self.is_async = inspect.iscoroutinefunction(function)
        parameters = self._parameters(function)
        if is_batched and (
            self.is_async or len(parameters) != 1 or parameters[0].default is not inspect.Parameter.empty
        ):
            raise TypeError(
                f"{self.label}: @atoll.batched is for a plain def with one parameter, a list, and no default"
            )
        self._names = tuple(parameter.name for parameter in parameters)
        by_keyword = tuple(parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY)
        self._positional = self._names[: len(self._names) - len(by_keyword)]
        self._required = tuple(parameter.name for parameter in parameters if parameter.default is parameter.empty)
        self._quick_count = -1 if by_keyword else len(self._names)
        self._compile_arguments(function, parameters)
        self._compile_reply(function)
        self.call: Callable[..., Any] = _with_keywords(function, len(self._positional), by_keyword)
        """Takes the entity and the values of `decode_arguments`."""
        self.call_batch: Callable[[Any, list[Any]], list[Any]] = self.call
        """Of a batched one: takes the entity and the values of many."""
        if is_batched:
            self.call = _alone(self.call_batch, self.label)

    # ---- compiling -------------------------------------------------------------------------------------------------

    def _parameters(self, function: Callable[..., Any]) -> list[inspect.Parameter]:
        parameters = list(inspect.signature(function).parameters.values())
        if not parameters or parameters[0].kind not in (
            inspect.Parameter.POSITIONAL_ONLY,
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
        ):
            raise TypeError(f"{self.label} is a method: its first parameter is self")
        for parameter in parameters[1:]:
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                raise TypeError(f"{self.label}: {parameter} cannot be checked; name each parameter, or take a list")
            if parameter.annotation is parameter.empty:
                raise TypeError(f"{self.label}: annotate the parameter {parameter.name}; its type is what is checked")
        return parameters[1:]

    def _compile_arguments(self, function: Callable[..., Any], parameters: list[inspect.Parameter]) -> None:
        fields: list[Any] = []
        exact: list[Any] = []
        for parameter in parameters:
            where = f"{self.label}, parameter {parameter.name}"
            wanted = self._of_one(_resolved(function, parameter.annotation, where), where)
            check_type(wanted, where)
            exact.append(wanted if wanted in SCALARS else _Never)
            default = () if parameter.default is parameter.empty else (struct_default(parameter.default),)
            fields.append((parameter.name, wanted, *default))
        struct = msgspec.defstruct(
            f"{self.name}_arguments", fields, kw_only=True, forbid_unknown_fields=True, gc=False, module=__name__
        )
        self._exact = tuple(exact)
        self._decode_struct: Callable[[bytes], Any] = msgspec.msgpack.Decoder(struct).decode

    def _compile_reply(self, function: Callable[..., Any]) -> None:
        annotation = inspect.signature(function).return_annotation
        where = f"{self.label}, its result"
        wanted = Any if annotation is inspect.Signature.empty else _resolved(function, annotation, where)
        wanted = self._of_one(wanted, where)
        check_type(wanted, where)
        self._reply_type = wanted
        self._reply_exact: Any = wanted if wanted in SCALARS else _Never
        self._reply_decode: Callable[[bytes], Any] = msgspec.msgpack.Decoder(wanted).decode

    def _of_one(self, wanted: Any, where: str) -> Any:
        """What one caller gives or gets, where the handler has a list of it."""
        if not self.is_batched:
            return wanted
        if typing.get_origin(wanted) is not list:
            raise TypeError(f"{where}: @atoll.batched takes a list and returns a list, not {type_name(wanted)}")
        (one,) = typing.get_args(wanted)
        return one

    # ---- at the caller ---------------------------------------------------------------------------------------------

    def encode_arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
        """The arguments as a MessagePack map by name. Raises `InvalidCommand` naming the misfit."""
        if not kwargs and len(args) == self._quick_count:
            for value, exact in zip(args, self._exact, strict=True):
                if type(value) is not exact:
                    break
            else:
                try:
                    return _encode(dict(zip(self._names, args, strict=True)))
                except (OverflowError, UnicodeEncodeError):
                    pass  # too large an integer, or no Unicode: the long way names the parameter
        return self._encode_checked(self._bound(args, kwargs))

    def _bound(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        if len(args) > len(self._positional):
            raise InvalidCommand(f"{self.label} takes {self._described()}; {len(args)} positional arguments were given")
        values = dict(zip(self._positional, args, strict=False))
        for name, value in kwargs.items():
            if name in values:
                raise InvalidCommand(f"{self.label}: the argument {name} is given twice")
            if name not in self._names:
                raise InvalidCommand(f"{self.label} has no argument {name}; it takes {self._described()}")
            values[name] = value
        for name in self._required:
            if name not in values:
                raise InvalidCommand(f"{self.label}: the argument {name} is missing; it takes {self._described()}")
        return values

    def _encode_checked(self, values: dict[str, Any]) -> bytes:
        try:
            arguments = _encode(values)
        except Exception as problem:  # noqa: BLE001 - an object of the caller's own may raise anything
            raise InvalidCommand(f"{self.label}: {_blame(values, problem)}") from None
        try:
            self._decode_struct(arguments)
        except Exception as problem:  # noqa: BLE001 - as above
            raise InvalidCommand(self.complaint(problem)) from None
        return arguments

    def decode_reply(self, payload: bytes) -> Any:
        """The result. The command ran; a result that does not fit says that both ends run different code."""
        try:
            return self._reply_decode(payload)
        except Exception as problem:  # noqa: BLE001 - a user's type may raise anything
            raise AtollError(
                f"{self.label} ran, but its result is not {type_name(self._reply_type)} as this process knows it "
                f"({problem}): caller and host run different code"
            ) from None

    # ---- at the host -----------------------------------------------------------------------------------------------

    def decode_arguments(self, arguments: bytes) -> tuple[Any, ...]:
        """The values of all parameters, in order. Raises anything; `complaint` puts it into words."""
        if arguments == _NO_ARGUMENTS and not self._names:
            return ()
        return _as_tuple(self._decode_struct(arguments))

    def misfit(self, arguments: bytes) -> str | None:
        """What is wrong with the arguments, None when they fit."""
        try:
            self.decode_arguments(arguments)
        except Exception as problem:  # noqa: BLE001 - whatever a user's type raises, the arguments do not fit
            return self.complaint(problem)
        return None

    def complaint(self, problem: BaseException) -> str:
        """What is wrong with the arguments, naming the parameter."""
        text = str(problem)
        if placed := _PLACED.fullmatch(text):
            what, path = placed.groups()
            if path.startswith("$."):
                return f"{self.label}: argument {path[2:]}: {what}"
        elif missing := _MISSING.fullmatch(text):
            return f"{self.label}: the argument {missing[1]} is missing; it takes {self._described()}"
        elif unknown := _UNKNOWN.fullmatch(text):
            return f"{self.label} has no argument {unknown[1]}; it takes {self._described()}"
        return f"{self.label}: the arguments do not decode: {text}"

    def encode_reply(self, value: Any) -> bytes:
        """The result as bytes. Raises `ValueError` that says why it cannot be sent."""
        if value is None and self._reply_exact is type(None):
            return _NONE
        try:
            payload = _encode(value)
            if type(value) is not self._reply_exact and self._reply_type is not Any:
                self._reply_decode(payload)  # what the caller could not read must not be committed
        except Exception as problem:  # noqa: BLE001 - an object of the user's own may raise anything
            if inspect.iscoroutine(value):
                value.close()
                raise ValueError("returned a coroutine: await it, in an async def") from None
            raise ValueError(f"returned what is not {type_name(self._reply_type)}: {problem}") from None
        return payload

    def _described(self) -> str:
        return f"({', '.join(self._names)})"

    def __repr__(self) -> str:
        return f"<{'query' if self.is_query else 'command'} {self.label}{self._described()}>"


class _Never:
    """The type of no value: a parameter that has no quick check."""


def _resolved(function: Callable[..., Any], annotation: Any, where: str) -> Any:
    return resolve(annotation, function.__globals__, function.__module__, where)


def _with_keywords(function: Callable[..., Any], positional: int, by_keyword: tuple[str, ...]) -> Callable[..., Any]:
    """`function`, taking its keyword-only parameters by position behind the others."""
    if not by_keyword:
        return function

    def call(entity: Any, *values: Any) -> Any:
        return function(entity, *values[:positional], **dict(zip(by_keyword, values[positional:], strict=True)))

    return call


def _alone(call_batch: Callable[[Any, list[Any]], list[Any]], label: str) -> Callable[..., Any]:
    """A batch of one."""

    def call(entity: Any, value: Any) -> Any:
        results = call_batch(entity, [value])
        if not isinstance(results, list) or len(results) != 1:
            raise TypeError(f"{label} returned {results!r} for a list of one: return a list with a result for each")
        if isinstance(results[0], Rejected):
            raise results[0]
        return results[0]

    return call


def _blame(values: dict[str, Any], problem: Exception) -> str:
    """Which of the values it was that could not be encoded."""
    for name, value in values.items():
        try:
            _encode(value)
        except Exception as its_problem:  # noqa: BLE001 - as at the caller
            return f"argument {name}: {its_problem}"
    return str(problem)
