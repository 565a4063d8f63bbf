"""Whether records may be taken for what they claim: offsets are part of a batch, and a hand-made one may say anything there.

Believed, an offset too high would make every record behind it look old, and those would be lost without a word.
"""

from __future__ import annotations

from collections.abc import Sequence

from laxity.streams.effects import Record


def credible(records: Sequence[Record], expected: int, high: int, *, gaps: bool, known: bool = False) -> int:
    """How many of the records, which came in this order, stand where they say; the next one has to be looked at.

    `expected`: the next offset. `high`: the end of the log. `gaps`: transactions leave some in this topic. In others what stands behind
    the last skipped offset waits for a look: all of it may be one batch, and what it hides may never come. `known`: the first was looked at.
    """
    skips: list[int] = []  # places behind a skipped offset
    for place, record in enumerate(records):
        if place or not known:
            if record.offset > expected:
                skips.append(place)
            if record.offset >= high:
                return _last(skips, place, gaps=gaps)
            if place + 1 < len(records) and records[place + 1].offset <= record.offset:
                return skips[0] if skips else place  # one of them is not true
        expected = max(expected, record.offset + 1)
    return _last(skips, len(records), gaps=gaps)


def _last(skips: Sequence[int], end: int, *, gaps: bool) -> int:
    return skips[-1] if skips and not gaps else end
