"""Reports, pace, health, crash points and the command line."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from laxity.consumers.errors import RunnerConfigError
from laxity.consumers.health import serving
from laxity.consumers.metrics import RunnerMetrics
from laxity.consumers.pace import PREFETCH_MAX, WAIT_MS, Pace
from laxity.consumers.reports import MESSAGE_BYTES_MAX, Reporter, Verdict
from laxity.consumers.testing import ManualTime, MemoryOutcomes
from laxity.infra.cli import main


@pytest.mark.parametrize(("duration_ms", "prefetch"), [(0, 800), (1, 800), (100, 8), (10_000, 1)])
def test_as_many_wait_as_start_within_the_bound(duration_ms: int, prefetch: int) -> None:
    pace = Pace(slots=16)
    assert pace.prefetch() == 1
    pace.took(duration_ms)
    assert pace.prefetch() == prefetch == max(16 * WAIT_MS // max(duration_ms, 1), 1)
    assert Pace(slots=16, fixed=0).prefetch() == 0


def test_the_prefetch_has_a_limit() -> None:
    pace = Pace(slots=10_000)
    pace.took(1)
    assert pace.prefetch() == PREFETCH_MAX


@given(st.text(max_size=3_000))
async def test_messages_are_cut_to_whole_characters(text: str) -> None:
    time, sink = ManualTime(), MemoryOutcomes()
    reporter = Reporter(sink, runner="r", clock=time.clock, sleep=time.sleep)
    dispatch: Any = type(
        "D", (), {"task_id": "t", "generation": 0, "dispatch_no": 1, "attempt": 1, "shard": 0}
    )
    await reporter.ended(dispatch, Verdict(kind="failed", code="c" * 200, message=text), used={}, usage={})
    message = sink.last.message
    assert len(message.encode()) <= MESSAGE_BYTES_MAX
    assert text.encode("utf-8", "replace").decode().startswith(message)
    assert len(sink.last.code) == 64


def test_health_answers_while_it_is_asked() -> None:
    alive, ready = [True], [False]
    metrics = RunnerMetrics()
    with serving(
        host="127.0.0.1", port=0, alive=lambda: alive[0], ready=lambda: ready[0], registry=metrics.registry
    ) as port:
        base = f"http://127.0.0.1:{port}"
        assert httpx.get(f"{base}/livez").status_code == 200
        assert httpx.get(f"{base}/readyz").status_code == 503
        ready[0], alive[0] = True, False
        assert httpx.get(f"{base}/readyz").text == "ok\n"
        assert httpx.get(f"{base}/livez").text == "a loop hangs\n"
        assert "laxity_runner_slots " in httpx.get(f"{base}/metrics").text


def test_a_port_that_is_taken_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with (
            pytest.raises(RunnerConfigError, match=str(port)),
            serving(host="127.0.0.1", port=port, alive=bool, ready=bool, registry=RunnerMetrics().registry),
        ):
            pass


CRASH = "from laxity.schemas.crashpoints import reach\nfor n in range(5): print(n, flush=True); reach('here')"


@pytest.mark.parametrize(
    ("armed", "code", "printed"),
    [("here:3", -signal.SIGKILL, "012"), ("there:1", 0, "01234"), ("", 0, "01234"), ("here:0", 1, "")],
)
def test_a_crash_point_kills_at_the_named_reach(armed: str, code: int, printed: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CRASH],
        env={**os.environ, "CRASHPOINT": armed},
        capture_output=True,
        check=False,
    )
    assert done.returncode == code
    assert done.stdout.decode().replace("\n", "") == printed


AGENT = """
from laxity.consumers import AgentContext, agent

@agent("a"{extra})
async def a(ctx: AgentContext) -> None: ...
"""


@pytest.mark.parametrize(
    ("arguments", "extra", "words"),
    [
        (["nowhere"], "", "there is no module 'nowhere'"),
        (["mine", "--slots", "0"], "", "slots: Input should be greater than or equal to 1"),
        (["mine"], ', on_unknown="retry"', 'write [types.a] on_unknown = "retry"'),
        (["mine"], ', on_unknown="hope"', "agent 'a': on_unknown is 'hope'"),
        (["mine", "--fleet", "gpu"], "", "fleet 'gpu' has no agent here"),
        (["mine"], "", "no Redis address: set LAXITY_REDIS_URL"),
        (["mine", "--log-level", "loud"], "", "--log-level 'loud'"),
    ],
)
def test_wrong_usage_is_one_line_and_two(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    extra: str,
    words: str,
) -> None:
    (tmp_path / "mine.py").write_text(AGENT.format(extra=extra))
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("LAXITY_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr("laxity.consumers.logs.configure", lambda _: None)  # it would last beyond this test
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    monkeypatch.setattr(sys, "argv", ["laxity", "agents", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    out, text = capsys.readouterr()
    assert words in text
    assert (ended.value.code, text.count("\n"), out) == (2, 1, "")


def test_log_lines_are_json_and_bounded(tmp_path: Path) -> None:
    program = (
        "import logging, structlog; from laxity.consumers.logs import configure; configure('info');"
        "structlog.get_logger('x').info('runner.ended', text='y' * 5000);"
        "logging.getLogger('other').warning('a %s', 'line')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    first, second = (json.loads(line) for line in done.stderr.decode().splitlines())
    assert (first["event"], len(first["text"])) == ("runner.ended", 2_048)
    assert (second["event"], second["level"]) == ("a line", "warning")
