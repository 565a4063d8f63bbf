"""What a runner reports, held to the limits of the contract: one wrong number must not stop a shard, nor lose an outcome."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from laxity.schemas.limits import (
    CHECKPOINT_BYTES_MAX,
    NAME_CHARS_MAX,
    QUANTITY_MAX,
    RESOURCE_CHARS_MAX,
    RESOURCE_KEY_BYTES_MAX,
)
from laxity.schemas.records import Outcome
from laxity.streams.ledger.limits import USED_MAX
from laxity.streams.ledger.vetting import NAME_BYTES_MAX
from laxity.streams.letters import MESSAGE_CHARS_MAX

KINDS = frozenset({"started", "progress", "succeeded", "failed", "yielded", "unknown", "bounced"})
TASK_ID_CHARS_MAX = 64  # ours have 32
_COUNT_NAME_CHARS_MAX = RESOURCE_CHARS_MAX + len(":") + RESOURCE_KEY_BYTES_MAX


def vetted(outcome: Outcome) -> tuple[Outcome | None, str]:
    """The sound part of an outcome, and what was wrong with the rest; None: nobody can tell what it means.

    Texts are cut silently (a stack trace is long); counts and checkpoints out of range are left out and told.
    """
    if outcome.kind not in KINDS:
        return None, f"kind {outcome.kind[:NAME_CHARS_MAX]!r} is none of {', '.join(sorted(KINDS))}"
    if len(outcome.task_id) > TASK_ID_CHARS_MAX:
        return None, f"task_id has {len(outcome.task_id)} characters, limit {TASK_ID_CHARS_MAX}"
    problems = [*_count_problems("used", outcome.used), *_count_problems("usage", outcome.usage)]
    checkpoint = outcome.checkpoint
    if checkpoint is not None and len(checkpoint) > CHECKPOINT_BYTES_MAX:
        problems.append(f"checkpoint has {len(checkpoint)} bytes, limit {CHECKPOINT_BYTES_MAX}")
        checkpoint = None
    sound = replace(
        outcome,
        used=_sound_counts(outcome.used),
        usage=_sound_counts(outcome.usage),
        checkpoint=checkpoint,
        code=outcome.code[:NAME_CHARS_MAX],
        runner=outcome.runner[:NAME_CHARS_MAX],
        message=outcome.message[:MESSAGE_CHARS_MAX],
    )
    return sound, "; ".join(problems)


def added(total: Mapping[str, int], counts: Mapping[str, int]) -> Mapping[str, int]:
    """Sums by unit; they stop at QUANTITY_MAX, and at USED_MAX units."""
    found = dict(total)
    for unit, quantity in counts.items():
        if unit in found or len(found) < USED_MAX:
            found[unit] = min(found.get(unit, 0) + quantity, QUANTITY_MAX)
    return found


def _count_problems(field: str, counts: Mapping[str, int]) -> list[str]:
    wrong = [name for name, amount in counts.items() if not _is_sound(name, amount)]
    found = [
        f"{field}.{name[:NAME_CHARS_MAX]} is {counts[name]}, limit 0 to {QUANTITY_MAX}" for name in wrong[:1]
    ]
    if len(counts) > USED_MAX:
        found.append(f"{field} has {len(counts)} counts, limit {USED_MAX}")
    return found


def _sound_counts(counts: Mapping[str, int]) -> Mapping[str, int]:
    sound = [(name, amount) for name, amount in counts.items() if _is_sound(name, amount)]
    return dict(sound[:USED_MAX])


def _is_sound(name: str, amount: int) -> bool:
    return (
        0 < len(name) <= _COUNT_NAME_CHARS_MAX
        and len(name.encode()) <= NAME_BYTES_MAX
        and 0 <= amount <= QUANTITY_MAX
    )
