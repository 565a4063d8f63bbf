"""Where a run takes place: the stack of the data directory, or one of its own that is sized for the load and ended afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import httpx
from prometheus_client.parser import text_string_to_metric_families

from laxity.infra.demo import configuration
from laxity.infra.demo.generator import Request
from laxity.infra.demo.load import SPEED_DEFAULT, Wish, fitted, requests_of
from laxity.infra.demo.sizing import Capacity, offered, size
from laxity.infra.demo.submission import RESOURCE
from laxity.infra.local.data_dir import DataDir, read_record
from laxity.infra.local.endpoints import Endpoints, supervisor_of
from laxity.infra.local.errors import ConfigurationError, StackError
from laxity.infra.local.launch import start_detached, stop
from laxity.infra.local.plan import RUNNERS, StackPlan, make_plan
from laxity.infra.local.settings import StackSettings
from laxity.schemas import config as config_module
from laxity.schemas.config import Config, Rate
from laxity.schemas.settings import Settings
from laxity.schemas.settings import settings as settings_of

NEEDED: Final = frozenset({"provider", "scheduler", "runner"})
ASK_S: Final = 5.0  # each process answers in milliseconds
SLOTS_METRIC: Final = "laxity_runner_slots"

Report = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """A running stack, what it can do, and the load that it is given."""

    settings: Settings
    config: Config
    ledger: Path
    capacity: Capacity
    speed: float
    requests: Sequence[Request]
    own: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """What the provider and the runners say of themselves."""

    speed: float
    capacity: Capacity


@contextmanager
def ground_for(wish: Wish, stack: StackSettings, report: Report) -> Iterator[Ground]:
    """ConfigurationError for a wish that this stack cannot fulfil, StackError for one that does not start."""
    if stack.provider_url:
        why = "the figures come from the ledger of the stack's own provider"
        raise ConfigurationError("LAXITY_PROVIDER_URL is set", why, "unset LAXITY_PROVIDER_URL")
    data = DataDir.at(stack.data_dir)
    if supervisor_of(read_record(data)) is not None:
        yield _present(wish, stack, data)
        return
    speed = SPEED_DEFAULT if wish.speed is None else wish.speed
    requests = requests_of(wish, speed)
    config, plan = _planned(wish, stack, speed, requests)
    try:
        report(f"starting a stack in {data.root}")
        start_detached(plan, report=report)
        yield _ground(stack, data, config, requests, own=True)
    finally:
        report("ending the stack")
        stop(data)


def _planned(
    wish: Wish, stack: StackSettings, speed: float, requests: Sequence[Request]
) -> tuple[Config, StackPlan]:
    """A stack that is sized for the load, and the configuration that it runs under, which is written to the data directory."""
    wanted = size(offered(requests, speed), wish.load_max, speed)
    data = DataDir.at(stack.data_dir)
    data.create()
    path = configuration.write(data.root, configuration.text(wanted, speed))
    plan = make_plan(
        stack.model_copy(update={"config": str(path)}),
        provider_args=_provider_arguments(wish, wanted, speed),
        worker_env={"LAXITY_AGENTS_SLOTS": str(-(-wanted.slots // RUNNERS))},
    )
    return config_module.load(path), plan


def _provider_arguments(wish: Wish, capacity: Capacity, speed: float) -> list[str]:
    return [
        *("--model", configuration.model_argument(capacity, speed)),
        *("--speed", repr(speed)),
        *("--inject-429", repr(wish.inject_429)),
        *("--inject-500", repr(wish.inject_500)),
        *("--seed", str(wish.seed)),
        "--dedupe" if wish.dedupe else "--no-dedupe",
    ]


def _present(wish: Wish, stack: StackSettings, data: DataDir) -> Ground:
    """A stack that somebody else started: taken as it is, and left running."""
    if wish.provider_options != Wish().provider_options:
        raise ConfigurationError(
            f"a stack runs in {data.root}", "its provider was started without these options", "laxity down"
        )
    ground = _ground(stack, data, config_module.load(stack.config or None), (), own=False)
    if wish.speed is not None and wish.speed != ground.speed:
        raise ConfigurationError(
            f"--speed {wish.speed:g}",
            f"the provider in {data.root} has speed {ground.speed:g}",
            "laxity down",
        )
    requests = requests_of(wish, ground.speed)
    return replace(ground, requests=fitted(wish, requests, ground.capacity, ground.speed))


def _ground(
    stack: StackSettings, data: DataDir, config: Config, requests: Sequence[Request], *, own: bool
) -> Ground:
    record = read_record(data) or {}
    rows = record.get("processes", [])
    if lacking := NEEDED - {row["role"] for row in rows}:
        raise StackError(
            f"the stack in {data.root} has no {', '.join(sorted(lacking))}",
            "",
            "laxity down, then laxity demo",
        )
    endpoints = Endpoints(**record["endpoints"])
    found = _ask(endpoints.provider, [row["http"] for row in rows if row["role"] == "runner"])
    _compare(config, found.capacity)
    return Ground(
        settings=settings_of(
            kafka=endpoints.kafka,
            registry_url=endpoints.registry,
            redis_url=endpoints.redis,
            provider_url=endpoints.provider,
            prefix=stack.prefix,
        ),
        config=config,
        ledger=Path(record["provider_ledger"]),
        capacity=found.capacity,
        speed=found.speed,
        requests=requests,
        own=own,
    )


def _compare(config: Config, capacity: Capacity) -> None:
    """The provider must enforce what the resource says: else its refusals would say nothing about us."""
    rate = config.resources.get(RESOURCE)
    if not isinstance(rate, Rate):
        raise ConfigurationError(
            f"no rate {RESOURCE!r} in {config.source}", "the demonstration's calls need it", "laxity down"
        )
    ours = (rate.requests_per_minute, rate.tokens_per_minute)
    theirs = (capacity.requests_per_minute, capacity.tokens_per_minute)
    if any(our and our != their for our, their in zip(ours, theirs, strict=True)):
        raise ConfigurationError(
            f"{config.source} allows {ours[0]} requests and {ours[1]} tokens per minute of {RESOURCE}",
            f"the provider enforces {theirs[0]} and {theirs[1]}: it was started under another configuration",
            "set LAXITY_CONFIG to that, or laxity down",
        )


def _ask(provider: str, runners: Sequence[str]) -> _Found:
    with httpx.Client(timeout=ASK_S, trust_env=False) as client:
        models = _get(client, f"{provider}/v1/models").json()
        slots = sum(_slots(_get(client, f"{runner}/metrics").text) for runner in runners)
    limits: dict[str, Any] = next((m["limits"] for m in models["data"] if m["id"] == RESOURCE), {})
    if not limits or not slots:
        raise StackError(
            f"the provider offers {'a' if limits else 'no'} model {RESOURCE!r}, the runners {slots} slots",
            "",
            "laxity down",
        )
    return _Found(speed=float(models["speed"]), capacity=Capacity(slots=slots, **limits))


def _get(client: httpx.Client, url: str) -> httpx.Response:
    try:
        return client.get(url).raise_for_status()
    except httpx.HTTPError as error:
        raise StackError(f"{url} does not answer", str(error), "laxity status") from error


def _slots(metrics: str) -> int:
    samples = (
        sample.value
        for family in text_string_to_metric_families(metrics)
        for sample in family.samples
        if sample.name == SLOTS_METRIC
    )
    return round(sum(samples))
