"""A runner's logs: one JSON object a line on stderr. Payloads, results and keys are never logged.

Events: runner.registered, runner.draining, runner.left_behind, runner.group_not_left, runner.bug, runner.ended; intake.failed, partition.end_unknown,
consumer.error, offsets.not_committed; dispatch.poison; outcome.not_written; leases.not_renewed, lease.not_released;
attempt.left_to_its_lease; agent.raised, agent.missing.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import MutableMapping
from typing import Any, Final

import structlog

from laxity.schemas.lines import Lines
from laxity.schemas.masking import Mask, guard_tracebacks, mask_of

VALUE_CHARS_MAX: Final = 2_048  # a message of an agent may be of any length


def configure(level: str) -> None:
    """For the whole process; `level` as the standard library names it. Lines of other libraries take the same way.

    Lines and tracebacks are masked.
    """
    mask = mask_of(os.environ)
    guard_tracebacks(mask)
    last: list[structlog.typing.Processor] = [
        structlog.processors.format_exc_info,
        _Bounded(mask),
        structlog.processors.JSONRenderer(),
        lambda _logger, _method, line: mask(str(line)),
    ]
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    descriptor = sys.stderr.fileno()
    structlog.configure(
        processors=[*shared, *last],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: Lines(descriptor),
        cache_logger_on_first_use=True,
    )
    foreign = logging.StreamHandler(sys.stderr)
    foreign.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder()],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    logging.basicConfig(
        level=max(logging.getLevelNamesMapping()[level.upper()], logging.WARNING), handlers=[foreign]
    )


class _Bounded:
    """Masks before it cuts: half a secret would be none that a mask knows."""

    def __init__(self, mask: Mask) -> None:
        self._mask = mask

    def __call__(self, _: Any, __: str, fields: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        return {
            name: self._mask(value)[:VALUE_CHARS_MAX] if isinstance(value, str) else value
            for name, value in fields.items()
        }
