"""Twenty kills under load, in every test run: nothing lost, nothing done twice (see tests/chaos/cut.py and `make chaos`)."""

from __future__ import annotations

from pathlib import Path

import pytest
from chaos import cut
from chaos.suite import Options

pytestmark = [pytest.mark.integration, pytest.mark.timeout(420)]
SEED = 1
KILLS = 20


def test_twenty_kills_lose_and_double_nothing(tmp_path: Path) -> None:
    options = Options(
        name="cut",
        seed=SEED,
        tasks=cut.TASKS,
        deduplicates=True,
        json=None,
        data_dir=tmp_path,
        span_s=cut.SPAN_S,
        scale=1.0,
    )
    report = cut.run(options)
    assert report.failures == [], f"seed {SEED}"
    assert report.faults["kill_9"] >= KILLS
    assert report.tasks >= cut.TASKS
