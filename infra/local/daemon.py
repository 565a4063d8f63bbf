"""The supervisor in the background: plan on stdin, JSON lines on stdout until ready, then silence.

Its stdout is a pipe to the `up` that started it; once that has its answer, the pipe is replaced by the log.
"""

import json
import os
import sys
from dataclasses import asdict
from typing import Any

from laxity.infra.local.endpoints import Endpoints
from laxity.infra.local.errors import StackError
from laxity.infra.local.plan import from_json
from laxity.infra.local.software import prepare
from laxity.infra.local.supervisor import supervise


def _say(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def _ready(found: Endpoints) -> None:
    _say({"ready": asdict(found)})
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())


def main() -> None:
    """Carry out one request; exit code 1 if the stack does not get ready."""
    request = json.loads(sys.stdin.read())
    plan = from_json(request["plan"])
    try:
        supervise(
            plan,
            prepare(plan),
            chosen_ports=request["ports"],
            report=lambda line: _say({"line": line}),
            on_ready=_ready,
        )
    except StackError as error:
        _say({"error": [error.what, error.why, error.next_step]})
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
