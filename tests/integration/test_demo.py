"""`laxity demo` as a user runs it, on the session's servers under a prefix of its own: its stack is provider, schedulers and runners."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from laxity.infra.cli.output import ExitCode
from laxity.infra.local import Endpoints
from laxity.infra.local.data_dir import DataDir, read_record
from laxity.infra.local.launch import stop
from laxity.infra.local.pids import ProcessId, is_alive

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

RUN_S = 200
FEW = ("--tasks", "50", "--speed", "20")
SLOW = ("--tasks", "60", "--speed", "2")  # long enough to be interrupted: some 6 s of arrivals, 5 s of calls


class Here:
    """A data directory and the environment of the commands that use it."""

    def __init__(self, folder: Path, stack: Endpoints) -> None:
        self.data = DataDir.at(folder / "data")
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("LAXITY_")}
        self.environment = {
            **inherited,
            **stack.environment(),
            "LAXITY_DATA_DIR": str(self.data.root),
            "LAXITY_PREFIX": f"demo-{folder.name}-{os.getpid()}.",
        }
        self.environment.pop("LAXITY_PROVIDER_URL", None)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "laxity.infra.cli", *arguments],
            env=self.environment,
            cwd=self.data.root.parent,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *arguments: str) -> tuple[int, str, str]:
        process = self.start(*arguments)
        out, err = process.communicate(timeout=RUN_S)
        return process.returncode, out, err

    def processes(self) -> list[ProcessId]:
        """Of our own processes, as the supervisor's record has them."""
        record = read_record(self.data) or {"processes": []}
        return [ProcessId(**row["id"]) for row in record["processes"] if row.get("id")]

    def of_role(self, role: str) -> Sequence[int]:
        record = read_record(self.data) or {"processes": []}
        return [row["pid"] for row in record["processes"] if row["role"] == role]

    def effects(self) -> int:
        ledger = self.data.root / "provider" / "ledger.jsonl"
        return ledger.read_text().count('"effect"') if ledger.exists() else 0


@pytest.fixture
def here(tmp_path: Path, stack: Endpoints) -> Iterator[Here]:
    made = Here(tmp_path, stack)
    yield made
    stop(made.data)


def wait_until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds  # noqa: TID251  a test's own patience
    while not condition():
        assert time.monotonic() < until, "waited in vain"  # noqa: TID251
        time.sleep(0.02)


def assert_sound(found: dict[str, Any], tasks: int) -> None:
    parts = ("completed", "expired", "dead", "cancelled", "lost")
    for group in (found, *found["tiers"].values(), *found["tenants"].values()):
        assert group["submitted"] == sum(group[name] for name in parts)
        assert group["completed"] == group["met"] + group["missed"]
    assert found["submitted"] == found["acknowledged"] == tasks
    assert sum(tier["submitted"] for tier in found["tiers"].values()) == tasks
    assert (found["lost"], found["doubled"], found["over_limit"], found["ended_twice"]) == (0, 0, 0, 0)
    assert found["calls"]["effect"] >= found["completed"]


def test_a_small_run_from_nothing_and_back(here: Here) -> None:
    code, out, err = here.run("demo", *FEW, "--inject-429", "0.1", "--json", "-")
    assert code == 0, err
    found = json.loads(out)
    assert_sound(found, 50)
    assert found["completed"] >= 45
    assert found["responses_429"] > 0  # all of them on purpose
    assert found["load"] <= 0.8
    assert (found["speed"], found["slots"] > 0, found["own_stack"]) == (20.0, True, True)
    assert found["limits"]["llm"]["requests_per_minute"] % 20 == 0
    assert found["tokens"] > 0
    assert found["cost"] > 0
    assert 0 < found["dispatch_ms"]["p50"] <= found["dispatch_ms"]["p99"]
    assert found["wait_ms"]["p50"] > 0
    assert "total" in err  # the table went where it is in nobody's way
    assert read_record(here.data) is None


def test_the_stack_that_runs_is_used_as_it_is_and_left_running(here: Here, tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    rows = "".join(f"2024-01-01 00:00:0{n}.5000000,{400 * n},{5 + n}\n" for n in range(5))
    trace.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + rows)
    code, _, err = here.run("up", "--detach")
    assert code == 0, err
    before = here.processes()
    code, _, err = here.run("demo", "--trace", str(trace), "--json", str(tmp_path / "report.json"))
    assert code == 0, err
    found = json.loads((tmp_path / "report.json").read_text())
    assert_sound(found, 5)
    assert (found["speed"], found["own_stack"], found["slots"]) == (1.0, False, 32)
    assert found["limits"]["llm"] == {"requests_per_minute": 600, "tokens_per_minute": 600_000}
    assert found["tokens_in"] == 400 * 10
    assert found["tokens_out"] == 5 * 5 + 10
    assert [process for process in before if not is_alive(process)] == []
    code, out, err = here.run("demo", *FEW)
    assert (code, out) == (ExitCode.USAGE, "")
    assert "laxity down" in err
    assert "Traceback" not in err


@pytest.mark.slow
def test_nothing_is_lost_or_doubled_when_runner_and_scheduler_are_killed(here: Here) -> None:
    process = here.start("demo", *SLOW, "--json", "-")
    wait_until(lambda: here.effects() >= 5, RUN_S)
    for role in ("runner", "scheduler"):
        os.kill(here.of_role(role)[0], signal.SIGKILL)
    out, err = process.communicate(timeout=RUN_S)
    assert process.returncode == 0, err
    assert_sound(json.loads(out), 60)


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_an_interrupted_run_leaves_nothing_running(here: Here, number: signal.Signals) -> None:
    process = here.start("demo", *SLOW)
    wait_until(lambda: here.effects() >= 3, RUN_S)
    running = here.processes()
    process.send_signal(number)
    _, err = process.communicate(timeout=RUN_S)
    assert process.returncode == ExitCode.INTERRUPTED, err
    assert "Traceback" not in err
    assert len(running) == 5
    assert [one for one in running if is_alive(one)] == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--tasks", "0"), "--tasks"),
        (("--trace", "absent.csv"), "absent.csv"),
        (("--json", "absent/report.json"), "--json"),
        (("--speed", "0"), "--speed"),
    ],
)
def test_wishes_that_cannot_be_fulfilled(here: Here, arguments: tuple[str, ...], said: str) -> None:
    code, out, err = here.run("demo", *arguments)
    assert (code, out) == (ExitCode.USAGE, "")
    assert said in err
    assert "Traceback" not in err
