"""Structured logs: JSON lines on stderr, and the catalogue of event names. No task id, key or payload is logged: events of tasks are records."""

from __future__ import annotations

import logging
import os
import sys
from enum import StrEnum

import structlog

from laxity.schemas.lines import Lines
from laxity.schemas.masking import Mask, guard_tracebacks, mask_of

FIELD_CHARS_MAX = 2_048  # a hostile text must not fill a disk


class Event(StrEnum):
    """What may be logged, with the level that it is logged at."""

    STARTED = "scheduler.started"  # info: process is up; name, state directory, group
    STOPPING = "scheduler.stopping"  # info: a signal came
    STOPPED = "scheduler.stopped"  # info
    FAILED = "scheduler.failed"  # error: a bug; the process ends
    SHARDS_MANY = "scheduler.shards_many"  # warning: more shards than one process serves well
    GRANTED = "shard.granted"  # info: the group gave us the shard
    REVOKED = "shard.revoked"  # info: the group took it back
    FENCED = "shard.fenced"  # warning: another owner exists
    REFUSED = "shard.refused"  # error: an operator must look at it
    STARTS_OVER = "shard.starts_over"  # warning: with the reason
    WIPED = "shard.wiped"  # warning: the local copy was useless, with the reason
    RESTORING = "shard.restoring"  # info: progress
    RESTORED = "shard.restored"  # info: rows, milliseconds
    STANDBY = "shard.standby"  # info: a warm copy of another process's shard is kept here, or no longer; warning: it cannot be
    RUNNING = "shard.running"  # info: positions
    ABORTED = "batch.aborted"  # warning: nothing was written, the same input is tried again
    LEDGER_SILENT = "ledger.silent"  # warning: no answer in time, once per outage
    LEDGER_BACK = "ledger.back"  # info
    LEDGER_UNPATCHED = "ledger.unpatched"  # warning: on this machine only; elsewhere such a server is refused
    RECONCILED = "ledger.reconciled"  # info: lapsed, dropped, restored
    RESCUED = "peer.rescued"  # warning: a dead process's transactions were aborted
    UNREADABLE = "input.unreadable"  # error: records that nobody can read were passed; pointers to them are dead letters
    KAFKA = "kafka.error"  # warning: what the client library reports


class _Shorten:
    """Masks before it cuts: half a secret would be none that a mask knows."""

    def __init__(self, mask: Mask) -> None:
        self._mask = mask

    def __call__(
        self, _logger: object, _method: str, fields: structlog.typing.EventDict
    ) -> structlog.typing.EventDict:
        for name, value in fields.items():
            if isinstance(value, str) and len(value) > FIELD_CHARS_MAX:
                fields[name] = self._mask(value)[:FIELD_CHARS_MAX] + "…"
        return fields


def configure(level: str = "info") -> None:
    """Once per process. `level`: debug, info, warning or error. Lines and tracebacks are masked."""
    mask = mask_of(os.environ)
    guard_tracebacks(mask)
    number, descriptor = logging.getLevelNamesMapping()[level.upper()], sys.stderr.fileno()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            _Shorten(mask),
            structlog.processors.JSONRenderer(ensure_ascii=True),
            lambda _logger, _method, line: mask(str(line)),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=lambda *_: Lines(descriptor),
        cache_logger_on_first_use=True,
    )


def logger(**fields: object) -> structlog.typing.FilteringBoundLogger:
    """A logger that puts `fields` on each line."""
    bound: structlog.typing.FilteringBoundLogger = structlog.get_logger(**fields)
    return bound
