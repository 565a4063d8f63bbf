"""Start a stack in the background and end it: what `up --detach`, `down` and the tests call."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from signal import SIGKILL, SIGTERM

from laxity.infra.local.child import tail
from laxity.infra.local.data_dir import LOCK_WAIT_MS, DataDir, held, read_record
from laxity.infra.local.endpoints import Endpoints, supervisor_of
from laxity.infra.local.errors import StackError
from laxity.infra.local.pids import is_alive, send
from laxity.infra.local.plan import StackPlan, to_json
from laxity.infra.local.software import prepare
from laxity.infra.local.survivors import end_survivors
from laxity.schemas.timing import SystemClock

START_TIMEOUT_MS = 120_000  # an empty cache on a slow line is fetched before
DOWN_TIMEOUT_MS = 60_000  # four stages of at most 15 s
POLL_S = 0.05


def running_roles(data: DataDir) -> frozenset[str] | None:
    """Roles of the stack that runs in the directory, None if none does."""
    record = read_record(data)
    if record is None or supervisor_of(record) is None:
        return None
    return frozenset(row["role"] for row in record["processes"])


def start_detached(
    plan: StackPlan,
    *,
    chosen_ports: Mapping[str, int] | None = None,
    report: Callable[[str], None] = lambda _: None,
) -> Endpoints:
    """Start the plan's supervisor in a session of its own; returns once everything is ready.

    A stack that already runs there with the plan's roles is left as it is. StackError if it has fewer
    roles, or if something does not get ready (then nothing is left running).
    """
    present = running_roles(plan.data)
    if present is not None:
        return _already(plan, present)
    prepare(plan)  # here, so that the progress bar is seen
    plan.data.create()
    log_path = plan.data.logs / "supervisor.log"
    with log_path.open("ab") as log:
        daemon = subprocess.Popen(
            [sys.executable, "-m", "laxity.infra.local.daemon"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
            text=True,
        )
    try:
        return _follow(daemon, {"plan": to_json(plan), "ports": dict(chosen_ports or {})}, report, log_path)
    except BaseException:
        daemon.send_signal(SIGTERM)
        daemon.wait()
        raise
    finally:
        assert daemon.stdout is not None
        daemon.stdout.close()
        daemon.returncode = daemon.poll() or 0  # it lives on by intent: no warning about an unreaped child


def _already(plan: StackPlan, present: frozenset[str]) -> Endpoints:
    """Addresses of the stack that is there, once it is ready: another `up` may just be starting it."""
    if not plan.roles <= present:
        lacking = ", ".join(sorted(plan.roles - present))
        raise StackError(
            f"a stack without {lacking} runs in {plan.data.root}", "", "laxity down, then laxity up"
        )
    clock = SystemClock()
    until_ms = clock.monotonic_ms() + START_TIMEOUT_MS
    while clock.monotonic_ms() < until_ms:
        record = read_record(plan.data)
        if record is None or supervisor_of(record) is None:
            raise StackError(
                f"the stack in {plan.data.root} ended while it was starting", "", "laxity up again"
            )
        if record["ready"]:
            return Endpoints(**record["endpoints"])
        time.sleep(POLL_S)
    raise StackError(
        f"the stack in {plan.data.root} is not ready", "a role is stopped or starting", "laxity status"
    )


def _follow(
    daemon: "subprocess.Popen[str]", request: Mapping[str, object], report: Callable[[str], None], log: Path
) -> Endpoints:
    """Hand over the request, pass on the daemon's lines until it is ready or gone."""
    assert daemon.stdin is not None
    assert daemon.stdout is not None
    daemon.stdin.write(json.dumps(request))
    daemon.stdin.close()
    for line in daemon.stdout:
        message = json.loads(line)
        if "ready" in message:
            return Endpoints(**message["ready"])
        if "error" in message:
            raise StackError(*message["error"])
        report(message["line"])
    raise StackError("the supervisor ended before the stack was ready", tail(log), f"see {log}")


def stop(data: DataDir) -> bool:
    """End the stack of the data directory, or what is left of one; returns whether anything ran. Blocks."""
    clock = SystemClock()
    supervisor = supervisor_of(read_record(data))
    if supervisor is None:
        return _clear(data) > 0
    send(supervisor, SIGTERM)
    until_ms = clock.monotonic_ms() + DOWN_TIMEOUT_MS
    while is_alive(supervisor):
        if clock.monotonic_ms() > until_ms:
            send(supervisor, SIGKILL)
            break
        time.sleep(POLL_S)
    _clear(data)
    return True


def _clear(data: DataDir) -> int:
    """End survivors under the lock; 0 if the directory does not exist."""
    if not data.root.exists():
        return 0
    with held(data, wait_ms=LOCK_WAIT_MS) as free:
        if not free:
            raise StackError(f"{data.root} is in use", "a supervisor is just starting or ending", "try again")
        return end_survivors(data)
