"""What is wrong with a trigger: the one rule book that publishers and the scheduler's intake share. Pure.

An empty list means that the trigger is accepted. A deadline that has passed is no problem here: a firm task expires, a soft one runs late.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import get_args

from laxity.schemas import limits
from laxity.schemas.config import Config, Keyed, OnUnknown, Rate
from laxity.schemas.records import Original, Trigger

_NAME = re.compile(limits.NAME_PATTERN)
_HEADER_NAME = re.compile(r"[\x21-\x7e]+")
_SHOWN_CHARS = 64  # of a value in a message


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One reason to refuse. `code` is stable, `field` a path like `demands.llm`, `value` what was there (shortened), `limit` what may be."""

    code: str
    field: str
    value: str
    limit: str

    def text(self) -> str:
        """For people: `deadline_ms: 9 is ... `."""
        return f"{self.field} is {self.value}: {self.code.replace('_', ' ')} (limit: {self.limit})"


def problems(trigger: Trigger, config: Config, now_ms: int) -> list[Problem]:
    """All problems of a trigger, in the order of its fields. `now_ms` is UTC: the append time at intake, the clock at a publisher."""
    return [problem for rule in _RULES for problem in rule(trigger, config, now_ms)]


def original_problems(original: Original) -> list[Problem]:
    """Problems of the record that a trigger comes in, read or brought by another: what may be kept, and fits the DLQ with our headers."""
    headers = sum(len(h.name.encode()) + len(h.value or b"") for h in original.headers)
    size = len(original.key or b"") + len(original.value or b"") + headers
    checks = (
        ("too_many", "record headers", len(original.headers), limits.RECORD_HEADERS_MAX),
        ("too_large", "record headers", headers, limits.RECORD_HEADERS_BYTES_MAX),
        ("too_large", "record", size, limits.TRIGGER_RECORD_BYTES_MAX),
    )
    return [_problem(code, field, value, most) for code, field, value, most in checks if value > most]


def demand_problems(demands: Mapping[str, int], config: Config) -> list[Problem]:
    """Problems of demands alone: unknown resources, amounts out of range or over capacity, keys where none belong."""
    found = (
        [_problem("too_many", "demands", len(demands), limits.DEMANDS_MAX)]
        if len(demands) > limits.DEMANDS_MAX
        else []
    )
    for name in sorted(demands)[: limits.DEMANDS_MAX]:
        found += _demand(name, demands[name], config)
    return found


def _problem(code: str, field: str, value: object, limit: object) -> Problem:
    shown = value if isinstance(value, str) else str(value)
    shown = ascii(shown[:_SHOWN_CHARS])[1:-1] + ("…" if len(shown) > _SHOWN_CHARS else "")
    return Problem(code=code, field=field, value=shown, limit=str(limit))


def _size(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


def _names(t: Trigger, _config: Config, _now_ms: int) -> Iterable[Problem]:
    name = _NAME.fullmatch
    if (
        name(t.type)
        and name(t.tenant)
        and (not t.run_id or name(t.run_id))
        and (not t.workflow or name(t.workflow))
    ):
        chars = limits.NAME_CHARS_MAX
        if (
            len(t.type) <= chars >= len(t.tenant)
            and len(t.run_id) <= limits.RUN_ID_CHARS_MAX
            and len(t.workflow) <= chars
        ):
            return ()
    return _name_problems(t)


def _name_problems(t: Trigger) -> Iterable[Problem]:
    for field, value, needed, chars in (
        ("type", t.type, True, limits.NAME_CHARS_MAX),
        ("tenant", t.tenant, True, limits.NAME_CHARS_MAX),
        ("run_id", t.run_id, False, limits.RUN_ID_CHARS_MAX),
        ("workflow", t.workflow, False, limits.NAME_CHARS_MAX),
    ):
        if not value:
            if needed:
                yield _problem("missing", field, "empty", "a name")
        elif len(value) > chars:
            yield _problem("too_long", field, value, f"{chars} characters")
        elif not _NAME.fullmatch(value):
            yield _problem("bad_name", field, value, limits.NAME_PATTERN)


def _texts(t: Trigger, _config: Config, _now_ms: int) -> Iterable[Problem]:
    yield from _text("key", t.key, limits.KEY_BYTES_MAX)
    if len(t.content_type) > limits.CONTENT_TYPE_CHARS_MAX:
        yield _problem(
            "too_long", "content_type", t.content_type, f"{limits.CONTENT_TYPE_CHARS_MAX} characters"
        )
    if not (t.content_type.isascii() and t.content_type.isprintable()):
        yield _problem("bad_text", "content_type", t.content_type, "printable ASCII")


def _text(field: str, value: str, size: int) -> Iterable[Problem]:
    if value.isascii() and len(value) <= size and "\0" not in value:
        return ()
    return _text_problems(field, value, size)


def _text_problems(field: str, value: str, size: int) -> Iterable[Problem]:
    if _size(value) > size:
        yield _problem("too_long", field, value, f"{size} bytes of UTF-8")
    if "\0" in value:
        yield _problem("bad_text", field, value, "no NUL")
    if any("\ud800" <= char <= "\udfff" for char in value):
        yield _problem("bad_text", field, value, "no lone surrogates")


def _times(t: Trigger, _config: Config, now_ms: int) -> Iterable[Problem]:
    horizon = now_ms + limits.DEADLINE_AHEAD_MS_MAX
    for field, value in (("deadline_ms", t.deadline_ms), ("not_before_ms", t.not_before_ms)):
        if value < 0:
            yield _problem("negative", field, value, "at least 0")
        elif value > horizon:
            yield _problem("too_far", field, value, f"{horizon}: 7 days ahead")
    if 0 < t.deadline_ms < t.not_before_ms:
        yield _problem("not_before_after_deadline", "not_before_ms", t.not_before_ms, t.deadline_ms)


def _numbers(t: Trigger, _config: Config, _now_ms: int) -> Iterable[Problem]:
    if not (t.estimate_ms or t.value or t.max_attempts):
        return ()
    return _number_problems(t)


def _number_problems(t: Trigger) -> Iterable[Problem]:
    for field, value, most in (
        ("estimate_ms", t.estimate_ms, limits.ESTIMATE_MS_MAX),
        ("value", t.value, limits.QUANTITY_MAX),
        ("max_attempts", t.max_attempts, limits.ATTEMPTS_MAX),
    ):
        if value < 0:
            yield _problem("negative", field, value, "at least 0")
        elif value > most:
            yield _problem("too_large", field, value, most)


def _demands(t: Trigger, config: Config, _now_ms: int) -> Iterable[Problem]:
    """Of all that the task will need: its type's demands count too."""
    return demand_problems({**config.type_of(t.type).demands, **t.demands}, config) if t.demands else ()


def _demand(name: str, amount: int, config: Config) -> Iterable[Problem]:
    base, colon, key = name.partition(":")
    field = f"demands.{ascii(name[:_SHOWN_CHARS])[1:-1]}"
    resource = config.resources.get(base)
    if resource is None:
        yield _problem(
            "unknown_resource", field, name, ", ".join(config.resources) or "no resource is configured"
        )
        return
    if isinstance(resource, Keyed) and not key:
        yield _problem("key_missing", field, name, f"{base}:KEY")
    elif colon and not isinstance(resource, Keyed):
        yield _problem("key_unexpected", field, name, base)
    yield from _text(field, key, limits.RESOURCE_KEY_BYTES_MAX)
    yield from _amount(field, amount, resource)


def _amount(field: str, amount: int, resource: object) -> Iterable[Problem]:
    least = 0 if isinstance(resource, Rate) else 1  # a rate of 0 LLM tokens still is one request
    capacity = _capacity(resource)
    if amount < least:
        yield _problem("negative" if amount < 0 else "too_small", field, amount, f"at least {least}")
    elif amount > limits.QUANTITY_MAX:
        yield _problem("too_large", field, amount, limits.QUANTITY_MAX)
    elif amount > capacity:
        yield _problem("demand_over_capacity", field, amount, capacity)


def _capacity(resource: object) -> int:
    """The most that one demand may ask: for a rate one minute's LLM tokens (more than the burst is admitted into debt)."""
    if isinstance(resource, Rate):
        return resource.tokens_per_minute or limits.QUANTITY_MAX
    return int(resource.capacity)  # type: ignore[attr-defined]


def _dependencies(t: Trigger, _config: Config, _now_ms: int) -> Iterable[Problem]:
    if len(t.depends_on) > limits.DEPENDENCIES_MAX:
        yield _problem("too_many", "depends_on", len(t.depends_on), limits.DEPENDENCIES_MAX)
        return
    most = limits.KEY_BYTES_MAX + limits.RUN_ID_CHARS_MAX + len("run::")
    for index, name in enumerate(t.depends_on):
        field = f"depends_on.{index}"
        if not name:
            yield _problem("missing", field, "empty", "a key, or run:RUN_ID:KEY")
        elif t.key and name in {t.key, f"run:{t.run_id}:{t.key}"}:
            yield _problem("depends_on_itself", field, name, "another task's key")
        elif name.startswith("run:") and not _is_foreign(name):
            yield _problem("bad_dependency", field, name, "run:RUN_ID:KEY")
        yield from _text(field, name, most)


def _is_foreign(name: str) -> bool:
    _, run_id, key = [*name.split(":", 2), "", ""][:3]
    return bool(_NAME.fullmatch(run_id) and key)


def _choices(t: Trigger, _config: Config, _now_ms: int) -> Iterable[Problem]:
    if t.on_unknown and t.on_unknown not in get_args(OnUnknown):
        yield _problem("unknown_choice", "on_unknown", t.on_unknown, ", ".join(get_args(OnUnknown)))


def _headers(t: Trigger, _config: Config, _now_ms: int) -> Iterable[Problem]:
    if len(t.headers) > limits.HEADERS_MAX:
        yield _problem("too_many", "headers", len(t.headers), limits.HEADERS_MAX)
        return
    for name, value in t.headers.items():
        field = f"headers.{ascii(name[:_SHOWN_CHARS])[1:-1]}"
        if not _HEADER_NAME.fullmatch(name):
            yield _problem("bad_name", field, name, "printable ASCII without spaces")
        yield from _text(field, value, limits.HEADER_BYTES_MAX - len(name))


def _total(t: Trigger, _config: Config, _now_ms: int) -> Iterable[Problem]:
    lists = sum(map(len, t.depends_on)) + sum(map(len, t.demands)) if t.depends_on or t.demands else 0
    headers = sum(len(name) + len(value) for name, value in t.headers.items()) if t.headers else 0
    if len(t.payload) + _UTF8_BYTES_MAX * (_NAMES_CHARS_MAX + lists + headers) > limits.TRIGGER_BYTES_MAX:
        yield from _exact_total(t)


_UTF8_BYTES_MAX = 4  # of one character
_NAMES_CHARS_MAX = (
    3 * limits.NAME_CHARS_MAX + limits.RUN_ID_CHARS_MAX + limits.KEY_BYTES_MAX + limits.CONTENT_TYPE_CHARS_MAX
)


def _exact_total(t: Trigger) -> Iterable[Problem]:
    texts = (t.type, t.tenant, t.run_id, t.key, t.content_type, t.workflow, *t.depends_on, *t.demands)
    headers = sum(_size(name) + _size(value) for name, value in t.headers.items())
    total = len(t.payload) + sum(map(_size, texts)) + headers
    if total > limits.TRIGGER_BYTES_MAX:
        field = "payload" if len(t.payload) > total // 2 else "trigger"
        yield _problem("too_large", field, f"{total} bytes in all", f"{limits.TRIGGER_BYTES_MAX} bytes")


_RULES: tuple[Callable[[Trigger, Config, int], Iterable[Problem]], ...] = (
    _names,
    _texts,
    _times,
    _numbers,
    _demands,
    _dependencies,
    _choices,
    _headers,
    _total,
)
