"""Run one scheduler process until a signal ends it."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

from laxity.schemas.config import Config
from laxity.schemas.settings import Settings
from laxity.streams.runtime.assembly import Assembly
from laxity.streams.runtime.logs import configure
from laxity.streams.runtime.settings import HostSettings

INTERRUPTED = 130
SWITCH_S = (
    0.0005  # between threads of the interpreter: at 5 ms four busy shards would outwait the ledger's 20 ms
)


def scheduler(settings: Settings, knobs: HostSettings, config: Config) -> int:
    """The exit code: 0 after SIGTERM, 130 after Ctrl-C, 1 after a failure. A second signal ends at once with 130.

    Raises what Assembly raises where the process cannot even start.
    """
    configure(knobs.log_level)
    sys.setswitchinterval(SWITCH_S)
    assembly = Assembly(settings, knobs, config)
    heard: list[int] = []

    def on_signal(number: int, _: FrameType | None) -> None:
        if heard:
            os._exit(INTERRUPTED)
        heard.append(number)
        assembly.host.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    code = assembly.run()
    code = INTERRUPTED if code == 0 and signal.SIGINT in heard else code
    if assembly.host.left_behind:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # what a thread holds that never comes back would be waited for
    return code
