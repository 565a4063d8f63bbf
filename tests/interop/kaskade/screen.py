"""kaskade on one topic in a terminal of its own, run by the Python of kaskade's environment.

python screen.py BOOTSTRAP REGISTRY TOPIC, a JSON list of texts on stdin: exit code 0 once one of them is on the screen, 1 if none is in time.
The screen is on stdout either way.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pexpect  # type: ignore[import-untyped,unused-ignore]  # of kaskade's environment, not ours
import pyte  # type: ignore[import-not-found,unused-ignore]

ROWS, COLUMNS = 60, 400
LIMIT_S = 90.0  # its imports take 3 s, 20 s on a busy machine
READ_S = 0.5


def main(bootstrap: str, registry: str, topic: str) -> int:
    needles = json.load(sys.stdin)
    screen = pyte.Screen(COLUMNS, ROWS)
    terminal = pyte.Stream(screen)
    options = ["--earliest", "-v", "registry", "--registry", f"url={registry}"]
    program = pexpect.spawn(
        str(Path(sys.executable).with_name("kaskade")),
        ["consumer", "-b", bootstrap, "-t", topic, *options],
        dimensions=(ROWS, COLUMNS),
        encoding="utf-8",
        codec_errors="replace",
    )
    try:
        found = _appears(program, terminal, screen, needles)
    finally:
        program.close(force=True)
    sys.stdout.write("\n".join(line.rstrip() for line in screen.display) + "\n")
    return 0 if found else 1


def _appears(program: pexpect.spawn, terminal: pyte.Stream, screen: pyte.Screen, needles: list[str]) -> bool:
    until = time.monotonic() + LIMIT_S  # noqa: TID251 - a program of its own, without our clock
    while time.monotonic() < until:  # noqa: TID251
        try:
            terminal.feed(program.read_nonblocking(65_536, timeout=READ_S))
        except pexpect.TIMEOUT:
            continue
        except pexpect.EOF:
            return False
        if any(needle in line for line in screen.display for needle in needles):
            return True
    return False


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
