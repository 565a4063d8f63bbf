"""Retries: a delay within its envelope, the same on every replay, spread over tasks and attempts."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from laxity.streams.completion import backoff_ms

IDS = st.text(alphabet="0123456789abcdef", min_size=32, max_size=32)


@settings(deadline=None)
@given(IDS, st.integers(0, 9), st.integers(1, 100), st.integers(0, 86_400_000), st.integers(0, 86_400_000))
def test_a_delay_lies_within_the_window(
    task: str, generation: int, attempt: int, base: int, most: int
) -> None:
    delay = backoff_ms(task, generation, attempt, base, most)
    assert 0 <= delay <= min(most, base * 2 ** (attempt - 1))
    assert delay == backoff_ms(task, generation, attempt, base, most)


def test_no_attempt_no_delay() -> None:
    assert backoff_ms("t", 0, 0, 1_000, 1_000) == 0


def test_the_window_doubles_and_is_used_to_its_full_width() -> None:
    for attempt, window in [(1, 1_000), (2, 2_000), (3, 4_000), (9, 60_000)]:
        delays = [backoff_ms(f"task-{i}", 0, attempt, 1_000, 60_000) for i in range(500)]
        assert window * 0.95 < max(delays) <= window
        assert min(delays) < window * 0.05
        assert abs(sum(delays) / 500 - window / 2) < window * 0.06


def test_generations_and_attempts_draw_anew() -> None:
    drawn = {backoff_ms("t", generation, 5, 60_000, 600_000) for generation in range(50)}
    assert len(drawn) > 45
