"""The supervisor: starts a plan's processes in order, keeps them running, records them, ends them."""

import asyncio
import json
import os
import secrets
import signal
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from laxity.infra.local import control
from laxity.infra.local.child import Child, Hooks, State
from laxity.infra.local.data_dir import LOCK_WAIT_MS, RECORD_FORMAT, held, write_private
from laxity.infra.local.endpoints import Endpoints
from laxity.infra.local.errors import StackError
from laxity.infra.local.leash_pipe import LeashPipe
from laxity.infra.local.pids import ProcessId, start_of
from laxity.infra.local.plan import SERVERS, WORKERS, StackPlan
from laxity.infra.local.ports import settle_ports
from laxity.infra.local.processes import process_table, provider_ledger, stack_endpoints
from laxity.infra.local.provisioning import check_existing, provision
from laxity.infra.local.software import Software
from laxity.infra.local.survivors import end_survivors
from laxity.schemas.timing import Clock, SystemClock

READY_TIMEOUT_MS = 90_000  # of one process, on a machine that is busy with other things
DEATHS_MAX = 3  # during the start: what dies three times in a row is misconfigured
START_STAGES = (SERVERS, WORKERS)  # workers wait for each other by themselves, and start sooner together
STOP_STAGES = (
    ("runner",),
    ("scheduler",),
    ("provider",),
    SERVERS,
)  # against the flow: nobody loses its servers

Report = Callable[[str], None]  # hears a line about each process that gets ready
OnReady = Callable[[Endpoints], None]  # hears, once, that all are


class Supervisor:
    """One run of one plan."""

    def __init__(
        self,
        plan: StackPlan,
        ports: Mapping[str, int],
        software: Software,
        *,
        report: Report,
        on_ready: OnReady,
    ) -> None:
        self._plan = plan
        self._report = report
        self._on_ready = on_ready
        self._clock: Clock = SystemClock()
        self._endpoints = stack_endpoints(plan, ports)
        self._specs = process_table(plan, ports, software)
        self._secret = secrets.token_urlsafe(24)
        self._control_port = 0
        self._ready = False
        self._self = ProcessId(pid=os.getpid(), started=start_of(os.getpid()) or "")
        self._leash = LeashPipe()
        self._failure: asyncio.Future[None]
        self._children: list[Child] = []

    async def run(self, stop: asyncio.Event) -> None:
        """Start all, stay until `stop`, end all. StackError if something does not get ready."""
        self._failure = asyncio.get_running_loop().create_future()
        hooks = Hooks(born=self._born, dead=self._leash.dead, changed=self._record, broke=self._broke)
        self._children = [Child(spec, hooks, self._clock) for spec in self._specs]
        server, self._control_port = await control.serve(self._secret, self._command)
        await self._leash.hold()
        asked = asyncio.create_task(stop.wait())
        starting = asyncio.create_task(self._start())
        try:
            await self._first_of(asked, starting)
            await self._first_of(asked)
        finally:
            asked.cancel()
            starting.cancel()
            await asyncio.gather(asked, starting, return_exceptions=True)
            server.close()
            await self._end()

    async def _first_of(self, *tasks: "asyncio.Task[Any]") -> None:
        """Wait for one of them, or for the failure of a supervising task; raises what the finished raised."""
        done, _ = await asyncio.wait({*tasks, self._failure}, return_when=asyncio.FIRST_COMPLETED)
        for finished in done:
            finished.result()

    def _broke(self, error: BaseException) -> None:
        """A child is no longer supervised (a full disk, a bug): better to end than to pretend."""
        if not self._failure.done():
            self._failure.set_exception(error)

    async def _start(self) -> None:
        self._record()
        await check_existing(self._plan)
        for stage in START_STAGES:
            children = [child for child in self._children if child.spec.role in stage]
            for child in children:
                child.start()
            async with asyncio.TaskGroup() as group:
                for child in children:
                    group.create_task(self._one_ready(child))
            if stage is SERVERS:
                await provision(self._plan, self._endpoints)
        self._ready = True
        self._record()
        self._on_ready(self._endpoints)

    async def _one_ready(self, child: Child) -> None:
        await child.until_ready(timeout_ms=READY_TIMEOUT_MS, deaths_max=DEATHS_MAX)
        self._report(f"{child.spec.name} ready at {child.spec.address}")

    async def _end(self) -> None:
        self._ready = False
        for stage in STOP_STAGES:
            await asyncio.gather(*(child.stop() for child in self._children if child.spec.role in stage))
        await self._leash.let_go()
        self._failure.cancel()
        self._plan.data.record_file.unlink(missing_ok=True)

    async def _command(self, command: str, role: str) -> list[str]:
        """`stop` or `start` by role or name."""
        chosen = [child for child in self._children if role in {child.spec.role, child.spec.name}]
        if not chosen or command not in {"stop", "start"}:
            known = sorted({word for child in self._children for word in (child.spec.role, child.spec.name)})
            raise StackError(f"no {role!r} to {command}", f"this stack has {', '.join(known)}")
        if command == "stop":
            await asyncio.gather(*(child.stop() for child in chosen))
        else:
            for child in chosen:
                child.start()
            waits = (
                child.until_ready(timeout_ms=READY_TIMEOUT_MS, deaths_max=DEATHS_MAX) for child in chosen
            )
            await asyncio.gather(*waits)
        return [child.spec.name for child in chosen]

    def _born(self, process: ProcessId) -> None:
        self._record()
        self._leash.born(process)

    def _record(self) -> None:
        record = {
            "format": RECORD_FORMAT,
            "supervisor": asdict(self._self),
            "control": {"port": self._control_port, "secret": self._secret},
            "ready": self._ready and all(child.state is State.READY for child in self._children),
            "endpoints": asdict(self._endpoints),
            "processes": [child.describe() for child in self._children],
            "provider_ledger": str(provider_ledger(self._plan)) if "provider" in self._plan.roles else None,
        }
        write_private(self._plan.data.record_file, json.dumps(record, indent=1) + "\n")


def supervise(
    plan: StackPlan,
    software: Software,
    *,
    chosen_ports: Mapping[str, int],
    report: Report = lambda _: None,
    on_ready: OnReady = lambda _: None,
) -> signal.Signals:
    """Run the plan until a signal, which is returned, holding the data directory's lock. Blocks."""
    with held(plan.data, wait_ms=LOCK_WAIT_MS) as free:
        if not free:
            raise StackError(
                f"{plan.data.root} is in use", "a supervisor runs there", "laxity status, or laxity down"
            )
        end_survivors(plan.data)
        ports = settle_ports(plan.data.ports_file, plan.port_names(), chosen_ports)
        supervisor = Supervisor(plan, ports, software, report=report, on_ready=on_ready)
        return asyncio.run(_until_signal(supervisor))


async def _until_signal(supervisor: Supervisor) -> signal.Signals:
    stop = asyncio.Event()
    received: list[signal.Signals] = []

    def on_signal(number: signal.Signals) -> None:
        received.append(number)
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, on_signal, number)
    try:
        await supervisor.run(stop)
    except ExceptionGroup as group:
        raise group.exceptions[0] from None
    return received[0]
