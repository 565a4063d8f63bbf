"""The figures of a run, from the stories of its tasks: in total, per tier, per tenant. Pure; the definitions are in the functions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import ceil
from typing import Any, Final

from laxity.infra.demo.stories import Story
from laxity.schemas.topics import TIERS

PERCENTILES: Final = (50, 95, 99)
MICROS: Final = 1_000_000

Figures = dict[str, Any]


def figures(stories: Sequence[Story]) -> Figures:
    """The numbers of one group. submitted = completed + expired + dead + cancelled + lost; completed = met + missed."""
    ends = Counter(story.end for story in stories)
    succeeded = [story for story in stories if story.end == "SUCCEEDED"]
    missed = sum(story.missed_by_ms > 0 for story in succeeded)
    usage = _summed(story.usage for story in stories)
    return {
        "submitted": len(stories),
        "completed": len(succeeded),
        "met": len(succeeded) - missed,
        "missed": missed,
        "expired": ends["EXPIRED"],
        "dead": ends["DEAD"],
        "cancelled": ends["CANCELLED"],
        "lost": ends[""],
        "missing_letters": sum(story.end == "DEAD" and not story.has_letter for story in stories),
        "doubled": sum(story.calls.get("effect", 0) > 1 for story in stories),
        "ended_twice": sum(story.ends > 1 for story in stories),
        "over_limit": sum(story.refused_for_room for story in stories),
        "responses_429": sum(story.responses_429 for story in stories),
        "attempts": sum(story.attempts for story in stories),
        "calls": dict(_summed(story.calls for story in stories)),
        "tokens": usage["tokens_in"] + usage["tokens_out"],
        "tokens_in": usage["tokens_in"],
        "tokens_out": usage["tokens_out"],
        "cost": sum(story.cost_micros for story in stories) / MICROS,
        "dispatch_ms": percentiles([s.dispatch_ms for s in stories if s.dispatch_ms is not None]),
        "wait_ms": percentiles([wait for story in stories for wait in story.waits_ms]),
    }


def document(stories: Sequence[Story], about: Mapping[str, Any]) -> Figures:
    """`about` the run, the figures in total, and those of each tier (most urgent first) and tenant."""
    return {
        **about,
        **figures(stories),
        "reasons": dict(sorted(Counter(s.reason for s in stories if s.end not in {"SUCCEEDED", ""}).items())),
        "tiers": _grouped(stories, lambda story: story.sent.tier, TIERS),
        "tenants": _grouped(stories, lambda story: story.sent.tenant, ()),
    }


def faults(total: Figures) -> list[str]:
    """What must never happen, in words; empty if it did not."""
    said = {
        "lost": "acknowledged tasks without an end",
        "doubled": "tasks with more than one effect at the provider",
        "ended_twice": "tasks with more than one end",
        "over_limit": "calls refused for want of room",
        "unacknowledged": "triggers that Kafka did not acknowledge",
        "missing_letters": "dead tasks without a dead letter",
    }
    return [f"{total[name]} {words}" for name, words in said.items() if total.get(name)]


def percentiles(values: Sequence[int]) -> dict[str, int | None]:
    """By nearest rank; None where there is no value."""
    ordered = sorted(values)
    return {f"p{p}": ordered[ceil(p / 100 * len(ordered)) - 1] if ordered else None for p in PERCENTILES}


def _grouped(
    stories: Sequence[Story], name_of: Callable[[Story], str], order: Sequence[str]
) -> dict[str, Figures]:
    names = sorted(
        {name_of(story) for story in stories},
        key=lambda name: (order.index(name) if name in order else len(order), name),
    )
    return {name: figures([story for story in stories if name_of(story) == name]) for name in names}


def _summed(counts: Iterable[Mapping[str, int]]) -> Counter[str]:
    total: Counter[str] = Counter()
    for each in counts:
        total.update(each)
    return total
