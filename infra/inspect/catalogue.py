"""From what a person types to a topic of the catalogue, and from a topic to the record that it holds."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

from laxity.infra.inspect.errors import InspectError
from laxity.schemas.topics import TIERS, Names, Topic, catalogue

EVENTS = tuple(f"events.{tier}" for tier in TIERS)
LETTERS = (*(f"dlq.{tier}" for tier in TIERS), "dlq.internal")
_DISPATCH = "dispatch."


class UnknownTopicError(InspectError):
    """No topic of ours has this name."""


def topic_of(text: str, names: Names) -> Topic:
    """`text` with or without prefix. UnknownTopicError names the nearest. Any fleet's topic is known; whether it exists, Kafka says."""
    for name in dict.fromkeys((text, text.removeprefix(names.prefix))):
        fleets = {name.removeprefix(_DISPATCH): 1} if name.startswith(_DISPATCH) else {}
        known = {topic.name: topic for topic in catalogue(fleets)}
        if name in known:
            return known[name]
    near = get_close_matches(text.removeprefix(names.prefix), all_names(()), n=1)
    raise UnknownTopicError(
        f"no topic is called {text!r}",
        f"nearest: {near[0]}" if near else "",
        "laxity topics ls",
    )


def all_names(fleets: Sequence[str]) -> list[str]:
    """Names without prefix."""
    return [topic.name for topic in catalogue(dict.fromkeys(fleets or ("default",), 1))]


def record_of(name: str) -> type | None:
    """The record that a topic (no prefix) holds; None for bytes that are not ours, or a topic that is none of ours."""
    try:
        return topic_of(name, Names("")).record
    except UnknownTopicError:
        return None
