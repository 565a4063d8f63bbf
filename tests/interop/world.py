"""The loaded stack as the tests see it, and what its events say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from interop import load, stack, stock, tools
from interop.stock import Found

from laxity.schemas.topics import TIERS

EVENTS = [f"laxity.events.{tier}" for tier in TIERS]


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """The stack after the load, and all that its topics hold by stock means."""

    stack: stack.Stack
    tools: tools.Tools
    load: load.Load
    reader: stock.Reader
    records: Sequence[Found]

    def of(self, topic: str) -> list[Found]:
        """Records of one topic, full name."""
        return [found for found in self.records if found.topic == topic]

    def events(self, task_id: str, kind: str) -> list[Found]:
        """Events of one task."""
        return [f for f in self.records if is_event(f, kind) and text_of(f, "task_id") == task_id]


def settled(found: Sequence[Found], loaded: load.Load) -> bool:
    """Every trigger has had its end; the duplicates and the strays have been told of."""
    ended = ends(found, {"SUCCEEDED", "DEAD", "CANCELLED", "EXPIRED"})
    wanted = {*loaded.succeed, *loaded.dead, *loaded.cancelled}
    again = [f for f in found if is_event(f, "duplicate")]
    foreign = [sent for sents in loaded.sent.values() for sent in sents]
    new = len(foreign) - 2 * len(loaded.sent)
    return (
        wanted <= ended
        and len(ended) >= len(wanted) + new
        and len(again) >= len(TIERS) + 2 * len(loaded.sent)
    )


def ends(found: Sequence[Found], states: set[str]) -> set[str]:
    return {
        text_of(f, "task_id") for f in found if is_event(f, "transitions") and text_of(f, "state") in states
    }


def is_event(found: Found, kind: str) -> bool:
    return found.topic in EVENTS and text_of(found, "kind") == kind


def text_of(found: Found, name: str) -> str:
    return str((found.value or {}).get(name, ""))
