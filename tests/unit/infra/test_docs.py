"""The generated pages say what the code says."""

import re
from pathlib import Path

import pytest

from laxity.infra.docs import main, pages
from laxity.schemas.topics import catalogue
from laxity.streams.lifecycle import TRANSITIONS, State
from laxity.streams.reasons import Reason

DOCS = Path(__file__).parents[3] / "docs"


@pytest.mark.parametrize("name", ["topics.md", "lifecycle.md"])
def test_the_page_is_up_to_date(name: str) -> None:
    assert (DOCS / name).read_text("utf-8") == pages()[name], "run `make docs`"


def test_every_page_is_written(tmp_path: Path) -> None:
    main(str(tmp_path))
    assert {path.name: path.read_text("utf-8") for path in tmp_path.iterdir()} == pages()


def test_every_topic_has_a_row() -> None:
    rows = re.findall(r"^\| `([^`]+)` \|", pages()["topics.md"].partition("## Settings")[0], re.MULTILINE)
    assert rows == [topic.name for topic in catalogue({"{fleet}": 1})]


def test_every_state_and_step_and_reason_is_told() -> None:
    page = pages()["lifecycle.md"]
    for (before, cause), after in TRANSITIONS.items():
        assert f"| `{before.value or 'NEW'}` | {cause.value} | `{after.value}` |" in page
    for state in State:
        assert not state or re.search(
            rf"^\| `{state.value}` \| (waits|leased|terminal): ", page, re.MULTILINE
        )
    told = re.findall(r"^\| `([a-z_]+)` \| ", page.partition("## Reasons")[2], re.MULTILINE)
    assert told == [reason.value for reason in Reason]


def test_the_diagram_has_an_arrow_for_every_pair_of_states() -> None:
    page = pages()["lifecycle.md"]
    arrows = set(re.findall(r"^ {4}(\S+) --> ([A-Z]+): ", page, re.MULTILINE))
    assert arrows == {(before.value or "[*]", after.value) for (before, _), after in TRANSITIONS.items()}
