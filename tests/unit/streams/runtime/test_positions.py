"""Offsets against marks: the table of what is read, re-read and refused."""

from dataclasses import replace

import pytest

from laxity.streams.runtime.positions import Input, SkipRefused, Start, start_of

APPLIED = Input(
    topic="laxity.outcomes",
    partition=2,
    topic_id="id",
    low=0,
    high=100,
    committed=50,
    mark=50,
    mark_topic_id="id",
)
FRESH = replace(APPLIED, committed=None, mark=0, mark_topic_id="")


def records(first: int, end: int) -> bool:
    raise AssertionError(f"looked for records from {first} to {end}")


@pytest.mark.parametrize(
    ("found", "offset"),
    [
        (APPLIED, 50),
        (FRESH, 0),
        (replace(FRESH, low=7), 7),
        (replace(APPLIED, committed=10), 10),
        (replace(APPLIED, committed=0), 0),
        (replace(APPLIED, committed=None), 50),
        (replace(APPLIED, committed=100, mark=100), 100),
    ],
    ids=["agree", "new", "new, retention passed", "reset", "reset to 0", "offset expired", "at the end"],
)
def test_where_reading_begins(found: Input, offset: int) -> None:
    assert start_of(found, (), records) == Start(offset=offset)


def test_a_gap_of_markers_is_no_skip() -> None:
    assert start_of(replace(APPLIED, committed=53), (), lambda first, end: (first, end) != (50, 53)) == Start(
        offset=53
    )


@pytest.mark.parametrize(
    ("found", "text", "word"),
    [
        (replace(APPLIED, committed=60), "records 50 to 59 were never applied", "laxity.outcomes:2:60"),
        (replace(FRESH, committed=60), "records 0 to 59 were never applied", "laxity.outcomes:2:60"),
        (replace(APPLIED, low=55, high=90), "records 50 to 54 have been deleted", "laxity.outcomes:2:55"),
        (replace(APPLIED, committed=200, mark=60), "lies beyond the end 100", "laxity.outcomes:2:60"),
        (replace(APPLIED, topic_id="new"), "made anew", "laxity.outcomes:2:50"),
        (replace(APPLIED, topic_id="new", high=3), "made anew", "laxity.outcomes:2:0"),
    ],
    ids=["skips", "skips, no mark", "retention", "beyond the end", "other topic", "other topic, shorter"],
)
def test_what_would_skip_is_refused_and_accepted_by_the_word_that_the_refusal_names(
    found: Input, text: str, word: str
) -> None:
    with pytest.raises(SkipRefused, match=text) as refused:
        start_of(found, (), lambda _first, _end: True)
    assert f"--accept-skip {word}" in str(refused.value)
    with pytest.raises(SkipRefused):
        start_of(found, (f"{word}0", "laxity.outcomes:3:60"), lambda _first, _end: True)
    assert start_of(found, (word,), lambda _first, _end: True) == Start(
        offset=int(word.rpartition(":")[2]), accepted=word
    )
