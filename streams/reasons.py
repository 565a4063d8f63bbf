"""The catalogue of typed reasons: the log, the metric label, the event, the journal and the command line share these words."""

from __future__ import annotations

from enum import StrEnum


class Reason(StrEnum):
    """Why something did not happen, or ended as it did. A value never changes its meaning; new ones are added."""

    # Refusals of the ledger
    RECOVERING = "recovering"  # it lost its memory: not all shards have reported yet
    GONE = "gone"  # the reservation was ended before: ask under the next dispatch number
    UNKNOWN_RESOURCE = "unknown_resource"  # no such resource, or a key where there is none to give
    OVER_CAPACITY = "over_capacity"  # more than the resource can ever hold
    SLOTS_FULL = "slots_full"
    KEY_BUSY = "key_busy"  # the keyed slot of this business entity is taken
    RATE_REQUESTS = "rate_requests"  # requests of the bucket are used up
    RATE_TOKENS = "rate_tokens"  # LLM tokens of the bucket are used up
    CALLS_FIRST = "calls_first"  # a running task waits for this bucket
    FLEET_FULL = "fleet_full"  # no live runner has credit left
    NO_RUNNER = "no_runner"  # no runner of the fleet is alive
    CANCELLED = "cancelled"  # the task was ordered to stop

    # Steps of the lifecycle
    ACCEPTED = "accepted"
    NOT_BEFORE = "not_before"  # its release time is to come
    RELEASED = "released"  # its release time has come
    GRANTED = "granted"
    HELD = "held"  # granted in a batch that did not commit, used now out of order
    STARTED = "started"
    SUCCEEDED = "succeeded"
    RETRY = "retry"  # backing off after a failure, or tried again after it
    YIELDED = "yielded"
    BOUNCED = "bounced"  # for no reason that we know
    NO_AGENT = "no_agent"  # the runner knows no agent of this type
    LATE = "late"  # too late to begin, for a firm task
    DRAINING = "draining"  # the runner ends
    REDELIVERED = "redelivered"  # read again after a rebalance or a restart
    OTHER_RUNNER = "other_runner"  # its partition moved: it was meant for another runner
    FENCED = "fenced"  # the ledger says that it is another runner's
    UNAVAILABLE = "unavailable"  # the ledger did not answer the runner in time
    NEVER_STARTED = "never_started"  # the lease lapsed before any start: no attempt spent
    LEASE_LAPSED = "lease_lapsed"
    OUTCOME_UNKNOWN = "outcome_unknown"
    REDRIVEN = "redriven"

    # Ends
    LATEST_START_PASSED = "latest_start_passed"  # it can no longer finish before its firm deadline
    ATTEMPTS_EXHAUSTED = "attempts_exhausted"
    DEADLINE_EXHAUSTED = "deadline_exhausted"  # no time is left for another attempt
    NOT_RETRYABLE = "not_retryable"
    POISON = "poison"  # the agent, or nobody, can read it

    # Refusals at intake
    INVALID = "invalid"
    UNREADABLE = "unreadable"  # nobody can get at the bytes: rotten, or packed as no client unpacks it
    IDEMPOTENCY_CONFLICT = "idempotency_conflict"  # the key is taken by another type or payload
    NO_FLEET = "no_fleet"  # the type's fleet is not configured


BOUNCES = frozenset(
    {
        Reason.BOUNCED,
        Reason.NO_AGENT,
        Reason.LATE,
        Reason.DRAINING,
        Reason.REDELIVERED,
        Reason.OTHER_RUNNER,
        Reason.GONE,
        Reason.FENCED,
        Reason.CANCELLED,
        Reason.RECOVERING,
        Reason.UNAVAILABLE,
    }
)
"""Why a runner did not take up a dispatch."""
