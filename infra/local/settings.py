"""Settings of the local stack, from the environment; flags of the command line come on top."""

import os
from pathlib import Path

from pydantic import Field, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from laxity.schemas.settings import with_password

MAVEN_CENTRAL = "https://repo.maven.apache.org/maven2"


def _default_cache_dir() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "laxity"


class StackSettings(BaseSettings):
    """Where data and downloads live, and which existing services to use instead of our own."""

    model_config = SettingsConfigDict(
        env_prefix="LAXITY_", frozen=True, extra="ignore", env_ignore_empty=True, hide_input_in_errors=True
    )

    data_dir: Path = Path(".laxity")
    cache_dir: Path = Field(default_factory=_default_cache_dir)
    kafka: str = ""  # bootstrap servers of an existing Kafka
    redis_password_file: Path | None = None  # before the URLs: they take its content
    registry_password_file: Path | None = None
    registry_url: str = Field(default="", repr=False)  # full base URL of an existing registry, with its path
    redis_url: str = Field(default="", repr=False)
    provider_url: str = Field(default="", repr=False)
    config: str = ""  # path of laxity.toml, passed on to our processes
    prefix: str = "laxity."
    maven_url: str = MAVEN_CENTRAL  # a mirror with the same layout

    @field_validator("registry_url", "redis_url")
    @classmethod
    def _with_password(cls, value: str, info: ValidationInfo) -> str:
        file = info.data.get(f"{(info.field_name or '').removesuffix('_url')}_password_file")
        return with_password(value, file)
