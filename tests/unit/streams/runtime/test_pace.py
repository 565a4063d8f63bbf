"""When batches begin."""

from laxity.streams.runtime.pace import (
    INTERVAL_MS_MAX,
    INTERVAL_MS_MIN,
    PATIENT_MS_MAX,
    RECORDS_MAX,
    Pace,
)


def test_the_first_batch_and_one_after_a_pause_begin_at_once() -> None:
    pace = Pace()
    assert pace.wait_ms(0, 1, busy_shards=1, patient=False) == 0
    pace.ran(0, 10)
    assert pace.wait_ms(1_000, 1, busy_shards=8, patient=False) == 0


def test_a_full_batch_never_waits() -> None:
    pace = Pace()
    pace.ran(0, 100)
    assert pace.wait_ms(1, RECORDS_MAX, busy_shards=8, patient=True) == 0


def test_the_interval_stretches_with_cost_and_busy_shards_within_its_bounds() -> None:
    pace = Pace()
    assert pace.interval_ms(busy_shards=1, patient=False) == INTERVAL_MS_MIN
    for n in range(20):
        pace.ran(n * 10, n * 10 + 4)
    one, four = (pace.interval_ms(busy_shards=n, patient=False) for n in (1, 4))
    assert INTERVAL_MS_MIN < one < four <= INTERVAL_MS_MAX
    for n in range(20):
        pace.ran(n * 1_000, n * 1_000 + 500)
    assert pace.interval_ms(busy_shards=8, patient=False) == INTERVAL_MS_MAX
    assert pace.interval_ms(busy_shards=8, patient=True) == PATIENT_MS_MAX


def test_a_record_that_comes_right_after_a_batch_waits_for_the_rest_of_the_interval() -> None:
    pace = Pace()
    for n in range(20):
        pace.ran(n * 100, n * 100 + 10)
    interval = pace.interval_ms(busy_shards=1, patient=False)
    assert pace.wait_ms(1_900 + 1, 1, busy_shards=1, patient=False) == interval - 1
