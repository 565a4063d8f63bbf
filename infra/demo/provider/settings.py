"""What a provider is started with, checked once."""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING

from laxity.infra.demo.generator import FAILURE_RATE

if TYPE_CHECKING:
    from pathlib import Path

    from laxity.schemas.config import Rate

PER_MINUTE_MAX = 10**12  # far above any real limit; keeps a slip of the keyboard from meaning "no limit"
DRAIN_MS = 30_000  # the longest ordinary call: 1,000 generated tokens take 20 s at speed 1
_MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,99}")  # it becomes a metric label


class ProviderSettingsError(ValueError):
    """A setting that cannot be; the message names it, its value and what is allowed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelLimit:
    """A model on offer and its limits per minute at speed 1."""

    name: str
    requests_per_minute: int
    tokens_per_minute: int

    def __post_init__(self) -> None:
        if not _MODEL_NAME.fullmatch(self.name):
            raise ProviderSettingsError(
                f"model name is {self.name!r}; up to 100 letters, digits and ._/- are allowed"
            )
        for what in ("requests_per_minute", "tokens_per_minute"):
            value = getattr(self, what)
            if not 1 <= value <= PER_MINUTE_MAX:
                raise ProviderSettingsError(
                    f"model {self.name}: {what} is {value}; 1 to {PER_MINUTE_MAX} are allowed"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderSettings:
    """One provider. Port 0 takes a free one; `speed` divides service times and multiplies limits."""

    ledger: Path
    models: tuple[ModelLimit, ...]
    host: str = "127.0.0.1"
    port: int = 0
    speed: float = 1.0
    dedupe: bool = True
    inject_429: float = 0.0
    inject_500: float = FAILURE_RATE
    inject_lost: float = 0.0
    seed: int = 0
    drain_ms: int = DRAIN_MS

    def __post_init__(self) -> None:
        names = [model.name for model in self.models]
        if not names or len(set(names)) < len(names):
            raise ProviderSettingsError(f"models are {names}; at least one is needed, each name once")
        if not 0 <= self.port <= 65_535:
            raise ProviderSettingsError(f"port is {self.port}; 0 to 65535 are allowed")
        if not 0 < self.speed < inf:
            raise ProviderSettingsError(f"speed is {self.speed}; it must be above 0 and finite")
        if self.drain_ms < 1_000:
            raise ProviderSettingsError(f"drain_ms is {self.drain_ms}; at least 1000 are needed")
        for what in ("inject_429", "inject_500", "inject_lost"):
            if not 0 <= getattr(self, what) <= 1:
                raise ProviderSettingsError(f"{what} is {getattr(self, what)}; a rate from 0 to 1 is allowed")


def parse_model(text: str) -> ModelLimit:
    """`NAME:RPM:TPM` as on the command line."""
    name, _, limits = text.partition(":")
    requests, _, tokens = limits.partition(":")
    if not (requests.isascii() and requests.isdecimal() and tokens.isascii() and tokens.isdecimal()):
        raise ProviderSettingsError(f"model is {text!r}; NAME:RPM:TPM is needed, as in small:600:400000")
    return ModelLimit(name=name, requests_per_minute=int(requests), tokens_per_minute=int(tokens))


def model_of(rate: Rate) -> ModelLimit:
    """A model with the limits of a resource; a dimension that is not limited there (0) gets the most there is."""
    return ModelLimit(
        name=rate.name,
        requests_per_minute=rate.requests_per_minute or PER_MINUTE_MAX,
        tokens_per_minute=rate.tokens_per_minute or PER_MINUTE_MAX,
    )
