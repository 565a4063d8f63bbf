"""A deployment of which nobody may do more than its role: secure servers, the users of roles.toml, and commands and processes run as one of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from security import broker, redis_server
from security.broker import SecureBroker
from security.certificates import Authority
from security.redis_server import SecureRedis
from security.waiting import until

from laxity.infra.security.roles import Role, role, role_names
from laxity.schemas.settings import Settings, settings

PREFIX = "sec."
FLEET = "default"
SHARDS = 2  # one of them re-homes a stray to the other
ADMINISTRATOR_PASSWORD = "administrator-canary-Zq81"
REGISTRY_PASSWORD = "registry-canary-Xw47"
COMMAND_S = 120.0
READY_S = 150.0
STOP_S = 20
CONFIG = f"""
[resources.llm]
kind = "rate"
requests_per_minute = 60000
tokens_per_minute = 6000000
[fleets.{FLEET}]
partitions = 1
[types.greet]
max_attempts = 1
[types.leak]
max_attempts = 1
"""
AGENTS = """
import os

from laxity.consumers import AgentContext, agent


@agent("greet")
async def greet(ctx: AgentContext, name: str) -> str:
    await ctx.call("llm", 10)
    return f"hello {name}"


@agent("leak")
async def leak(ctx: AgentContext) -> str:
    with open(os.environ["LAXITY_REDIS_PASSWORD_FILE"]) as file:
        raise ValueError(f"{os.environ['PROVIDER_API_KEY']} {file.read()}")
"""


@dataclass(kw_only=True)
class Process:
    """A scheduler or a runner. `log` has its stdout and stderr."""

    popen: subprocess.Popen[bytes]
    log: Path

    def events(self) -> list[dict[str, Any]]:
        lines = self.log.read_text(errors="replace").splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def said(self, *events: str) -> list[dict[str, Any]]:
        return [line for line in self.events() if line.get("event") in events]

    def http(self, path: str) -> httpx.Response:
        port = (
            self.said("scheduler.started")[0]["port"] if "scheduler" in self.log.name else self._runner_port()
        )
        return httpx.get(f"http://127.0.0.1:{port}{path}", timeout=5)

    def _runner_port(self) -> int:
        return int(self.log.read_text().partition("health on port ")[2].split()[0])

    def ready(self) -> bool:
        try:
            return self.http("/readyz").status_code == httpx.codes.OK
        except (httpx.HTTPError, IndexError):
            return False

    def stop(self) -> None:
        """SIGTERM, then SIGKILL."""
        self.popen.terminate()
        try:
            self.popen.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        self.popen.kill()
        self.popen.wait()


@dataclass(kw_only=True)
class Deployment:
    """Environments, commands and processes by role; `written` has all that commands printed."""

    kafka: SecureBroker
    redis: SecureRedis
    registry: str
    folder: Path
    prefix: str = PREFIX
    written: list[str] = field(default_factory=list)
    processes: list[Process] = field(default_factory=list)

    @property
    def passwords(self) -> Path:
        return self.folder / "passwords"

    def role(self, name: str) -> Role:
        return role(name, prefix=self.prefix, fleets=[FLEET])

    def password(self, name: str) -> str:
        return (self.passwords / self.role(name).user).read_text().strip()

    def secrets(self) -> list[str]:
        """Everything that must never be seen."""
        made = [self.password(name) for name in role_names()]
        return [
            *made,
            ADMINISTRATOR_PASSWORD,
            REGISTRY_PASSWORD,
            self.environment("agents")["PROVIDER_API_KEY"],
        ]

    def administrator(self) -> dict[str, str]:
        """By certificate in Kafka, as the default user in Redis, whose password is in the URL."""
        properties = self.kafka.administrator.items()
        named = {f"LAXITY_KAFKA__{key.replace('.', '__').upper()}": value for key, value in properties}
        return self._common() | named | {
            "LAXITY_KAFKA": self.kafka.trusted,
            "LAXITY_REDIS_URL": self.redis.administrator,
        }  # fmt: skip

    def environment(self, name: str) -> dict[str, str]:
        """Of one role: passwords in files."""
        user = self.role(name).user
        mine = {
            "LAXITY_KAFKA": self.kafka.roles,
            "LAXITY_KAFKA_CONFIG": str(self.properties_file(name)),
            "LAXITY_REGISTRY_URL": self.registry,
            "PROVIDER_API_KEY": "provider-canary-Rt56",
        }
        if self.role(name).redis is not None:
            mine["LAXITY_REDIS_URL"] = self.redis.url(user)
            mine["LAXITY_REDIS_PASSWORD_FILE"] = str(self.passwords / user)
        return self._common() | mine

    def _common(self) -> dict[str, str]:
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("LAXITY_")}
        return inherited | {
            "LAXITY_PREFIX": self.prefix,
            "LAXITY_CONFIG": str(self.folder / "laxity.toml"),
            "LAXITY_DATA_DIR": str(self.folder / "data"),
        }

    def properties(self, name: str) -> dict[str, str]:
        """For a client of one's own."""
        return {
            "security.protocol": "SASL_SSL",
            "sasl.mechanism": "SCRAM-SHA-512",
            "sasl.username": self.role(name).user,
            "sasl.password": self.password(name),
            "ssl.ca.location": str(self.kafka.ca),
        }

    def properties_file(self, name: str) -> Path:
        """As LAXITY_KAFKA_CONFIG."""
        path = self.folder / f"{name}.properties"
        path.touch(mode=0o600)
        path.write_text("".join(f"{key}={value}\n" for key, value in self.properties(name).items()))
        return path

    def settings(self, name: str) -> Settings:
        """For our own code in this process."""
        redis = self.redis.url(self.role(name).user, self.password(name))
        return settings(
            kafka=self.kafka.roles,
            kafka_config=self.properties_file(name),
            registry_url=self.registry,
            redis_url=redis if self.role(name).redis else "",
            prefix=self.prefix,
        )

    def laxity(
        self, environment: Mapping[str, str] | str, *words: str, more: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """One command, by a role's name or in an environment."""
        base = self.environment(environment) if isinstance(environment, str) else environment
        done = subprocess.run(
            [sys.executable, "-m", "laxity.infra.cli", *words],
            cwd=self.folder,
            env={**base, **(more or {})},
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
            check=False,
        )
        self.written += [done.stdout, done.stderr]
        return done

    def document(self, name: str, *words: str) -> Any:
        """The JSON of a command that must succeed."""
        done = self.laxity(name, *words, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def scheduler(self, more: Mapping[str, str] | None = None) -> Process:
        """Not waited for. Its state is its own."""
        state = {"LAXITY_SCHEDULER_STATE_DIR": str(self.folder / f"state-{len(self.processes)}")}
        return self._start("processor", "scheduler", ("scheduler",), {**state, **(more or {})})

    def runner(self, more: Mapping[str, str] | None = None) -> Process:
        """Not waited for."""
        return self._start("agents", "runner", ("agents", "my_agents"), more or {})

    def _start(self, name: str, kind: str, words: tuple[str, ...], more: Mapping[str, str]) -> Process:
        log = self.folder / f"{kind}-{len(self.processes)}.log"
        with log.open("wb") as out:
            popen = subprocess.Popen(
                [sys.executable, "-m", "laxity.infra.cli", *words],
                cwd=self.folder,
                env={**self.environment(name), **more},
                stdout=out,
                stderr=out,
            )
        self.processes.append(Process(popen=popen, log=log))
        return self.processes[-1]

    def both_ready(self) -> tuple[Process, Process]:
        """A scheduler and a runner."""
        pair = self.scheduler(), self.runner()
        for process in pair:
            until(f"{process.log.name} is ready", process.ready, READY_S)
        return pair

    def ended(self, task_id: str) -> str:
        """The task's last state as the ui sees it; empty: none yet."""
        found = self.laxity("ui", "tasks", "show", task_id, "--json")
        return str(json.loads(found.stdout)["state"]) if found.returncode == 0 else ""


@contextmanager
def running(folder: Path, registry: str) -> Iterator[Deployment]:
    """Servers, users, topics; no process of ours. Ends what was started."""
    authority = Authority(folder / "ca")
    (folder / "laxity.toml").write_text(CONFIG)
    (folder / "my_agents.py").write_text(AGENTS)
    scheme, _, place = registry.partition("://")
    with (
        broker.running(folder / "kafka", authority) as kafka,
        redis_server.running(folder / "redis", authority, ADMINISTRATOR_PASSWORD) as redis,
    ):
        made = Deployment(
            kafka=kafka, redis=redis, folder=folder, registry=f"{scheme}://us:{REGISTRY_PASSWORD}@{place}"
        )
        try:
            done = made.laxity(
                made.administrator(), "security", "acls", "--apply", "--passwords", str(made.passwords)
            )
            assert done.returncode == 0, done.stderr
            done = made.laxity("provisioner", "topics", "apply", "--shards", str(SHARDS))
            assert done.returncode == 0, done.stderr
            yield made
        finally:
            for process in made.processes:
                if process.popen.poll() is None:
                    process.kill()
