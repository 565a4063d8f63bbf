"""`@agent`: a function that does the work of one task type.

    @agent("summarise", on_unknown="reconcile")
    async def summarise(ctx: AgentContext, document: Document) -> Summary: ...

    @summarise.reconcile
    async def ask_provider(ctx: AgentContext, document: Document) -> Summary | NotApplied: ...

What is declared wrongly is an AgentDefinitionError at import time that names the agent.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any, Generic, NoReturn, ParamSpec, TypeVar, cast, get_args, get_type_hints

from laxity.consumers.context import AgentContext
from laxity.consumers.errors import AgentDefinitionError
from laxity.consumers.payloads import Decode, Encode, decoder_for, encoder_for
from laxity.schemas.config import DEFAULT_FLEET, OnUnknown
from laxity.schemas.limits import FLEET_CHARS_MAX, FLEET_PATTERN, NAME_CHARS_MAX, NAME_PATTERN

P = ParamSpec("P")
R = TypeVar("R")
ON_UNKNOWN: tuple[str, ...] = get_args(OnUnknown)
_CONTEXT_ONLY = 1
_CONTEXT_AND_PAYLOAD = 2


class Agent(Generic[P, R]):
    """One task type's work: still callable as the plain function it was, so that it can be tested without a runner."""

    def __init__(
        self, function: Callable[P, R], *, type_: str, fleet: str, on_unknown: OnUnknown | None
    ) -> None:
        self.function = function
        self.type = type_
        self.fleet = fleet
        self.on_unknown = on_unknown
        self.reconciler: Callable[..., Any] | None = None
        self.name = f"{function.__module__}.{function.__qualname__}"
        self.__doc__ = function.__doc__
        hints = _hints(function, self._wrong)
        self.takes_payload = _takes_payload(function, hints, self._wrong)
        self.decode: Decode = self._payload_decoder(hints)
        self.encode: Encode = self._result_encoder(hints)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """The plain function."""
        return self.function(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<agent {self.type!r} of fleet {self.fleet!r}: {self.name}>"

    def reconcile(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Decorator: asked first when the attempt before ended unknown. It returns the result, or NotApplied and the agent runs."""
        if self.reconciler is not None:
            self._wrong("has two reconcile functions; one can be asked")
        hints = _hints(function, self._wrong)
        if _takes_payload(function, hints, self._wrong) != self.takes_payload:
            self._wrong(f"reconcile function {function.__qualname__} must take the parameters of the agent")
        self.reconciler = function
        return function

    def check(self) -> None:
        """What can only be seen once the module is complete. AgentDefinitionError if it is not."""
        if self.on_unknown == "reconcile" and self.reconciler is None:
            name = self.function.__name__
            self._wrong(
                f'says on_unknown="reconcile" but nobody can be asked; declare a function with @{name}.reconcile'
            )

    def _payload_decoder(self, hints: dict[str, Any]) -> Decode:
        if not self.takes_payload:
            return decoder_for(bytes)
        parameter = _parameters(self.function)[1]
        try:
            return decoder_for(hints.get(parameter.name, Any))
        except TypeError as error:
            self._wrong(f"payload {parameter.name}: {error}", error)

    def _result_encoder(self, hints: dict[str, Any]) -> Encode:
        if "return" not in hints:
            self._wrong("has no return annotation; it is the contract of the result (-> None for none)")
        try:
            return encoder_for(hints["return"])
        except TypeError as error:
            self._wrong(f"result: {error}", error)

    def _wrong(self, text: str, cause: Exception | None = None) -> NoReturn:
        raise AgentDefinitionError(f"agent {self.type!r} ({self.name}): {text}") from cause


def agent(
    type: str,  # noqa: A002 - the word of the contract
    *,
    fleet: str = DEFAULT_FLEET,
    on_unknown: OnUnknown | None = None,
) -> Callable[[Callable[P, R]], Agent[P, R]]:
    """Declare the agent of a task type. `on_unknown`: what laxity.toml must say of the type; None leaves it to the configuration.

    Async functions run on the runner's loop, plain functions in threads. They take the context and, if they want, the payload.
    """
    if not isinstance(type, str):
        raise AgentDefinitionError(f'@agent needs the task type: write @agent("{_name_of(type)}")')
    _matches("type", type, type, NAME_PATTERN, NAME_CHARS_MAX)
    _matches("fleet", fleet, type, FLEET_PATTERN, FLEET_CHARS_MAX)
    if on_unknown is not None and on_unknown not in ON_UNKNOWN:
        raise AgentDefinitionError(
            f"agent {type!r}: on_unknown is {on_unknown!r}, one of {', '.join(ON_UNKNOWN)}"
        )

    def declare(function: Callable[P, R]) -> Agent[P, R]:
        return Agent(function, type_=type, fleet=fleet, on_unknown=on_unknown)

    return declare


def _matches(field: str, value: str, type_: str, pattern: str, chars_max: int) -> None:
    if not isinstance(value, str) or len(value) > chars_max or not re.fullmatch(pattern, value):
        raise AgentDefinitionError(
            f"agent {str(type_)[:chars_max]!r}: {field} is {str(value)[:chars_max]!r}, "
            f"{pattern} of at most {chars_max} characters"
        )


def _name_of(thing: object) -> str:
    return str(getattr(thing, "__name__", "TYPE"))


Wrong = Callable[..., NoReturn]


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    return list(inspect.signature(function).parameters.values())


def _hints(function: Callable[..., Any], wrong: Wrong) -> dict[str, Any]:
    if not inspect.isroutine(function):
        wrong(f"is a {type(function).__name__}; decorate a function")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        wrong(f"{function.__qualname__} is a generator; an agent returns one result (return, not yield)")
    try:
        return get_type_hints(function, include_extras=True)
    except (NameError, TypeError, SyntaxError) as error:
        wrong(f"an annotation of {function.__qualname__} cannot be resolved: {error}", error)


def _takes_payload(function: Callable[..., Any], hints: dict[str, Any], wrong: Wrong) -> bool:
    """The parameters are (ctx) or (ctx, payload), more only with defaults."""
    parameters = _parameters(function)
    positional = [p for p in parameters if p.kind in {p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD}]
    needed = [
        p for p in parameters if p.default is p.empty and p.kind not in {p.VAR_POSITIONAL, p.VAR_KEYWORD}
    ]
    if not positional or len(needed) > _CONTEXT_AND_PAYLOAD or any(p not in positional for p in needed):
        listed = ", ".join(p.name for p in parameters) or "nothing"
        wrong(f"{function.__qualname__} takes {listed}; it must take (ctx) or (ctx, payload)")
    context = hints.get(positional[0].name, AgentContext)
    if context is not AgentContext:
        wrong(f"{function.__qualname__}: the first parameter is the AgentContext, not {context!r}")
    return max(len(needed), _CONTEXT_ONLY) == _CONTEXT_AND_PAYLOAD


AnyAgent = Agent[..., Any]


def as_agent(value: object) -> AnyAgent | None:
    """`value` if it is an agent."""
    return cast("AnyAgent", value) if isinstance(value, Agent) else None
