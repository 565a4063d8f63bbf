"""What `laxity.toml` says, checked: resources, fleets, types, tiers, prices, policy. Frozen; the same in every process.

`load` finds and reads the file; `parse` takes its text. Both raise `ConfigError`, whose message names the key, the value and the limit.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib import resources as package_files
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from laxity.schemas.topics import TIERS

Policy = Literal["edf", "strict"]
OnUnknown = Literal["retry", "reconcile", "park"]
DEFAULT_FLEET = "default"
CONFIG_FILE = "laxity.toml"


class ConfigError(ValueError):
    """The configuration cannot be used; the text says where and why, one problem per line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """A bucket refilled continuously. 0 in a dimension: that one is not limited. A demand counts LLM tokens and one request."""

    name: str
    requests_per_minute: int
    tokens_per_minute: int
    burst_requests: int  # what a full bucket holds
    burst_tokens: int
    kind: Literal["rate"] = "rate"


@dataclass(frozen=True, slots=True, kw_only=True)
class Slots:
    """Places to be held at the same time."""

    name: str
    capacity: int
    kind: Literal["slots"] = "slots"


@dataclass(frozen=True, slots=True, kw_only=True)
class Keyed:
    """`capacity` places for each key; asked as `name:key`."""

    name: str
    capacity: int
    kind: Literal["keyed"] = "keyed"


Resource = Rate | Slots | Keyed


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """Runners of the same agents; `partitions` is the most that can share its topic."""

    name: str
    partitions: int = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskType:
    """Defaults of a task type. `demands` are added to those that a trigger does not name."""

    name: str
    fleet: str = DEFAULT_FLEET
    estimate_ms: int = 0
    max_attempts: int = 4
    on_unknown: OnUnknown = "park"
    backoff_ms: int = 1_000
    backoff_ms_max: int = 60_000
    demands: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tier:
    """`index` 0 is the most urgent; `floor_permille` is the tier's guaranteed share of dispatches in thousandths."""

    name: str
    index: int
    deadline_ms: int
    floor_permille: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """Millionths of the currency, per LLM token or call."""

    tokens_in: int = 0
    tokens_out: int = 0
    requests: int = 0

    def cost_micros(self, usage: Mapping[str, int]) -> int:
        """Cost of the counts `tokens_in`, `tokens_out` and `requests`; other counts cost nothing."""
        return (
            self.tokens_in * usage.get("tokens_in", 0)
            + self.tokens_out * usage.get("tokens_out", 0)
            + self.requests * usage.get("requests", 0)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """All of it. `tiers` has the order of TIERS; the maps are read-only and in the order of their names."""

    policy: Policy
    resources: Mapping[str, Resource]
    fleets: Mapping[str, Fleet]
    types: Mapping[str, TaskType]
    tiers: tuple[Tier, ...]
    prices: Prices
    source: str = field(default="", compare=False)  # where it was read, for messages

    def type_of(self, name: str) -> TaskType:
        """The type as configured; one that is not configured has the defaults."""
        return self.types.get(name) or TaskType(name=name)

    def tier(self, name: str) -> Tier:
        """KeyError for a name that is not in TIERS."""
        return self.tiers[_TIER_INDEX[name]]

    def resource_of(self, demand: str) -> Resource | None:
        """The resource of a demand's name: `account` for `account:acme`; None if there is none."""
        return self.resources.get(demand.partition(":")[0])

    def fingerprint(self) -> str:
        """64 hex digits over the canonical JSON of all values; the source does not count."""
        return hashlib.sha256(self.canonical().encode()).hexdigest()

    def canonical(self) -> str:
        """JSON with sorted keys and no spaces: equal for equal configurations, whatever their files look like."""
        document = {
            "policy": self.policy,
            "resources": {name: asdict(r) for name, r in self.resources.items()},
            "fleets": {name: asdict(f) for name, f in self.fleets.items()},
            "types": {name: asdict(replace(t, demands=dict(t.demands))) for name, t in self.types.items()},
            "tiers": [asdict(t) for t in self.tiers],
            "prices": asdict(self.prices),
        }
        return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


_TIER_INDEX = MappingProxyType({name: index for index, name in enumerate(TIERS)})


def load(path: Path | str | None = None, env: Mapping[str, str] | None = None) -> Config:
    """`path`, else LAXITY_CONFIG, else ./laxity.toml, else the packaged file; then LAXITY_POLICY, if set, over its policy.

    A file that was named and cannot be read is a ConfigError, never replaced by another.
    """
    variables = os.environ if env is None else env
    named = path or variables.get("LAXITY_CONFIG") or (CONFIG_FILE if Path(CONFIG_FILE).is_file() else None)
    if named is None:
        text, source = packaged_text(), "packaged laxity.toml"
    else:
        text, source = _read(Path(named)), str(named)
    return parse(text, source, policy=variables.get("LAXITY_POLICY") or None)


def packaged_text() -> str:
    """The default configuration as it ships."""
    return package_files.files("laxity.schemas").joinpath(CONFIG_FILE).read_text(encoding="utf-8")


def parse(text: str, source: str = "laxity.toml", *, policy: str | None = None) -> Config:
    """The configuration in a TOML text; `policy` overrides the one in it. `source` is named in errors."""
    from laxity.schemas.config_file import read  # noqa: PLC0415 - the edge imports this module's records

    return read(text, source, policy=policy)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
