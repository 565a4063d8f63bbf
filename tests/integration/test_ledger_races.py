"""Processes that race on one real ledger give, in the order of its decisions, exactly the answers of the twin."""

import json
import os
import secrets
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from chaos import races
from chaos.one_redis import running

pytestmark = pytest.mark.integration
REACHED = {
    "ok", "recovering", "fenced", "granted", "reaped", "claimed", "gone", "revoked", "dropped", "lapsed", "slots_full", "key_busy",
    "fleet_full", "rate_tokens", "over_capacity", "unknown_resource",
}  # fmt: skip


def race(folder: Path, ops: int, patience_s: int) -> dict[str, Any]:
    """In a process of its own, which forks the racers."""
    command = [sys.executable, races.__file__, "--ops", str(ops), "--seed", str(secrets.randbelow(2**48))]
    tests = Path(races.__file__).parents[1]
    with running(folder / "redis", "--appendonly", "no") as server:
        done = subprocess.run(
            [*command, server.url],
            env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tests), os.environ.get("PYTHONPATH", "")])},
            capture_output=True,
            text=True,
            timeout=patience_s,
            check=False,
        )
    assert done.returncode == 0, f"{done.stdout}{done.stderr[:4_000]}"
    found: dict[str, Any] = json.loads(done.stdout)
    assert (found["mismatches"], found["racers"]) == (0, 8), found
    assert found["ops"] >= ops - found["racers"]
    return found


def test_racing_processes_get_the_answers_of_the_twin(tmp_path: Path) -> None:
    race(tmp_path, 2_400, 110)


@pytest.mark.slow
@pytest.mark.timeout(1_800)
def test_many_racing_operations_get_the_answers_of_the_twin(tmp_path: Path) -> None:
    found = race(tmp_path, 100_000, 1_700)
    assert set(found["seen"]) >= REACHED, found
