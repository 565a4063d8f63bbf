"""From business values to the record that is produced: trigger, checks, key, bytes. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from laxity.schemas import limits
from laxity.schemas.config import Config
from laxity.schemas.identity import idempotency_key, run_id_of
from laxity.schemas.records import Trigger
from laxity.schemas.serde import Codec
from laxity.schemas.topics import TIERS, Names
from laxity.schemas.validation import Problem, problems

Headers = Sequence[tuple[str, bytes]]


class InvalidTrigger(ValueError):  # noqa: N818 - it says what the caller handed over
    """The trigger breaks the contract; `problems` has every reason. Nothing was sent."""

    def __init__(self, found: Sequence[Problem], index: int | None = None) -> None:
        where = "" if index is None else f"trigger {index}: "
        super().__init__(where + "; ".join(problem.text() for problem in found))
        self.problems = tuple(found)
        self.index = index  # which of a batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A record ready to be produced. Without a key of its own the task's ids follow from the position, so they are known after delivery."""

    topic: str  # full
    record_key: bytes | None  # run id; None: any partition
    value: bytes
    headers: Headers
    tenant: str
    run_id: str  # empty: derived from the position
    key: str  # empty: the position


def trigger_of(
    type_: str,
    payload: object = b"",
    *,
    business: Sequence[str] = (),
    event_ms: int = 0,
    window_ms: int = 0,
    **fields: Any,
) -> Trigger:
    """A Trigger; `fields` are those of the record.

    `payload`: bytes pass untouched, anything else becomes canonical JSON. `business` are the values that name the work (account, invoice, …):
    the idempotency key is derived from them, and, where `window_ms` > 0, from the window in which `event_ms`, the event's own time, lies.
    ValueError for `key` and `business` together or a window without event time.
    """
    if business:
        if fields.get("key"):
            raise ValueError("give either key or business fields")
        if window_ms > 0 and event_ms <= 0:
            raise ValueError(
                "window_ms needs event_ms: the window is of the event's own time, never of the clock"
            )
        fields["key"] = idempotency_key(fields.get("tenant", "default"), type_, business, event_ms, window_ms)
    raw = bytes(payload) if isinstance(payload, bytes | bytearray | memoryview) else canonical_json(payload)
    return Trigger(type=type_, payload=raw, **fields)


def canonical_json(value: object) -> bytes:
    """Sorted keys, no spaces, UTF-8: equal values make equal bytes. ValueError for NaN and infinities, TypeError for what is no JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode()


class Preparer:
    """Checks and encodes triggers by one configuration and one codec."""

    def __init__(self, config: Config, codec: Codec, names: Names) -> None:
        self._config, self._codec = config, codec
        self._topics = {tier: names.full(f"triggers.{tier}") for tier in TIERS}

    def prepare(self, trigger: Trigger, tier: str, headers: Headers, now_ms: int) -> Prepared:
        """InvalidTrigger with every problem, else the record."""
        found = [*wrong_types(trigger)] or problems(trigger, self._config, now_ms)
        found += [*_tier_problems(tier), *_header_problems(headers)]
        if found:
            raise InvalidTrigger(found)
        named = bool(trigger.run_id or trigger.key)
        run_id = run_id_of(trigger.tenant, trigger.run_id, trigger.key) if named else ""
        return Prepared(
            topic=self._topics[tier],
            record_key=run_id.encode() if named else None,
            value=self._codec.encode(trigger),
            headers=headers,
            tenant=trigger.tenant,
            run_id=run_id,
            key=trigger.key,
        )


def wrong_types(trigger: Trigger) -> Iterable[Problem]:
    """Values that Python lets pass and Avro would bend: a float for an int, a text for a list."""
    kinds = tuple(map(type, _PLAIN(trigger)))
    lists = trigger.depends_on, trigger.demands, trigger.headers
    if kinds == _PLAIN_KINDS and _is_list(lists[0]) and _is_amounts(lists[1]) and _is_texts(lists[2]):
        return ()
    return [
        Problem(code="wrong_type", field=field, value=type(value).__name__, limit=wanted)
        for field, check, wanted in _TYPES
        if not check(value := getattr(trigger, field))
    ]


def _is_int(value: object) -> bool:
    return type(value) is int  # True is no number here


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_bytes(value: object) -> bool:
    return isinstance(value, bytes)


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)


def _is_list(value: object) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)


def _is_amounts(value: object) -> bool:
    return isinstance(value, Mapping) and all(_is_text(k) and _is_int(v) for k, v in value.items())


def _is_texts(value: object) -> bool:
    return isinstance(value, Mapping) and all(_is_text(k) and _is_text(v) for k, v in value.items())


_TYPES: tuple[tuple[str, Callable[[object], bool], str], ...] = (
    *(
        (name, _is_text, "str")
        for name in ("type", "tenant", "run_id", "key", "content_type", "workflow", "on_unknown")
    ),
    *(
        (name, _is_int, "int")
        for name in ("deadline_ms", "not_before_ms", "estimate_ms", "value", "max_attempts")
    ),
    ("payload", _is_bytes, "bytes"),
    ("firm", _is_flag, "bool"),
    ("depends_on", _is_list, "list of str"),
    ("demands", _is_amounts, "dict of str to int"),
    ("headers", _is_texts, "dict of str to str"),
)

_KINDS = {"str": str, "int": int, "bytes": bytes, "bool": bool}
_PLAIN = attrgetter(*(name for name, _, wanted in _TYPES if wanted in _KINDS))
_PLAIN_KINDS = tuple(_KINDS[wanted] for _, _, wanted in _TYPES if wanted in _KINDS)


def _tier_problems(tier: str) -> Iterable[Problem]:
    if tier not in TIERS:
        yield Problem(
            code="unknown_choice", field="tier", value=ascii(str(tier)[:64]), limit=", ".join(TIERS)
        )


def _header_problems(headers: Headers) -> Iterable[Problem]:
    if len(headers) > limits.HEADERS_MAX:
        yield Problem(
            code="too_many", field="record headers", value=str(len(headers)), limit=str(limits.HEADERS_MAX)
        )
    for name, value in headers:
        size = len(name.encode()) + len(value)
        if size > limits.HEADER_BYTES_MAX:
            limit = f"{limits.HEADER_BYTES_MAX} bytes"
            yield Problem(
                code="too_long", field=f"record header {name[:64]!a}", value=f"{size} bytes", limit=limit
            )
