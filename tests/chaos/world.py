"""The processes under test: servers, schedulers and runners, each an OS process of its own, started by us and known by its pid.

    plan = Plan(root=folder, config=CONFIG)
    with World(plan) as world:                     # ready: provisioned, schedulers and runners serve
        world["scheduler-0"].kill()                # back after 0.2 s
        world["runner-1"].crashpoint = "in_call:3" # arms its next start
        world["runner-1"].freeze()
        world.add("scheduler-2")                   # one more; `world.remove` ends it as planned
        world.settings                             # addresses for clients of our own

Names are those of the local stack: kafka, registry, redis, provider, scheduler-N, runner-N. Leaving the world ends everything, also
after Ctrl-C; should this very process be killed, a leash does it within seconds. `Plan.route` gives a process other addresses than the
servers' own (a proxy's), `Plan.kafka` names brokers that somebody else runs.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import httpx
from chaos.member import Life, Member, inherited
from prometheus_client.parser import text_string_to_metric_families

from laxity.infra.local.data_dir import DataDir
from laxity.infra.local.endpoints import Endpoints
from laxity.infra.local.leash import line_for
from laxity.infra.local.pids import ProcessId
from laxity.infra.local.plan import SERVERS, StackPlan, make_plan
from laxity.infra.local.ports import settle_ports
from laxity.infra.local.processes import (
    ProcessSpec,
    process_table,
    provider_ledger,
    stack_endpoints,
    worker_process,
)
from laxity.infra.local.settings import StackSettings
from laxity.infra.local.software import prepare
from laxity.infra.provision import provision
from laxity.schemas import config as configuration
from laxity.schemas.config import Config
from laxity.schemas.kafka import KafkaClients
from laxity.schemas.settings import Settings
from laxity.schemas.settings import settings as settings_of
from laxity.schemas.timing import Clock, SystemClock

AGENTS: Final = "chaos.agents"
TESTS: Final = Path(__file__).parents[1]
KEEP_S: Final = 0.02  # how often deaths are looked for
ASK_S: Final = 2.0
READY_MS: Final = 180_000  # eight processes on two busy cores
SERVER_STOP_S: Final = 10.0  # a broker's own shutdown takes 2 s; what it leaves is a temporary folder

Route = Callable[[str, Endpoints], Endpoints]


def direct(_name: str, servers: Endpoints) -> Endpoints:
    """Every process talks to the servers themselves."""
    return servers


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is started. `root`: a folder of its own; `config`: the text of laxity.toml; `env`: further variables of schedulers and runners."""

    root: Path
    config: str
    agents: str = AGENTS
    schedulers: int = 2
    runners: int = 2
    slots: int = 16  # attempts at a time, of each runner
    shards: int = 4
    kafka: str = ""  # bootstrap servers that are there already
    prefix: str = "laxity."
    provider_args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    route: Route = direct
    java_env: Mapping[str, str] = field(default_factory=dict)


class World:
    """A context manager. `world[name]` is a Member; its methods kill, freeze, stop and start it."""

    def __init__(self, plan: Plan, clock: Clock | None = None) -> None:
        self.plan = plan
        self.clock = clock or SystemClock()
        self.members: dict[str, Member] = {}
        self._ending = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="world-keeper", daemon=True)
        self._leash: subprocess.Popen[bytes] | None = None
        self._leashed = threading.Lock()
        self._stack = self._make_stack()
        self._ports: dict[str, int] = {}

    # beginning and end

    def __enter__(self) -> Self:
        """Servers, topics and subjects, then the workers; returns once all are ready. TimeoutError names who is not."""
        try:
            self._begin()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all: schedulers and runners as planned, then the servers."""
        workers = [m for m in self.members.values() if m.role in {"scheduler", "runner"}]
        self._stop_together(workers)
        self._stop_together([m for m in self.members.values() if m not in workers], SERVER_STOP_S)
        self._ending.set()
        if self._keeper.is_alive():
            self._keeper.join()
        if self._leash is not None and self._leash.stdin is not None:
            self._leash.stdin.close()
            self._leash.wait()

    # who there is

    def __getitem__(self, name: str) -> Member:
        """By name; KeyError."""
        return self.members[name]

    def of(self, role: str) -> list[Member]:
        """All members of a role."""
        return [member for member in list(self.members.values()) if member.role == role]

    def add(self, name: str) -> Member:
        """One more scheduler or runner, `scheduler-2`: started, not yet ready. One that was removed comes back in its old folder."""
        if name not in self.members:
            self._ports = settle_ports(self._stack.data.ports_file, [name], {})
            self._enter(worker_process(self._stack, self._ports, name))
        self.members[name].start()
        return self.members[name]

    def remove(self, name: str) -> int | None:
        """Its planned end; it stays away until `add`. The exit code."""
        return self.members[name].stop()

    def lives(self) -> Iterator[tuple[str, Life]]:
        """Every life of every member, for coverage."""
        for name, member in list(self.members.items()):
            for life in list(member.lives):
                yield name, life

    # how they are

    def reason(self, name: str) -> str | None:
        """Why the process is not ready; None: it is."""
        if self[name].life is None:
            return "it does not run"
        return asyncio.run(_ask(self[name].spec))

    def await_ready(self, *names: str, within_ms: int = READY_MS) -> None:
        """Wait until all of these serve; with no name all members. TimeoutError says who does not, and why."""
        until_ms = self.clock.monotonic_ms() + within_ms
        waiting = list(names or self.members)
        pause = threading.Event()
        while waiting:
            why = {name: reason for name in waiting if (reason := self.reason(name)) is not None}
            if why and self.clock.monotonic_ms() > until_ms:
                raise TimeoutError(f"not ready within {within_ms} ms: {why}")
            waiting = list(why)
            pause.wait(0.1 if waiting else 0)

    def metrics(self, name: str) -> dict[str, float]:
        """Sums of the process's samples by name, labels left out; empty where it does not answer."""
        try:
            page = httpx.get(f"{self[name].spec.http}/metrics", timeout=ASK_S, trust_env=False).text
        except httpx.HTTPError:
            return {}
        sums: dict[str, float] = {}
        for family in text_string_to_metric_families(page):
            for sample in family.samples:
                sums[sample.name] = sums.get(sample.name, 0.0) + sample.value
        return sums

    def held(self, name: str) -> frozenset[int]:
        """Shards that a scheduler has, or had when it died, by its own note in its state directory."""
        try:
            found = json.loads((self.state_dir(name) / "holding.json").read_text("utf-8"))
        except (OSError, ValueError):
            return frozenset()
        numbers = found.get("shards", []) if isinstance(found, dict) else found
        return frozenset(int(number) for number in numbers)

    def log_lines(self, name: str) -> list[dict[str, Any]]:
        """The JSON lines of its log, over all its lives; a torn one is left out."""
        found = []
        for line in self[name].spec.log.read_text("utf-8", errors="replace").splitlines():
            with suppress(ValueError):
                document = json.loads(line)
                if isinstance(document, dict):
                    found.append(document)
        return found

    # where things are

    @property
    def servers(self) -> Endpoints:
        """Their own addresses, past any proxy."""
        return stack_endpoints(self._stack, self._ports)

    @property
    def settings(self) -> Settings:
        """For clients of our own."""
        found = self.servers
        return settings_of(
            kafka=found.kafka,
            registry_url=found.registry,
            redis_url=found.redis,
            provider_url=found.provider,
            prefix=self.plan.prefix,
        )

    @property
    def config(self) -> Config:
        """What the workers run under."""
        return configuration.load(self.config_file)

    @property
    def config_file(self) -> Path:
        """laxity.toml."""
        return self.plan.root / "laxity.toml"

    @property
    def ledger(self) -> Path:
        """The provider's."""
        return provider_ledger(self._stack)

    def state_dir(self, name: str) -> Path:
        """A scheduler's own."""
        return self.plan.root / "state" / name

    def lose_state(self, name: str) -> int:
        """All that a stopped scheduler's directory holds goes; the directory stays, it may be a mount. How many entries there were."""
        folder = self.state_dir(name)
        entries = list(folder.iterdir()) if folder.exists() else []
        for entry in entries:
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        return len(entries)

    def clients(self, role: str = "chaos") -> KafkaClients:
        """Kafka clients of our own."""
        return KafkaClients(self.settings, role=role, env={})

    def laxity(self, *words: str, timeout_s: float = 300) -> str:
        """Our own command line against this world; its stdout. CalledProcessError."""
        environment = {"PATH": inherited("PATH"), "HOME": inherited("HOME"), **self.servers.environment()}
        environment |= {
            "LAXITY_DATA_DIR": str(self.plan.root),
            "LAXITY_PREFIX": self.plan.prefix,
            "LAXITY_CONFIG": str(self.config_file),
        }
        done = subprocess.run(
            [sys.executable, "-m", "laxity.infra.cli", *words],
            check=True,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            env=environment,
        )
        return done.stdout

    # how it is made

    def _make_stack(self) -> StackPlan:
        plan = self.plan
        plan.root.mkdir(parents=True, exist_ok=True)
        self.config_file.write_text(plan.config, "utf-8")
        settings = StackSettings().model_copy(
            update={
                "data_dir": plan.root,
                "kafka": plan.kafka,
                "registry_url": "",
                "redis_url": "",
                "provider_url": "",
                "prefix": plan.prefix,
                "config": str(self.config_file),
            }
        )
        worker_env = {"LAXITY_AGENTS_SLOTS": str(plan.slots), "PYTHONPATH": _python_path(), **plan.env}
        made = make_plan(
            settings, agents=plan.agents, provider_args=plan.provider_args, worker_env=worker_env
        )
        return replace(made, roles=made.roles | {"scheduler", "runner"})

    def _begin(self) -> None:
        data: DataDir = self._stack.data
        data.create()
        software = prepare(self._stack)
        servers = replace(self._stack, roles=self._stack.roles & {*SERVERS, "provider"})
        names = [f"scheduler-{n}" for n in range(self.plan.schedulers)]
        names += [f"runner-{n}" for n in range(self.plan.runners)]
        self._ports = settle_ports(data.ports_file, [*servers.port_names(), *names], {})
        self._leash = subprocess.Popen(
            [sys.executable, "-m", "laxity.infra.local.leash"], stdin=subprocess.PIPE, start_new_session=True
        )
        self._keeper.start()
        for spec in process_table(servers, self._ports, software):
            self._enter(spec).start()
        self.await_ready()
        provision(self.settings, self.config, shards=self.plan.shards)
        for name in names:
            self._enter(worker_process(self._stack, self._ports, name)).start()
        self.await_ready()

    def _enter(self, spec: ProcessSpec) -> Member:
        member = Member(
            spec=spec,
            environment=self._environment,
            clock=self.clock,
            born=lambda process: self._tell("+", process),
            buried=lambda process: self._tell("-", process),
        )
        self.members[spec.name] = member
        return member

    def _environment(self, name: str) -> Mapping[str, str]:
        role = self.members[name].role
        if role in SERVERS:
            return self.plan.java_env
        addresses = self.plan.route(name, self.servers).environment()
        if role == "scheduler":
            addresses["LAXITY_SCHEDULER_STATE_DIR"] = str(self.state_dir(name))
        return addresses

    def _tell(self, sign: str, process: ProcessId) -> None:
        """The leash ends it if we cannot."""
        if self._leash is None or self._leash.stdin is None or not process.started:
            return
        with self._leashed:
            self._leash.stdin.write(line_for(sign, process))
            self._leash.stdin.flush()

    def _keep(self) -> None:
        while not self._ending.wait(KEEP_S):
            for member in list(self.members.values()):
                member.keep()

    @staticmethod
    def _stop_together(members: list[Member], grace_s: float = 20.0) -> None:
        threads = [threading.Thread(target=member.stop, args=(grace_s,)) for member in members]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def _python_path() -> str:
    """So that a runner finds `chaos.agents`."""
    return ":".join(part for part in (str(TESTS), inherited("PYTHONPATH")) if part)


async def _ask(spec: ProcessSpec) -> str | None:
    return await spec.probe()
