"""Puts a runner together from settings: the only place that knows all its parts. One process, one fleet."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

import structlog

from laxity.consumers.agents import AnyAgent
from laxity.consumers.desk import Desk
from laxity.consumers.errors import RunnerConfigError
from laxity.consumers.execution import Execution
from laxity.consumers.health import serving
from laxity.consumers.kafka_dispatches import KafkaDispatches
from laxity.consumers.kafka_outcomes import KafkaOutcomes
from laxity.consumers.leases import Leases, open_ledgers
from laxity.consumers.metrics import RunnerMetrics
from laxity.consumers.pace import Pace
from laxity.consumers.reports import Reporter
from laxity.consumers.runner import Runner, RunnerFailed, runner_name
from laxity.consumers.settings import RunnerSettings
from laxity.consumers.slots import Slots
from laxity.schemas.config import Config
from laxity.schemas.contracts import open_codec
from laxity.schemas.kafka import KafkaClients
from laxity.schemas.masking import mask_of
from laxity.schemas.records import Dispatch, Outcome
from laxity.schemas.serde import Codec
from laxity.schemas.settings import Settings
from laxity.schemas.timing import Clock, SystemClock
from laxity.streams.ledger.servers import admit

INTERRUPTED: Final = 130  # exit code of the second signal

_log = structlog.get_logger("laxity.agents")


async def _sleep(ms: int) -> None:
    await asyncio.sleep(ms / 1_000)


def run_process(
    *,
    fleet: str,
    agents: Mapping[str, AnyAgent],
    config: Config,
    where: Settings,
    own: RunnerSettings,
    announce: Callable[[str, int], None],
) -> None:
    """Serve until SIGTERM or SIGINT, drain, return; a second signal ends the process with 130.

    `announce` is called with the runner's name and its HTTP port. RunnerConfigError, ContractError or SettingsError before anything was
    started; RunnerFailed if it had to end.
    """
    if not where.redis_url:
        raise RunnerConfigError("no Redis address: set LAXITY_REDIS_URL, or start a stack with `laxity up`")
    admit(where.redis_url, trusted=where.redis_trusted_version)
    clock = SystemClock()
    clients = KafkaClients(where, role="agents")
    codec = open_codec(where, clients=clients, clock=clock)
    _require(codec)
    asyncio.run(_serve(fleet, agents, config, where, own, announce, clients, codec, clock))


async def _serve(  # noqa: PLR0917 - one caller, right above
    fleet: str,
    agents: Mapping[str, AnyAgent],
    config: Config,
    where: Settings,
    own: RunnerSettings,
    announce: Callable[[str, int], None],
    clients: KafkaClients,
    codec: Codec,
    clock: Clock,
) -> None:
    names, name, metrics = where.names, runner_name(clock), RunnerMetrics()
    sink = KafkaOutcomes(
        clients.outcomes_producer(),
        codec=codec,
        topic=names.full("outcomes"),
        loop=asyncio.get_running_loop(),
        on_fatal=lambda text: runner.fail(RunnerFailed(text)),
    )
    with open_ledgers(where.redis_url, config=config, shards=sink.partitions(), prefix=where.prefix) as doors:
        leases = Leases(doors[0], beats=doors[1], runner=name, clock=clock, sleep=_sleep)
        mask = mask_of(os.environ)
        reporter = Reporter(sink, runner=name, clock=clock, sleep=_sleep, mask=mask)
        slots, pace = Slots(own.slots), Pace(slots=own.slots, fixed=own.prefetch)
        execution = Execution(
            agents=agents,
            slots=slots,
            leases=leases,
            reporter=reporter,
            metrics=metrics,
            pace=pace,
            clock=clock,
            sleep=_sleep,
        )
        topic = names.full(f"dispatch.{fleet}")
        desk = Desk(
            runner=name, topic=topic, codec=codec, execution=execution, reporter=reporter, metrics=metrics
        )
        runner = Runner(
            name=name,
            fleet=fleet,
            consumer=KafkaDispatches(clients.agents_consumer(fleet), topic),
            leases=leases,
            execution=execution,
            desk=desk,
            slots=slots,
            pace=pace,
            metrics=metrics,
            clock=clock,
            sleep=_sleep,
            grace_ms=own.grace_ms,
        )

        health = serving(
            host=own.http_host,
            port=own.http_port,
            alive=runner.alive,
            ready=runner.ready,
            registry=metrics.registry,
        )
        with health as port, _signals(runner):
            announce(name, port)
            try:
                await runner.run()
            finally:
                await asyncio.to_thread(sink.close)
                _log.info("runner.ended", runner=name)


def _require(codec: Codec) -> None:
    missing = [record.__name__ for record in (Dispatch, Outcome) if record not in codec.ids()]
    if missing:
        raise RunnerConfigError(
            f"no schema is registered for {', '.join(missing)}: run `laxity topics apply`"
        )


@contextmanager
def _signals(runner: Runner) -> Iterator[None]:
    """The first SIGTERM or SIGINT drains, the second one ends the process at once."""
    loop, seen = asyncio.get_running_loop(), list[int]()

    def stop(number: int) -> None:
        seen.append(number)
        if len(seen) > 1:
            os._exit(INTERRUPTED)
        runner.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
