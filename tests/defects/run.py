"""Plant each defect of the catalogue in a copy of the sources, alone, and see whether the tests find it.

    python tests/defects/run.py [--only NAME ...] [--json FILE]

Exit code 0: every defect made a test fail; 1: one survived, or its text is no longer in the sources.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from defects.catalogue import DEFECTS, Defect
from rich.console import Console
from rich.table import Table

from laxity.schemas.timing import SystemClock

SOURCES = Path(__file__).parents[2]
COPIED = ("consumers", "infra", "producers", "schemas", "streams", "tests", "docs", "pyproject.toml")
MINUTES_MAX = 10  # of one defect: a test that hangs has found it too, but tells little


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What became of one defect. `by`: the first test that failed; empty: it survived."""

    name: str
    breaks: str
    by: str
    took_ms: int


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module."""
    options = _options(arguments)
    chosen = [d for d in DEFECTS if not options.only or d.name in options.only]
    unknown = set(options.only) - {d.name for d in DEFECTS}
    if unknown:
        sys.exit(
            f"no such defect: {', '.join(sorted(unknown))}; there are {', '.join(d.name for d in DEFECTS)}"
        )
    findings = []
    for defect in chosen:
        findings.append(examine(defect))
        sys.stderr.write(f"{defect.name}: {findings[-1].by or 'SURVIVED'}\n")
    _print(findings)
    if options.json:
        options.json.write_text(json.dumps([asdict(f) for f in findings], indent=2) + "\n")
    return 0 if all(f.by for f in findings) else 1


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="*", default=[], metavar="NAME")
    parser.add_argument("--json", type=Path)
    return parser.parse_args(arguments)


def examine(defect: Defect) -> Finding:
    """Plant it in a fresh copy, run its tests there until one fails; that one must pass without the defect."""
    clock = SystemClock()
    begun_ms = clock.monotonic_ms()
    with tempfile.TemporaryDirectory(prefix="laxity-defect-") as folder:
        root = Path(folder) / "laxity"
        _copy(root)
        sound = {change.path: (root / change.path).read_text("utf-8") for change in defect.changes}
        plant(defect, root)
        by = _first_failure(defect.tests, root)
        for path, text in sound.items():
            (root / path).write_text(text, "utf-8")
        if by:
            anyway = _first_failure((by,), root)
            assert not anyway, f"{defect.name}: {by} fails without the defect too"
    return Finding(name=defect.name, breaks=defect.breaks, by=by, took_ms=clock.monotonic_ms() - begun_ms)


def plant(defect: Defect, root: Path) -> None:
    """Change its places. AssertionError if one is not there exactly once."""
    for change in defect.changes:
        place = root / change.path
        text = place.read_text("utf-8")
        found = text.count(change.sound)
        assert found == 1, f"{defect.name}: {change.path} has its text {found} times"
        place.write_text(text.replace(change.sound, change.planted), "utf-8")


def _copy(root: Path) -> None:
    root.mkdir()
    for name in COPIED:
        source = SOURCES / name
        if source.is_dir():
            shutil.copytree(source, root / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, root / name)


def _first_failure(tests: Sequence[str], root: Path) -> str:
    """Name of the first test that fails; empty: none. The folder above the copy comes before the environment's own `laxity`."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(
        command,
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root.parent), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=MINUTES_MAX * 60,
        check=False,
    )
    if done.returncode == 0:
        return ""
    failed = re.search(r"^FAILED (.+?)(?: - .*)?$", done.stdout, re.MULTILINE)
    assert failed is not None, f"no test ran to its end:\n{done.stdout}{done.stderr}"
    return failed[1]


def _print(findings: Sequence[Finding]) -> None:
    table = Table("defect", "breaks", "found by", "seconds")
    for f in findings:
        table.add_row(f.name, f.breaks, f.by or "[bold red]SURVIVED", f"{f.took_ms / 1000:.0f}")
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
