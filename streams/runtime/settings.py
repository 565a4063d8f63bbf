"""Knobs of one scheduler process. Where the servers are is `laxity.schemas.settings`; what is scheduled how is `laxity.toml`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

BACKLOG_MAX = (
    500_000  # waiting tasks per shard and tier: some 100 MB of state; beyond it triggers wait in Kafka
)
STANDBYS = 1  # with two processes every takeover is a warm one


class HostSettings(BaseSettings):
    """Arguments win over LAXITY_SCHEDULER_* variables, those over defaults."""

    model_config = SettingsConfigDict(
        env_prefix="LAXITY_SCHEDULER_", frozen=True, extra="forbid", populate_by_name=True
    )

    data_dir: Path = Field(default=Path(".laxity"), validation_alias="LAXITY_DATA_DIR")
    state_dir: Path | None = (
        None  # this process's own directory; default: the first free one under data_dir/state
    )
    http_host: str = "127.0.0.1"
    http_port: Annotated[int, Field(ge=0, le=65_535)] = 0  # 0: a free one
    accept_skip: Annotated[tuple[str, ...], NoDecode] = ()  # TOPIC:PARTITION:OFFSET, separated by commas
    standbys: Annotated[int, Field(ge=0)] = STANDBYS  # processes beside the owner that copy a shard; 0: none
    backlog_max: Annotated[int, Field(ge=1)] = BACKLOG_MAX
    log_level: str = "info"

    @field_validator("accept_skip", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("accept_skip")
    @classmethod
    def _well_formed(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for word in value:
            topic, _, numbers = word.partition(":")
            partition, _, offset = numbers.partition(":")
            if not (topic and _number(partition) and _number(offset)):
                raise ValueError(f"accept-skip is {word!r}; TOPIC:PARTITION:OFFSET is needed")
        return value

    @field_validator("log_level")
    @classmethod
    def _known_level(cls, value: str) -> str:
        if value.lower() not in {"debug", "info", "warning", "error"}:
            raise ValueError(f"log level is {value!r}; debug, info, warning or error")
        return value.lower()


def _number(text: str) -> bool:
    return text.isascii() and text.isdecimal()
