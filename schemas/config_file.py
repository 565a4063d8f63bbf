"""The edge of the configuration: TOML text -> pydantic -> the frozen records of config.py. Nothing else imports pydantic models of it."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from decimal import Decimal
from difflib import get_close_matches
from types import MappingProxyType
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    create_model,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from laxity.schemas import config as c
from laxity.schemas import limits
from laxity.schemas.topics import TIERS
from laxity.schemas.validation import demand_problems

DEADLINES_MS = (30_000, 120_000, 600_000, 3_600_000, 86_400_000)  # in the order of TIERS
FLOORS = ("0.4", "0.25", "0.2", "0.1", "0.05")
BURST_DIVISOR = (
    6  # a sixth of a minute: burst + rate x delay stays far under a provider's bucket of one minute
)

Quantity = Annotated[int, Field(ge=0, le=limits.QUANTITY_MAX)]
Capacity = Annotated[int, Field(ge=1, le=limits.QUANTITY_MAX)]
ResourceName = Annotated[
    str, Field(pattern=f"^{limits.RESOURCE_PATTERN}$", max_length=limits.RESOURCE_CHARS_MAX)
]
FleetName = Annotated[str, Field(pattern=f"^{limits.FLEET_PATTERN}$", max_length=limits.FLEET_CHARS_MAX)]
TypeName = Annotated[str, Field(pattern=f"^{limits.NAME_PATTERN}$", max_length=limits.NAME_CHARS_MAX)]


class _Table(BaseModel):
    """A table of the file: unknown keys are errors, and "5" is not 5."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class _Rate(_Table):
    kind: Literal["rate"]
    requests_per_minute: Quantity = 0
    tokens_per_minute: Quantity = 0
    burst_requests: Quantity = 0
    burst_tokens: Quantity = 0

    @model_validator(mode="after")
    def _limits_something(self) -> _Rate:
        if not self.requests_per_minute and not self.tokens_per_minute:
            raise ValueError("needs requests_per_minute or tokens_per_minute above 0")
        for unit in ("requests", "tokens"):
            burst, rate = getattr(self, f"burst_{unit}"), getattr(self, f"{unit}_per_minute")
            if burst > rate:
                raise ValueError(f"burst_{unit} {burst} is more than {unit}_per_minute {rate}")
        return self

    def record(self, name: str) -> c.Rate:
        return c.Rate(
            name=name,
            requests_per_minute=self.requests_per_minute,
            tokens_per_minute=self.tokens_per_minute,
            burst_requests=self.burst_requests or _burst(self.requests_per_minute),
            burst_tokens=self.burst_tokens or _burst(self.tokens_per_minute),
        )


class _Slots(_Table):
    kind: Literal["slots"]
    capacity: Capacity

    def record(self, name: str) -> c.Slots:
        return c.Slots(name=name, capacity=self.capacity)


class _Keyed(_Table):
    kind: Literal["keyed"]
    capacity: Capacity = 1

    def record(self, name: str) -> c.Keyed:
        return c.Keyed(name=name, capacity=self.capacity)


class _Fleet(_Table):
    partitions: Annotated[int, Field(ge=1, le=limits.PARTITIONS_MAX)] = 16


class _Type(_Table):
    fleet: FleetName = c.DEFAULT_FLEET
    estimate_ms: Annotated[int, Field(ge=0, le=limits.ESTIMATE_MS_MAX)] = 0
    max_attempts: Annotated[int, Field(ge=1, le=limits.ATTEMPTS_MAX)] = 4
    on_unknown: c.OnUnknown = "park"
    backoff_ms: Annotated[int, Field(ge=0, le=limits.BACKOFF_MS_MAX)] = 1_000
    backoff_ms_max: Annotated[int, Field(ge=0, le=limits.BACKOFF_MS_MAX)] = 60_000
    demands: Annotated[dict[str, Quantity], Field(max_length=limits.DEMANDS_MAX)] = {}

    @model_validator(mode="after")
    def _backoff_grows(self) -> _Type:
        if self.backoff_ms > self.backoff_ms_max:
            raise ValueError(
                f"backoff_ms {self.backoff_ms} is more than backoff_ms_max {self.backoff_ms_max}"
            )
        return self


class _Tier(_Table):
    deadline_ms: Annotated[int, Field(ge=1, le=limits.DEADLINE_AHEAD_MS_MAX)] | None = None
    floor: Annotated[Decimal, Field(ge=0, le=1, decimal_places=3, strict=False)] | None = None


class _Prices(_Table):
    tokens_in: Quantity = 0
    tokens_out: Quantity = 0
    requests: Quantity = 0


_TIER_FIELDS: dict[str, Any] = {name: (_Tier, _Tier()) for name in TIERS}
_Tiers: Any = create_model("_Tiers", __base__=_Table, **_TIER_FIELDS)
_Resource = Annotated[_Rate | _Slots | _Keyed, Field(discriminator="kind")]


class _File(_Table):
    policy: c.Policy = "edf"
    resources: dict[ResourceName, _Resource] = {}
    fleets: dict[FleetName, _Fleet] = {}
    types: dict[TypeName, _Type] = {}
    tiers: _Tiers = _Tiers()
    prices: _Prices = _Prices()

    @field_validator("resources")
    @classmethod
    def _fleet_is_ours(cls, value: dict[str, Any]) -> dict[str, Any]:
        taken = [name for name in value if name.startswith("fleet.")]
        if taken:
            raise ValueError(f"{taken[0]}: names that begin with 'fleet.' are those of the fleets' own slots")
        return value


def read(text: str, source: str, *, policy: str | None) -> c.Config:
    """See config.parse."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise c.ConfigError(f"{source}: not TOML: {error}") from error
    if policy is not None:
        document["policy"] = policy
    try:
        file = _File.model_validate(document)
    except ValidationError as error:
        raise c.ConfigError("\n".join(f"{source}: {_explain(e)}" for e in error.errors())) from None
    config = _config(file, source)
    problems = [*_floors(config), *_types(config)]
    if problems:
        raise c.ConfigError("\n".join(f"{source}: {p}" for p in problems))
    return config


def _burst(per_minute: int) -> int:
    return max(1, per_minute // BURST_DIVISOR) if per_minute else 0


def _config(file: _File, source: str) -> c.Config:
    fleets = {c.DEFAULT_FLEET: c.Fleet(name=c.DEFAULT_FLEET)}
    fleets |= {name: c.Fleet(name=name, partitions=f.partitions) for name, f in file.fleets.items()}
    types = {
        name: c.TaskType(name=name, **t.model_dump(exclude={"demands"}), demands=MappingProxyType(t.demands))
        for name, t in file.types.items()
    }
    return c.Config(
        policy=file.policy,
        resources=_sorted({name: r.record(name) for name, r in file.resources.items()}),
        fleets=_sorted(fleets),
        types=_sorted(types),
        tiers=tuple(_tier(index, getattr(file.tiers, name)) for index, name in enumerate(TIERS)),
        prices=c.Prices(**file.prices.model_dump()),
        source=source,
    )


def _tier(index: int, tier: _Tier) -> c.Tier:
    floor = Decimal(FLOORS[index]) if tier.floor is None else tier.floor
    deadline = DEADLINES_MS[index] if tier.deadline_ms is None else tier.deadline_ms
    return c.Tier(name=TIERS[index], index=index, deadline_ms=deadline, floor_permille=int(floor * 1_000))


V = TypeVar("V")


def _sorted(items: Mapping[str, V]) -> Mapping[str, V]:
    return MappingProxyType(dict(sorted(items.items())))


def _floors(config: c.Config) -> list[str]:
    total = sum(t.floor_permille for t in config.tiers)
    return (
        [] if total <= 1_000 else [f"tiers: the floors add up to {total / 1_000}, limit 1 (all five count)"]
    )


def _types(config: c.Config) -> list[str]:
    problems = []
    for name, task_type in config.types.items():
        if task_type.fleet not in config.fleets:
            problems.append(
                f"types.{name}.fleet: {task_type.fleet!r} is not a fleet{_nearest(task_type.fleet, config.fleets)}"
            )
        problems += [
            f"types.{name}.demands.{p.field.partition('.')[2]}: {p.text()}"
            for p in demand_problems(task_type.demands, config)
        ]
    return problems


def _explain(error: ErrorDetails) -> str:
    where = ".".join(str(part) for part in error["loc"] if part not in {"rate", "slots", "keyed", "[key]"})
    kind = error["type"]
    if kind == "extra_forbidden":
        return f"{where}: unknown key{_nearest(str(error['loc'][-1]), _known_keys(error['loc']))}"
    if kind == "union_tag_invalid" and error["ctx"].get("tag") == "spend":
        return f"{where}: kind 'spend' comes in a later version; leave the resource out until then"
    message = error["msg"].removeprefix("Value error, ")
    return f"{where}: {message} (is {error['input']!r})" if kind != "missing" else f"{where}: is missing"


_KEYS: Mapping[str, type[BaseModel]] = {"fleets": _Fleet, "types": _Type, "tiers": _Tier, "prices": _Prices}
_RESOURCE_KEYS: Mapping[str, type[BaseModel]] = {"rate": _Rate, "slots": _Slots, "keyed": _Keyed}


def _known_keys(loc: tuple[int | str, ...]) -> Iterable[str]:
    """Keys that could have been meant at that place."""
    if len(loc) == 1:
        return _File.model_fields
    if loc[0] == "tiers" and len(loc) == 2:
        return TIERS
    if loc[0] == "resources":
        return _RESOURCE_KEYS[str(loc[-2])].model_fields
    return _KEYS[str(loc[0])].model_fields


def _nearest(name: str, known: Iterable[str]) -> str:
    close = get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(sorted(known))}"
