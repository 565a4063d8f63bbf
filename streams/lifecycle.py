"""The lifecycle of a task as one table; docs/lifecycle.md is generated from it (model: h11's state machine)."""

from __future__ import annotations

from enum import StrEnum

from laxity.streams.errors import IllegalTransitionError


class State(StrEnum):
    """Where a task is. Grant and dispatch are one batch, so there is no state between READY and DISPATCHED."""

    NEW = ""
    WAITING = "WAITING"
    DELAYED = "DELAYED"
    READY = "READY"
    DISPATCHED = "DISPATCHED"
    RUNNING = "RUNNING"
    UNKNOWN = "UNKNOWN"
    SUCCEEDED = "SUCCEEDED"
    DEAD = "DEAD"
    EXPIRED = "EXPIRED"
    CANCELLED = "CANCELLED"


class Cause(StrEnum):
    """What moves a task."""

    ACCEPT = "accept"
    DELAY = "delay"
    RELEASE = "release"
    GRANT = "grant"
    START = "start"
    SUCCEED = "succeed"
    RETRY = "retry"
    RETURN = "return"  # back to ready: bounced, yielded, or surely never started
    LOSE = "lose"  # the lease lapsed, or the runner does not know what happened
    DIE = "die"
    EXPIRE = "expire"
    CANCEL = "cancel"


TERMINAL = frozenset({State.SUCCEEDED, State.DEAD, State.EXPIRED, State.CANCELLED})
LEASED = frozenset({State.DISPATCHED, State.RUNNING, State.UNKNOWN})
"""A reservation in the ledger stands or stood behind the task."""

TRANSITIONS: dict[tuple[State, Cause], State] = {
    (State.NEW, Cause.ACCEPT): State.READY,
    (State.NEW, Cause.DELAY): State.DELAYED,
    (State.NEW, Cause.EXPIRE): State.EXPIRED,
    (State.WAITING, Cause.RELEASE): State.READY,
    (State.WAITING, Cause.EXPIRE): State.EXPIRED,
    (State.WAITING, Cause.CANCEL): State.CANCELLED,
    (State.DELAYED, Cause.RELEASE): State.READY,
    (State.DELAYED, Cause.EXPIRE): State.EXPIRED,
    (State.DELAYED, Cause.CANCEL): State.CANCELLED,
    (State.READY, Cause.GRANT): State.DISPATCHED,
    (State.READY, Cause.EXPIRE): State.EXPIRED,
    (State.READY, Cause.CANCEL): State.CANCELLED,
    (State.DISPATCHED, Cause.START): State.RUNNING,
    (State.DISPATCHED, Cause.SUCCEED): State.SUCCEEDED,
    (State.DISPATCHED, Cause.RETRY): State.DELAYED,
    (State.DISPATCHED, Cause.RETURN): State.READY,
    (State.DISPATCHED, Cause.DELAY): State.DELAYED,
    (State.DISPATCHED, Cause.LOSE): State.UNKNOWN,
    (State.DISPATCHED, Cause.DIE): State.DEAD,
    (State.DISPATCHED, Cause.CANCEL): State.CANCELLED,
    (State.RUNNING, Cause.SUCCEED): State.SUCCEEDED,
    (State.RUNNING, Cause.RETRY): State.DELAYED,
    (State.RUNNING, Cause.RETURN): State.READY,
    (State.RUNNING, Cause.LOSE): State.UNKNOWN,
    (State.RUNNING, Cause.DIE): State.DEAD,
    (State.RUNNING, Cause.CANCEL): State.CANCELLED,
    (State.UNKNOWN, Cause.START): State.UNKNOWN,
    (State.UNKNOWN, Cause.SUCCEED): State.SUCCEEDED,
    (State.UNKNOWN, Cause.RETRY): State.DELAYED,
    (State.UNKNOWN, Cause.RETURN): State.READY,
    (State.UNKNOWN, Cause.LOSE): State.UNKNOWN,
    (State.UNKNOWN, Cause.DIE): State.DEAD,
    (State.UNKNOWN, Cause.CANCEL): State.CANCELLED,
}


def next_state(before: str, cause: Cause) -> State:
    """The state after `cause`. Raises IllegalTransitionError where the table has no such step."""
    try:
        return TRANSITIONS[State(before), cause]
    except KeyError:
        raise IllegalTransitionError(before=before, cause=cause) from None
