"""All suites in a row, one table at the end.

python -m chaos.together [--seed 1] [--tasks 5000] [--json FILE] [--only kills,stores]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

SUITES: Final = ("kills", "zombies", "storms", "stores")
COLUMNS: Final = ("suite", "seed", "tasks", "faults", "kill -9", "busy", "checks", "seconds", "verdict")


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0: everything held in all of them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--tasks", type=int, default=5_000)
    parser.add_argument("--json", type=Path, help="file for all reports")
    parser.add_argument("--only", default=",".join(SUITES), help="suites, separated by commas")
    options, others = parser.parse_known_args(arguments)
    reports = [_run(name, options.seed, options.tasks, others) for name in options.only.split(",")]
    if options.json is not None:
        options.json.write_text(json.dumps(reports, indent=1) + "\n", "utf-8")
    sys.stdout.write(table([row(report) for report in reports]))
    return 1 if any(report["failures"] for report in reports) else 0


def _run(name: str, seed: int, tasks: int, others: Sequence[str]) -> dict[str, Any]:
    """The suite's report; one that wrote none failed."""
    with tempfile.TemporaryDirectory(prefix="laxity-chaos-") as folder:
        path = Path(folder) / "report.json"
        words = ["--seed", str(seed), "--tasks", str(tasks), "--json", str(path), *others]
        code = subprocess.run([sys.executable, "-m", f"chaos.{name}", *words], check=False).returncode
        if path.exists():
            found: dict[str, Any] = json.loads(path.read_text("utf-8"))
            return found
    return {"suite": name, "seed": seed, "failures": [f"ended with {code} and no report"]}


def row(report: Mapping[str, Any]) -> list[str]:
    """Of the table."""
    faults, violations, after = (report.get(name, {}) for name in ("faults", "violations", "after"))
    bad = sum(bool(texts) for texts in violations.values()) + sum(bool(x["why"]) for x in after.values())
    return [
        report["suite"],
        str(report["seed"]),
        str(report.get("tasks", "-")),
        f"{faults.get('landed', '-')}/{faults.get('planned', '-')}",
        str(faults.get("kill_9", "-")),
        str(faults.get("busy", "-")),
        f"{len(violations) + len(after) - bad}/{len(violations) + len(after)}",
        str(report.get("seconds", "-")),
        "FAILED" if report["failures"] else "held",
    ]


def table(rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell."""
    lines = [COLUMNS, *rows]
    widths = [max(len(line[n]) for line in lines) for n in range(len(COLUMNS))]
    return "".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() + "\n"
        for line in lines
    )


if __name__ == "__main__":
    sys.exit(main())
