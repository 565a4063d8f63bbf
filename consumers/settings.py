"""A runner's own settings: LAXITY_AGENTS_* variables, or given by hand. One frozen object per process."""

from __future__ import annotations

from typing import Final

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

SLOTS_MAX: Final = 10_000  # coroutines of one Python process; more is another process
GRACE_MS_MAX: Final = 3_600_000  # a supervisor that waits longer for a process is not one


class RunnerSettings(BaseSettings):
    """Arguments win over LAXITY_AGENTS_* variables, those over defaults."""

    model_config = SettingsConfigDict(env_prefix="LAXITY_AGENTS_", frozen=True, extra="forbid")

    fleet: str | None = None  # None: that of the agents, if it is one
    slots: int = Field(default=16, ge=1, le=SLOTS_MAX)  # attempts that run at the same time
    prefetch: int | None = Field(default=None, ge=0, le=SLOTS_MAX)  # None: follows the agents' durations
    grace_ms: int = Field(default=30_000, ge=0, le=GRACE_MS_MAX)  # of SIGTERM, for what runs
    http_host: str = "127.0.0.1"
    http_port: int = Field(default=0, ge=0, le=65_535)  # 0: any free one
