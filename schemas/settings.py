"""Where the servers are and under which prefix we live: one frozen object per process, from LAXITY_* variables or given by hand."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from laxity.schemas.topics import PREFIX_DEFAULT, Names

PROPERTY_PREFIX = "LAXITY_KAFKA__"  # LAXITY_KAFKA__SECURITY__PROTOCOL is security.protocol
REGISTRY_PATH = "/apis/ccompat/v7"  # Apicurio serves the Confluent API there


class SettingsError(ValueError):
    """A variable or a file of properties cannot be used."""


class Settings(BaseSettings):
    """Arguments win over LAXITY_* variables, those over defaults. Addresses that are empty are not configured."""

    model_config = SettingsConfigDict(
        env_prefix="LAXITY_", frozen=True, extra="forbid", populate_by_name=True
    )

    kafka: str = ""  # bootstrap servers
    registry_url: str = ""  # with its path, such as http://127.0.0.1:8081/apis/ccompat/v7
    redis_url: str = Field(default="", repr=False)  # holds a password
    provider_url: str = ""
    prefix: str = PREFIX_DEFAULT
    kafka_config: Path | None = None  # file of librdkafka properties, one `key=value` a line

    @field_validator("prefix")
    @classmethod
    def _prefix_fits_kafka(cls, value: str) -> str:
        return Names(value).prefix

    @field_validator("registry_url")
    @classmethod
    def _no_slash_at_the_end(cls, value: str) -> str:
        return value.rstrip("/")

    @property
    def names(self) -> Names:
        """Puts the prefix before names."""
        return Names(self.prefix)

    def kafka_properties(self, env: Mapping[str, str] | None = None) -> dict[str, str]:
        """The user's librdkafka properties: those of the file, then LAXITY_KAFKA__X__Y over them. SettingsError for a file that cannot be read."""
        return self._file_properties() | _variables(os.environ if env is None else env)

    def _file_properties(self) -> dict[str, str]:
        if self.kafka_config is None:
            return {}
        try:
            lines = self.kafka_config.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(
                f"LAXITY_KAFKA_CONFIG: {self.kafka_config} cannot be read: {error}"
            ) from error
        found = {}
        for number, line in enumerate(lines, start=1):
            if not line.strip() or line.lstrip().startswith(("#", "!")):
                continue
            key, equals, value = line.partition("=")
            if not equals or not key.strip():
                raise SettingsError(f"{self.kafka_config}:{number}: expected key=value")
            found[key.strip()] = value.strip()
        return found


def _variables(env: Mapping[str, str]) -> dict[str, str]:
    return {
        name.removeprefix(PROPERTY_PREFIX).replace("__", ".").lower(): value
        for name, value in env.items()
        if name.startswith(PROPERTY_PREFIX)
    }


def settings(**given: Any) -> Settings:
    """Settings from the environment with `given` over it; None counts as not given."""
    return Settings(**{name: value for name, value in given.items() if value is not None})
