"""Knobs of a scheduler process."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from laxity.streams.runtime.settings import HostSettings


def test_arguments_win_over_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAXITY_SCHEDULER_HTTP_PORT", "1234")
    monkeypatch.setenv("LAXITY_SCHEDULER_ACCEPT_SKIP", "a:0:1, b.c:2:30")
    monkeypatch.setenv("LAXITY_DATA_DIR", "/somewhere")
    found = HostSettings()
    assert (found.http_port, found.accept_skip, found.data_dir) == (
        1234,
        ("a:0:1", "b.c:2:30"),
        Path("/somewhere"),
    )
    assert HostSettings(http_port=5, data_dir=Path("x")).data_dir == Path("x")
    assert HostSettings(http_port=5).http_port == 5


@pytest.mark.parametrize("word", ["a", "a:0", "a:x:1", "a:0:-1", ":0:1", "a:0:1:2", "a:0:1²"])
def test_a_malformed_skip_is_refused_with_the_form(word: str) -> None:
    with pytest.raises(ValidationError, match="TOPIC:PARTITION:OFFSET"):
        HostSettings(accept_skip=(word,))


@pytest.mark.parametrize(
    "given", [{"http_port": 70_000}, {"backlog_max": 0}, {"log_level": "loud"}, {"unknown": 1}]
)
def test_what_cannot_be_is_refused(given: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        HostSettings(**given)  # type: ignore[arg-type]
