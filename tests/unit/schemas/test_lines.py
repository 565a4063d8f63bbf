"""Lines of logs, and a disk that is full under them."""

import os
from pathlib import Path

import pytest

from laxity.schemas.lines import Lines


def test_a_line_is_there_at_once(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as file:
        lines = Lines(file.fileno())
        lines.info("a")
        lines.error("\udcffß")
        assert (tmp_path / "log").read_bytes() == b"a\n\\udcff\xc3\x9f\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a device that is always full")
def test_a_full_disk_costs_lines_and_nothing_else() -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    Lines(full).error("lost")
    os.close(full)
    Lines(full).error("nobody listens any more")
