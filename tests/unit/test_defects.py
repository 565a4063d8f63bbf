"""The catalogue of planted defects fits the sources; `make defects` plants them."""

from pathlib import Path

import pytest
from defects.catalogue import DEFECTS, Defect

SOURCES = Path(__file__).parents[2]


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.name)
def test_each_defect_can_be_planted(defect: Defect) -> None:
    for change in defect.changes:
        assert (SOURCES / change.path).read_text("utf-8").count(change.sound) == 1, change.path
    for test in defect.tests:
        assert (SOURCES / test).exists(), test


def test_names_are_unique() -> None:
    assert len({defect.name for defect in DEFECTS}) == len(DEFECTS) >= 12
