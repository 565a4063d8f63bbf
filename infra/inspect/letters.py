"""Dead letters: what their headers say, whose task they were, and groups of them by reason."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from laxity.infra.inspect.catalogue import LETTERS
from laxity.infra.inspect.decoding import ORIGIN, Seen, document_of
from laxity.infra.inspect.errors import InspectError
from laxity.infra.inspect.text import json_bytes
from laxity.schemas.identity import positional_key, run_id_of, task_id_of
from laxity.schemas.records import Trigger
from laxity.schemas.timing import Millis

_OURS: Final = "laxity.error."
_NUMBER: Final = re.compile(r"-?[0-9]{1,18}")
_REFERENCE: Final = re.compile(
    r"(?:(?P<topic>[A-Za-z0-9._-]+):)?(?P<partition>[0-9]{1,9}):(?P<offset>[0-9]{1,18})"
)
_FIELDS: Final = frozenset({
    "reason", "message", "topic", "partition", "offset", "timestamp", "attempts", "generation", "history"
})  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Letter:
    """One dead letter. `headers`: the original ones; numbers that its headers do not give are -1."""

    seen: Seen
    headers: Sequence[tuple[str, bytes | None]]
    reason: str
    message: str
    origin: str  # full name of the topic it came from
    origin_partition: int
    origin_offset: int
    origin_timestamp_ms: Millis
    attempts: int
    generation: int
    history: Sequence[Any]

    @property
    def reference(self) -> str:
        """`normal:0:17`: what the commands take."""
        return f"{self.seen.topic.removeprefix('dlq.')}:{self.seen.partition}:{self.seen.offset}"

    def document(self) -> dict[str, Any]:
        """For `--json`."""
        whose = task_of(self)
        return {
            "letter": self.reference,
            "topic": self.seen.topic,
            "partition": self.seen.partition,
            "offset": self.seen.offset,
            "timestamp_ms": self.seen.timestamp_ms,
            "reason": self.reason,
            "message": self.message,
            "origin": {
                "topic": self.origin,
                "partition": self.origin_partition,
                "offset": self.origin_offset,
                "timestamp_ms": self.origin_timestamp_ms,
            },
            "attempts": self.attempts,
            "generation": self.generation,
            "history": list(self.history),
            "task_id": whose[0] if whose else None,
            "run_id": whose[1] if whose else None,
            "key": json_bytes(self.seen.key),
            "headers": [{"name": name, "value": json_bytes(value)} for name, value in self.headers],
            "record": self.seen.kind or None,
            "value": None if self.seen.value is None else document_of(self.seen.value),
            "problem": self.seen.problem or None,
            "raw": json_bytes(self.seen.raw),
        }


def letter_of(seen: Seen) -> Letter:
    """From a record of a DLQ topic. Of headers that occur twice the last one is ours: whoever published can have written the others."""
    ours: dict[str, int] = {}
    for place, (name, _) in enumerate(seen.headers):
        if name.startswith(_OURS) and name.removeprefix(_OURS) in _FIELDS:
            ours[name.removeprefix(_OURS)] = place
    texts = {name: (seen.headers[at][1] or b"").decode("utf-8", "replace") for name, at in ours.items()}
    return Letter(
        seen=seen,
        headers=[header for at, header in enumerate(seen.headers) if at not in ours.values()],
        reason=texts.get("reason", ""),
        message=texts.get("message", ""),
        origin=texts.get(ORIGIN.removeprefix(_OURS), ""),
        origin_partition=_number(texts, "partition"),
        origin_offset=_number(texts, "offset"),
        origin_timestamp_ms=_number(texts, "timestamp"),
        attempts=_number(texts, "attempts"),
        generation=_number(texts, "generation"),
        history=_history(texts.get("history", "")),
    )


def _number(texts: dict[str, str], name: str) -> int:
    text = texts.get(name, "")
    return int(text) if _NUMBER.fullmatch(text) else -1


def _history(text: str) -> Sequence[Any]:
    try:
        found = json.loads(text) if text else []
    except ValueError:
        return []
    return found if isinstance(found, list) else []


def task_of(letter: Letter) -> tuple[str, str] | None:
    """Task id and run id; None where the bytes do not tell."""
    value = letter.seen.value
    if isinstance(value, Trigger):
        key = value.key or positional_key(letter.origin, letter.origin_partition, letter.origin_offset)
        run_id = run_id_of(value.tenant, value.run_id, key)
        return task_id_of(value.tenant, run_id, key), run_id
    task_id = getattr(value, "task_id", "")
    return (task_id, getattr(value, "run_id", "")) if task_id else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """A letter's place; `topic` (no prefix) empty: any of the DLQ topics."""

    topic: str
    partition: int
    offset: int


def parse_reference(text: str, prefix: str) -> Reference:
    """`normal:0:17`, `dlq.normal:0:17` (with the prefix too) or `0:17`. InspectError for anything else."""
    found = _REFERENCE.fullmatch(text.strip())
    if found is None:
        raise InspectError(f"{text!r} is no letter", "write TIER:PARTITION:OFFSET", "laxity dlq ls --each")
    name = found["topic"] or ""
    topic = f"dlq.{name.removeprefix(prefix).removeprefix('dlq.')}" if name else ""
    if topic and topic not in LETTERS:
        raise InspectError(f"no dead letters are kept under {name!r}", f"known: {', '.join(LETTERS)}")
    return Reference(topic=topic, partition=int(found["partition"]), offset=int(found["offset"]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Letters of one topic and reason."""

    topic: str
    reason: str
    count: int
    oldest_ms: Millis
    newest_ms: Millis
    newest: str  # reference
    message: str  # of the newest

    def document(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "topic": self.topic,
            "reason": self.reason,
            "count": self.count,
            "oldest_ms": self.oldest_ms,
            "newest_ms": self.newest_ms,
            "newest": self.newest,
            "message": self.message,
        }


def grouped(letters: Iterable[Letter]) -> list[Group]:
    """The largest first. Holds one letter per group."""
    counts: dict[tuple[str, str], int] = {}
    oldest: dict[tuple[str, str], Millis] = {}
    newest: dict[tuple[str, str], Letter] = {}
    for letter in letters:
        at, when = (letter.seen.topic, letter.reason), letter.seen.timestamp_ms
        counts[at] = counts.get(at, 0) + 1
        oldest[at] = min(when, oldest.get(at, when))
        if at not in newest or when >= newest[at].seen.timestamp_ms:
            newest[at] = letter
    groups = [
        Group(
            topic=at[0],
            reason=at[1],
            count=counts[at],
            oldest_ms=oldest[at],
            newest_ms=letter.seen.timestamp_ms,
            newest=letter.reference,
            message=letter.message,
        )
        for at, letter in newest.items()
    ]
    return sorted(groups, key=lambda group: (-group.count, group.topic, group.reason))
