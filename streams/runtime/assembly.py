"""Put a host together from settings: every client, thread and file of a scheduler process is made here."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Callable, Mapping
from typing import Any

from confluent_kafka import Consumer

from laxity.schemas import kafka_properties as tables
from laxity.schemas.config import Config
from laxity.schemas.contracts import open_codec
from laxity.schemas.kafka import KafkaClients, quiet_logger
from laxity.schemas.serde import Codec
from laxity.schemas.settings import Settings, SettingsError
from laxity.schemas.timing import SystemClock
from laxity.streams.ledger.limits import FLEET_PREFIX, Limits
from laxity.streams.ledger.redis import RedisLedger
from laxity.streams.ledger.servers import admit
from laxity.streams.ledger.wakes import Wakes
from laxity.streams.runtime.board import RedisBoard
from laxity.streams.runtime.cluster import Cluster, ClusterError
from laxity.streams.runtime.copies import Copies
from laxity.streams.runtime.core import Core, MakeCore
from laxity.streams.runtime.health import HealthServer, application
from laxity.streams.runtime.host import Host, Parts, Readers
from laxity.streams.runtime.ledger_line import LedgerLine
from laxity.streams.runtime.liveness import Liveness
from laxity.streams.runtime.logs import Event, logger
from laxity.streams.runtime.meter import Known, ShardMeter
from laxity.streams.runtime.metrics import Metrics
from laxity.streams.runtime.ownership import Premises, changelog_ids
from laxity.streams.runtime.reader import Reader
from laxity.streams.runtime.rendezvous import Wishes
from laxity.streams.runtime.settings import HostSettings
from laxity.streams.runtime.shard import Shard, Surroundings
from laxity.streams.runtime.sources import ANCHOR, BULK, INPUTS, URGENT
from laxity.streams.runtime.standby import Standby
from laxity.streams.runtime.stores import StateDirectory, derivations
from laxity.streams.runtime.transactions import Transactions
from laxity.streams.scheduler import Scheduler
from laxity.streams.state.changelog import CHANGELOGS
from laxity.streams.state.store import Store

_IMPATIENT = {"fetch.wait.max.ms": 10}  # the end of a changelog is told by an empty fetch
_STRICT = {
    "auto.offset.reset": "error"
}  # positions are computed: a jump by the client would lose work silently


class Assembly:
    """Makes one host. Raises SettingsError, ContractError, ClusterError, StateDirectoryError, HealthError before anything runs."""

    def __init__(self, settings: Settings, knobs: HostSettings, config: Config) -> None:
        if not settings.redis_url:
            raise SettingsError("no Redis address: set LAXITY_REDIS_URL, or start a stack with `laxity up`")
        server = admit(settings.redis_url, trusted=settings.redis_trusted_version)
        if server is not None and server.problem:
            logger().warning(Event.LEDGER_UNPATCHED, why=server.problem)
        self._settings, self._knobs, self._config = settings, knobs, config
        self._clock = SystemClock()
        self._clients = KafkaClients(settings, role="scheduler")
        self._codec: Codec = open_codec(settings, clients=self._clients, clock=self._clock)
        self._cluster = Cluster(self._clients.admin(), self._loose_consumer)
        self._shards = self._count_shards()
        self._board = RedisBoard(settings.redis_url, settings.prefix)
        self.host = Host()

    def run(self) -> int:
        """Build, run until stopped; the exit code."""
        return self.host.run(self._parts(self._directory()))

    def _directory(self) -> StateDirectory:
        if self._knobs.state_dir is not None:
            return StateDirectory.take(self._knobs.state_dir)
        return StateDirectory.first_free(self._knobs.data_dir)

    def _count_shards(self) -> int:
        prefix = self._settings.prefix
        shards = self._cluster.partitions(prefix + ANCHOR)
        for name in (*INPUTS, *CHANGELOGS):
            found = self._cluster.partitions(prefix + name)
            if found != shards:
                raise ClusterError(
                    f"topic {prefix + name} has {found} partitions, {prefix + ANCHOR} has {shards}: shard i owns partition i of each"
                )
        return shards

    def _parts(self, directory: StateDirectory) -> Parts:
        settings, host, clock = self._settings, self.host, self._clock
        readers = Readers(self._urgent_reader(), self._bulk_reader())
        metrics = Metrics(readers.lags)
        ledger = RedisLedger(
            settings.redis_url, limits=Limits.of(self._config), shards=self._shards, prefix=settings.prefix
        )
        wakes = Wakes(settings.redis_url, prefix=settings.prefix)
        line = LedgerLine(ledger, clock)
        me = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        before = directory.remembered()
        liveness = Liveness(me=me, board=self._board, clock=clock, rescue=host.rescue, before=before)
        copies = Copies(directory, derivations(self._codec), clock, gone=metrics.standby_ended)
        standby = self._standby(copies, liveness, metrics)
        around = Surroundings(
            clock=clock,
            line=line,
            reading=readers,
            naming=liveness,
            copies=copies,
            directory=directory,
            producer_properties=self._producer_properties,
            busy_shards=host.busy_shards,
            backlog_max=self._knobs.backlog_max,
            failed=host.failed,
        )

        def close() -> None:
            for part in (ledger, wakes, self._board, self._cluster):
                part.close()

        return Parts(
            clock=clock,
            readers=readers,
            liveness=liveness,
            standby=standby,
            line=line,
            directory=directory,
            metrics=metrics,
            make_shard=lambda number: Shard(number, around, self._premises(number, metrics)),
            make_transactions=lambda number: Transactions(self._producer_properties(number), clock),
            listen=wakes.run,
            make_health=self._health(metrics),
            close=close,
        )

    def _premises(self, shard: int, metrics: Metrics) -> Callable[[Callable[[], bool]], Premises]:
        fleets = (FLEET_PREFIX + name for name in self._config.fleets)
        known = Known(types=self._config.types, resources={*self._config.resources, *fleets})

        def make(should_stop: Callable[[], bool]) -> Premises:
            return Premises(
                shard=shard,
                prefix=self._settings.prefix,
                codec=self._codec,
                clock=self._clock,
                cluster=self._cluster,
                meter=ShardMeter(shard, metrics, known, self._clock),
                accepted=frozenset(self._knobs.accept_skip),
                make_core=self._make_core(),
                should_stop=should_stop,
            )

        return make

    def _make_core(self) -> MakeCore:
        prefix = self._settings.prefix

        def make(shard: int, state: Store, keys: Store) -> Core:
            ids = self._cluster.topic_ids([prefix + name for name in INPUTS])
            return Scheduler(
                shard=shard,
                shards=self._shards,
                config=self._config,
                codec=self._codec,
                store=state,
                keys=keys,
                prefix=prefix,
                topic_ids={name: ids[prefix + name] for name in INPUTS},
            )

        return make

    def _health(self, metrics: Metrics) -> Callable[[Host], HealthServer]:
        def make(host: Host) -> HealthServer:
            app = application(live=host.live_problems, ready=host.ready_problems, registry=metrics.registry)
            return HealthServer(app, host=self._knobs.http_host, port=self._knobs.http_port)

        return make

    def _standby(self, copies: Copies, liveness: Liveness, metrics: Metrics) -> Standby:
        return Standby(
            copies=copies,
            wishes=Wishes(liveness.me, shards=self._shards, count=self._knobs.standbys),
            living=liveness.living,
            topic_ids=lambda: changelog_ids(self._cluster, self._settings.prefix),
            prefix=self._settings.prefix,
            consumer=lambda: self._consumer(tables.STANDBY),
            clock=self._clock,
            lag=metrics.standby_lag,
            failed=self.host.failed,
        )

    # Kafka clients

    def _urgent_reader(self) -> Reader:
        return Reader(
            name="urgent",
            consumer=self._consumer(tables.MEMBER, tables.URGENT),
            topics=URGENT,
            prefix=self._settings.prefix,
            clock=self._clock,
            membership=self.host.membership(),
            probe=self._probe,
            failed=self.host.failed,
        )

    def _bulk_reader(self) -> Reader:
        return Reader(
            name="bulk",
            consumer=self._consumer(tables.BULK),
            topics=BULK,
            prefix=self._settings.prefix,
            clock=self._clock,
            membership=None,
            probe=self._probe,
            failed=self.host.failed,
        )

    def _loose_consumer(self) -> Consumer:
        return self._consumer(tables.RESTORE, **_IMPATIENT)

    def _probe(self, more: Mapping[str, object]) -> Consumer:
        return self._consumer(tables.RESTORE, **more)

    def _consumer(self, *of: tables.Table, **more: object) -> Consumer:
        properties = self._clients.consumer_properties(*of, group="scheduler")
        return Consumer({**properties, **_STRICT, **more}, logger=quiet_logger())

    def _producer_properties(self, shard: int) -> Mapping[str, Any]:
        name = self._settings.names.full(f"scheduler.{shard}")
        properties = self._clients.producer_properties(tables.SHARD_PRODUCER, {"transactional.id": name})
        return {**properties, "logger": quiet_logger()}
