"""What a runner reports, held to the limits: sound parts pass untouched, the rest is named."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laxity.schemas.limits import CHECKPOINT_BYTES_MAX, QUANTITY_MAX
from laxity.schemas.records import Outcome
from laxity.streams import completion, reports
from laxity.streams.ledger.limits import USED_MAX
from laxity.streams.ledger.protocol import Exchange, Settle
from laxity.streams.ledger.vetting import vet_exchange

COUNTS = st.dictionaries(st.text(max_size=400), st.integers(-(2**63), 2**63 - 1), max_size=80)


def outcome(**fields: Any) -> Outcome:
    return Outcome(**{"kind": "failed", "task_id": "t" * 32, "generation": 0, "dispatch_no": 1, **fields})


def test_a_sound_report_passes_as_it_is() -> None:
    whole = outcome(
        used={"llm": 0, "browser": QUANTITY_MAX},
        usage={"tokens_in": 7, "u" * 128: 1},
        checkpoint=b"x" * CHECKPOINT_BYTES_MAX,
        code="c" * 128,
        runner="r" * 128,
        message="m" * 1_024,
        retry_after_ms=-5,
    )
    assert reports.vetted(whole) == (whole, "")


@settings(deadline=None)
@given(COUNTS, COUNTS)
def test_what_is_left_the_ledger_takes(used: dict[str, int], usage: dict[str, int]) -> None:
    sound, problem = reports.vetted(outcome(used=used, usage=usage))
    assert sound is not None
    settle = Settle(reservation_id="t:0:1", used=sound.used, unclaimed=False)
    vet_exchange(Exchange(shard=0, owner_epoch=1, settles=[settle]))
    assert bool(problem) == (sound.used != used or sound.usage != usage)
    assert sound.used.items() <= used.items()


@settings(deadline=None)
@given(COUNTS)
def test_sums_stay_within_their_limits(counts: dict[str, int]) -> None:
    sound, _ = reports.vetted(outcome(usage=counts))
    assert sound is not None
    total: Any = {}
    for _ in range(3):
        total = reports.added(total, sound.usage)
        total = reports.added(total, {"new": 1})
    assert all(0 <= n <= QUANTITY_MAX for n in total.values())
    assert len(total) <= USED_MAX


def test_sums_add_up() -> None:
    assert reports.added({"a": 1, "b": 2}, {"b": 3, "c": 4}) == {"a": 1, "b": 5, "c": 4}


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"used": {"llm": -1}}, "used.llm is -1"),
        ({"usage": {"x": QUANTITY_MAX + 1}}, f"usage.x is {QUANTITY_MAX + 1}"),
        (
            {"usage": {f"u{i}": 1 for i in range(USED_MAX + 1)}},
            f"usage has {USED_MAX + 1} counts, limit {USED_MAX}",
        ),
        (
            {"checkpoint": b"x" * (CHECKPOINT_BYTES_MAX + 1)},
            f"checkpoint has {CHECKPOINT_BYTES_MAX + 1} bytes",
        ),
    ],
)
def test_the_problem_names_field_value_and_limit(fields: dict[str, Any], named: str) -> None:
    sound, problem = reports.vetted(outcome(**fields))
    assert sound is not None
    assert problem.startswith(named)


@pytest.mark.parametrize("fields", [{"kind": ""}, {"kind": "x" * 9_999}, {"task_id": "t" * 65}])
def test_what_nobody_can_place_is_refused_whole(fields: dict[str, Any]) -> None:
    sound, problem = reports.vetted(outcome(**fields))
    assert sound is None
    assert 0 < len(problem) < 300


def test_every_kind_has_a_handler() -> None:
    assert completion._HANDLERS.keys() == reports.KINDS
    assert completion._FINAL < reports.KINDS
