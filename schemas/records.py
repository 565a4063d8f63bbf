"""Frozen dataclasses that mirror `avro/*.avsc` field by field; a test holds the two together.

The schema files carry the documentation of each field; units are in the names (`_ms`: milliseconds, absolute ones UTC).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Trigger:
    """Asks for one unit of work. The topic is the tier. Only `type` must be given."""

    type: str
    tenant: str = "default"
    run_id: str = ""
    key: str = ""
    payload: bytes = b""
    content_type: str = "application/json"
    deadline_ms: int = 0
    firm: bool = False
    not_before_ms: int = 0
    estimate_ms: int = 0
    value: int = 0
    demands: Mapping[str, int] = field(default_factory=dict)
    depends_on: Sequence[str] = ()
    workflow: str = ""
    max_attempts: int = 0
    on_unknown: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dispatch:
    """Orders one attempt at a chosen runner. The tier is in the header laxity-tier."""

    task_id: str
    tenant: str
    run_id: str
    key: str
    type: str
    shard: int
    generation: int
    effect_generation: int = 0
    dispatch_no: int
    attempt: int
    runner: str
    payload: bytes = b""
    content_type: str = "application/json"
    deadline_ms: int
    firm: bool = False
    latest_start_ms: int
    estimate_ms: int = 0
    granted: Mapping[str, int] = field(default_factory=dict)
    granted_ms: int = 0
    on_unknown: str = "park"
    after_unknown: bool = False
    checkpoint: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """One record header, as it was."""

    name: str
    value: bytes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Original:
    """A Kafka record exactly as it was read: bytes are never decoded and encoded again."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[Header] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a runner reports of one dispatch. `kind`: started, progress, succeeded, failed, yielded, unknown, bounced."""

    kind: str
    task_id: str
    generation: int
    dispatch_no: int
    attempt: int = 0
    runner: str = ""
    at_ms: int = 0
    result: bytes | None = None
    content_type: str = "application/json"
    checkpoint: bytes | None = None
    code: str = ""
    message: str = ""
    retryable: bool = False
    retry_after_ms: int = 0
    used: Mapping[str, int] = field(default_factory=dict)
    usage: Mapping[str, int] = field(default_factory=dict)
    original: Original | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """An operator's order. `kind`: cancel, redrive (reprioritise, pause, resume, configuration to come)."""

    kind: str
    command_id: str
    at_ms: int = 0
    operator: str = ""
    reason: str = ""
    tenant: str = ""
    task_id: str = ""
    run_id: str = ""
    generation: int = 0
    original: Original | None = None
    text: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """From one shard to another (internal). `kind`: stray."""

    kind: str
    from_shard: int
    original: Original | None = None
    reread: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Transition:
    """One step of the lifecycle."""

    before: str
    after: str
    reason: str
    at_ms: int
    happened_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskEvent:
    """What happened to one task in one commit. `kind`: transitions, duplicate, conflict, rejected, rehomed, late_completion, refused_command."""

    kind: str
    task_id: str
    tenant: str = ""
    type: str = ""
    run_id: str = ""
    key: str = ""
    tier: str = ""
    shard: int
    batch: int
    at_ms: int
    state: str = ""
    transitions: Sequence[Transition] = ()
    detail: str = ""
    generation: int = 0
    attempt: int = 0
    dispatch_no: int = 0
    deadline_ms: int = 0
    firm: bool = False
    accepted_ms: int = 0
    missed_by_ms: int = 0
    runner: str = ""
    code: str = ""
    message: str = ""
    usage: Mapping[str, int] = field(default_factory=dict)
    cost_micros: int = 0
    result: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageEntry:
    """One sum."""

    tenant: str
    type: str
    tier: str
    unit: str
    quantity: int
    cost_micros: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Resource use and cost of one commit; add each (shard, sequence) once."""

    shard: int
    sequence: int
    at_ms: int
    entries: Sequence[UsageEntry] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class InputRange:
    """Records of one partition that the batch read."""

    topic: str
    partition: int
    first: int
    next: int
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalGrant:
    """A reservation that was granted."""

    reservation_id: str
    runner: str
    partition: int
    granted: Mapping[str, int]
    granted_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalRefusal:
    """A reservation that was refused."""

    reservation_id: str
    reason: str
    resource: str
    retry_ms: int
    rival: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalVerdict:
    """A revoke's answer."""

    reservation_id: str
    verdict: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Journal:
    """What one batch's decisions depended on: with the inputs it replays byte for byte."""

    shard: int
    batch: int
    owner_epoch: int
    now_ms: int
    state_version: int
    config_id: str
    inputs: Sequence[InputRange] = ()
    answered: bool = False
    ledger_sequence: int = 0
    ledger_epoch: str = ""
    grants: Sequence[JournalGrant] = ()
    refusals: Sequence[JournalRefusal] = ()
    verdicts: Sequence[JournalVerdict] = ()
    settled: Sequence[str] = ()
    reaped: Sequence[str] = ()
    woken: Sequence[str] = ()
    held: Sequence[str] = ()
    outcomes_end: int = -1
    skipped: Sequence[str] = ()
    effects_hash: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """A recurring definition. Key: schedule id."""

    schedule_id: str
    cron: str
    zone: str = "UTC"
    tier: str = "normal"
    tenant: str = "default"
    type: str
    payload: bytes = b""
    deadline_after_ms: int = 0
    paused: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Contract:
    """A schema as it was registered: start-up compares the registry with it. Key: fingerprint."""

    fingerprint: str
    subject: str
    registry_id: int
    schema: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StateRow:
    """A row of a state table; `row` is Avro of the table's own schema, without framing."""

    table: str
    row: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptNote:
    """One attempt, for the history of a dead letter."""

    attempt: int
    dispatch_no: int
    runner: str
    started_ms: int
    ended_ms: int
    code: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRow:
    """Table `task`: the small, changing part of a live task. Key: task id."""

    tenant: str
    run_id: str
    key: str
    type: str
    tier: int
    fleet: str
    state: str
    reason: str
    seq: int
    accepted_ms: int
    ready_ms: int = 0
    deadline_ms: int
    firm: bool
    estimate_ms: int
    due_ms: int = 0
    demands: Mapping[str, int]
    digest: bytes
    generation: int = 0
    effect_generation: int = 0
    attempt: int = 0
    max_attempts: int = 1
    on_unknown: str = "park"
    dispatch_no: int = 0
    bounces: int = 0
    runner: str = ""
    partition: int = 0
    granted: Mapping[str, int] = field(default_factory=dict)
    dispatched_ms: int = 0
    started_ms: int = 0
    revoking: str = ""
    unknown_until: int = -1
    after_unknown: bool = False
    checkpoint: bytes | None = None
    usage: Mapping[str, int] = field(default_factory=dict)
    history: Sequence[AttemptNote] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PayloadRow:
    """Table `payload`: the trigger as it was read, never changed. Key: task id."""

    original: Original


@dataclass(frozen=True, slots=True, kw_only=True)
class SettleRow:
    """Table `settle`: a settlement that the ledger has yet to acknowledge. Key: reservation id."""

    used: Mapping[str, int] = field(default_factory=dict)
    unclaimed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """Applied mark of one input partition."""

    topic: str
    topic_id: str
    next: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardRow:
    """Table `shard`: one row per shard."""

    state_version: int
    owner_epoch: int
    batch: int
    now_ms: int
    seq: int
    usage_seq: int
    ledger_epoch: str
    marks: Sequence[Mark] = ()
    waiting: Sequence[int] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRow:
    """Topic `keys`: what became of an idempotency key. Key: task id."""

    digest: bytes
    state: str
    reason: str
    generation: int
    effect_generation: int = 0
    unknown: bool = False
    dispatch_no: int
    ended_ms: int
    result_ref: str = ""
