"""Errors around agents.

Ending           what an agent raises to end its attempt on purpose
├── Retry            failed; another attempt may help
├── Fail             failed; no other attempt can help
├── Yield            stopped at a checkpoint because it was asked to
└── OutcomeUnknown   nobody can say whether the effect happened
NotApplied       what a reconcile function raises or returns: the effect did not happen
AgentError
├── AgentDefinitionError   an agent is declared wrongly: at import time
├── AgentLoadError         `module[:attr]` names nothing usable
├── RunnerConfigError      the runner's settings contradict each other or the configuration
├── CallRefused            a provider call was not granted in time
├── LeaseLost              the right to start another step is gone
└── NotWritten             an outcome did not become durable
"""

from __future__ import annotations

from collections.abc import Mapping


class Ending(Exception):  # noqa: N818 - it ends an attempt, it is no accident
    """Root of what an agent raises on purpose."""


class Retry(Ending):
    """Failed, and another attempt may help; not earlier than `retry_after_ms` from now (0: no wish)."""

    def __init__(self, code: str, message: str = "", retry_after_ms: int = 0) -> None:
        super().__init__(message or code)
        if not isinstance(code, str) or not code:
            raise ValueError(
                f"Retry: code is {code!r}; name the kind of failure in a word, e.g. 'rate_limited'"
            )
        if retry_after_ms < 0:
            raise ValueError(f"Retry: retry_after_ms is {retry_after_ms}, at least 0")
        self.code = code
        self.message = message
        self.retry_after_ms = retry_after_ms


class Fail(Ending):
    """Failed, and no other attempt can help."""

    def __init__(self, code: str, message: str = "") -> None:
        super().__init__(message or code)
        if not isinstance(code, str) or not code:
            raise ValueError(f"Fail: code is {code!r}; name the kind of failure in a word, e.g. 'bad_input'")
        self.code = code
        self.message = message


class Yield(Ending):
    """Stopped because `ctx.should_yield()` said so. `checkpoint` comes back with the next dispatch; None keeps the last one."""

    def __init__(self, checkpoint: bytes | None = None) -> None:
        super().__init__("yielded")
        self.checkpoint = checkpoint


class OutcomeUnknown(Ending):
    """Nobody can say whether the effect happened: `on_unknown` of the task decides what follows."""

    def __init__(self, message: str = "") -> None:
        super().__init__(message)
        self.message = message


class NotApplied(Exception):  # noqa: N818 - an answer, not an accident
    """A reconcile function's answer: the effect of the earlier attempt did not happen, so the agent may run. Returned or raised."""


class AgentError(Exception):
    """Root of this package's own errors."""


class AgentDefinitionError(AgentError, TypeError):
    """An agent is declared wrongly; the text names the agent, what is wrong and what to write."""


class AgentLoadError(AgentError):
    """`module[:attr]` names nothing usable."""


class RunnerConfigError(AgentError):
    """The runner's settings contradict each other or the configuration; one line, with field, value and limit."""


class CallRefused(AgentError):  # noqa: N818 - it says what happened
    """A provider call was not granted before the time was up. Raised out of an agent it is a retryable failure."""

    def __init__(self, *, resource: str, amount: int, reason: str) -> None:
        super().__init__(f"{amount} of {resource} were not granted: {reason}")
        self.resource = resource
        self.reason = reason


class LeaseLost(AgentError):  # noqa: N818 - it says what happened
    """The lease ended or its renewal is in doubt: this attempt may not start another step."""


class NotWritten(AgentError):  # noqa: N818 - it says what happened
    """An outcome did not become durable. `permanent`: the same record will never be taken (too large, not allowed)."""

    def __init__(self, text: str, *, permanent: bool = False) -> None:
        super().__init__(text)
        self.permanent = permanent


def code_of(error: BaseException) -> str:
    """The code of an unforeseen exception: its class."""
    return type(error).__name__


def counts_of(field: str, counts: Mapping[str, int]) -> dict[str, int]:
    """A copy of `counts`. ValueError names the field and the count that is no integer from 0 up."""
    for unit, quantity in counts.items():
        if isinstance(quantity, bool) or not isinstance(quantity, int) or quantity < 0:
            raise ValueError(f"{field}: {unit} is {quantity!r}, an integer from 0 up")
    return dict(counts)
