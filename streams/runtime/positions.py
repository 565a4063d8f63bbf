"""Where a shard begins to read an input: offsets are position, keys are memory, marks are both.

A committed offset below the mark means that records are read again: the core knows them. One beyond the mark means that records would be
skipped: that is refused unless an operator accepts it, as is a topic made anew and a start that the topic no longer reaches back to.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """What is known of one input partition. `committed` None: the group has no offset; `mark` 0: nothing was ever applied."""

    topic: str  # full name
    partition: int
    topic_id: str
    low: int
    high: int
    committed: int | None
    mark: int
    mark_topic_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Read from here; `accepted` is the operator's word that was used, or empty."""

    offset: int
    accepted: str = ""


class SkipRefused(Exception):  # noqa: N818 - a decision, not a bug
    """Records would be skipped silently; the message names the range and what to type."""


def start_of(found: Input, accepted: Collection[str], record_between: Callable[[int, int], bool]) -> Start:
    """Raises SkipRefused. `record_between(first, end)` tells whether a committed record lies in the range (it reads the topic)."""
    place = f"{found.topic}:{found.partition}"
    if found.mark_topic_id and found.mark_topic_id != found.topic_id:
        return _made_anew(found, place, accepted)
    wanted = _wanted(found)
    if wanted > found.high:
        problem = f"the group's offset {wanted} lies beyond the end {found.high}"
        return _accept(place, max(found.mark, found.low), accepted, problem)
    if wanted < found.low and (found.mark or found.committed is not None):
        problem = f"records {wanted} to {found.low - 1} have been deleted before they were read"
        return _accept(place, found.low, accepted, problem)
    if (
        wanted > found.mark
        and found.committed is not None
        and record_between(max(found.mark, found.low), wanted)
    ):
        problem = f"records {max(found.mark, found.low)} to {wanted - 1} were never applied, and the group's offset is {wanted}"
        return _accept(place, wanted, accepted, problem)
    return Start(offset=max(wanted, found.low))


def _wanted(found: Input) -> int:
    if found.committed is not None:
        return found.committed
    return found.mark or found.low


def _made_anew(found: Input, place: str, accepted: Collection[str]) -> Start:
    offset = found.low if found.committed is None or found.committed > found.high else found.committed
    problem = f"the topic was made anew (id {found.topic_id}, the state knows {found.mark_topic_id})"
    return _accept(place, offset, accepted, problem)


def _accept(place: str, offset: int, accepted: Collection[str], problem: str) -> Start:
    word = f"{place}:{offset}"
    if word in accepted:
        return Start(offset=offset, accepted=word)
    raise SkipRefused(f"{place}: {problem}; to go on from offset {offset} nevertheless: --accept-skip {word}")
