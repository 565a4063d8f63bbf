"""Where the servers are and under which prefix we live: one frozen object per process, from LAXITY_* variables or given by hand."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from pydantic import Field, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from laxity.schemas.masking import PROPERTY_PREFIX, SECRET_FILE_BYTES_MAX, properties_of
from laxity.schemas.safety import exposed, holds_secret, unsafe_kafka, unsafe_redis
from laxity.schemas.topics import PREFIX_DEFAULT, Names


class SettingsError(ValueError):
    """A variable or a file of properties cannot be used, or is not safe to use."""


class Settings(BaseSettings):
    """Arguments win over LAXITY_* variables, those over defaults. Addresses that are empty are not configured.

    A password comes in the URL or from a file, which then has the last word. What safety.py refuses is refused here.
    """

    model_config = SettingsConfigDict(
        env_prefix="LAXITY_",
        frozen=True,
        extra="forbid",
        populate_by_name=True,
        hide_input_in_errors=True,  # a refused URL holds a password
    )

    kafka: str = ""  # bootstrap servers
    redis_password_file: Path | None = None  # before the URLs: they take its content
    registry_password_file: Path | None = None
    registry_url: str = Field(
        default="", repr=False
    )  # with its path, such as http://127.0.0.1:8081/apis/ccompat/v7
    redis_url: str = Field(default="", repr=False)
    redis_trusted_version: str = ""  # such as 7.0.15: its known holes are mended by the distribution
    provider_url: str = Field(default="", repr=False)
    prefix: str = PREFIX_DEFAULT
    kafka_config: Path | None = None  # file of librdkafka properties, one `key=value` a line

    @field_validator("prefix")
    @classmethod
    def _prefix_fits_kafka(cls, value: str) -> str:
        return Names(value).prefix

    @field_validator("registry_url")
    @classmethod
    def _registry(cls, value: str, info: ValidationInfo) -> str:
        return with_password(value, info.data.get("registry_password_file")).rstrip("/")

    @field_validator("redis_url")
    @classmethod
    def _redis(cls, value: str, info: ValidationInfo) -> str:
        url = with_password(value, info.data.get("redis_password_file"))
        if url and (reason := unsafe_redis(url)):
            raise ValueError(reason)
        return url

    @property
    def names(self) -> Names:
        """Puts the prefix before names."""
        return Names(self.prefix)

    def kafka_properties(self, env: Mapping[str, str] | None = None) -> dict[str, str]:
        """The user's librdkafka properties: those of the file, then LAXITY_KAFKA__X__Y over them.

        SettingsError for a file that cannot be read or that others can read, and for what is not safe.
        """
        found = self._file_properties() | _variables(os.environ if env is None else env)
        if reason := unsafe_kafka(found):
            raise SettingsError(f"Kafka: {reason}")
        return found

    def _file_properties(self) -> dict[str, str]:
        if self.kafka_config is None:
            return {}
        try:
            found = properties_of(self.kafka_config.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(
                f"LAXITY_KAFKA_CONFIG: {self.kafka_config} cannot be read: {error}"
            ) from error
        except ValueError as error:
            raise SettingsError(f"{self.kafka_config}:{error}") from error
        if holds_secret(found) and (reason := exposed(self.kafka_config)):
            raise SettingsError(f"LAXITY_KAFKA_CONFIG: {reason}")
        return found


def with_password(url: str, file: Path | None) -> str:
    """The URL with the file's content as its password. ValueError for a file that is unreadable, empty, or open to others."""
    if not url or file is None:
        return url
    if reason := exposed(file):
        raise ValueError(reason)
    try:
        with file.open(encoding="utf-8") as opened:
            password = opened.read(SECRET_FILE_BYTES_MAX).strip()
    except OSError as error:
        raise ValueError(f"{file}: {error.strerror}") from error
    if not password:
        raise ValueError(f"{file} is empty")
    parts = urlsplit(url)
    user, _, place = parts.netloc.rpartition("@")
    name = user.partition(":")[0]
    return parts._replace(netloc=f"{name}:{quote(password, safe='')}@{place}").geturl()


def _variables(env: Mapping[str, str]) -> dict[str, str]:
    return {
        name.removeprefix(PROPERTY_PREFIX).replace("__", ".").lower(): value
        for name, value in env.items()
        if name.startswith(PROPERTY_PREFIX)
    }


def settings(**given: Any) -> Settings:
    """Settings from the environment with `given` over it; None counts as not given."""
    return Settings(**{name: value for name, value in given.items() if value is not None})
