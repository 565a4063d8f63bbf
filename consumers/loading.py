"""`laxity agents MODULE[:ATTR]`: find the agents that a runner is to run."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from types import ModuleType

from laxity.consumers.agents import AnyAgent, as_agent
from laxity.consumers.errors import AgentDefinitionError, AgentLoadError, RunnerConfigError
from laxity.schemas.config import Config


def load_agents(where: str) -> Mapping[str, AnyAgent]:
    """Agents by task type. `module` means all that the module holds; `module:attr` one agent or a collection of them.

    AgentLoadError if there are none, AgentDefinitionError if one is wrong or two claim one type.
    """
    module_name, _, attribute = where.partition(":")
    module = _import(module_name, where)
    found = _named(module, attribute) if attribute else [as_agent(value) for value in vars(module).values()]
    agents = _unique(agent for agent in found if agent is not None)
    if not agents:
        raise AgentLoadError(f"{where}: no agent there; declare one with @agent(TYPE)")
    return agents


def of_fleet(agents: Mapping[str, AnyAgent], fleet: str | None) -> tuple[str, Mapping[str, AnyAgent]]:
    """The fleet to serve and its agents; without a name there must be exactly one fleet. RunnerConfigError otherwise."""
    fleets = sorted({agent.fleet for agent in agents.values()})
    if fleet is None and len(fleets) > 1:
        raise RunnerConfigError(
            f"the agents belong to the fleets {', '.join(fleets)}: choose one with --fleet, one process each"
        )
    chosen = fleet or fleets[0]
    mine = {type_: agent for type_, agent in agents.items() if agent.fleet == chosen}
    if not mine:
        raise RunnerConfigError(f"fleet {chosen!r} has no agent here; there are {', '.join(fleets)}")
    return chosen, mine


def check_against(config: Config, fleet: str, agents: Mapping[str, AnyAgent]) -> None:
    """The scheduler acts on the configuration, so what agents declare must be what it says. RunnerConfigError names the key to write."""
    if fleet not in config.fleets:
        known = ", ".join(config.fleets)
        raise RunnerConfigError(
            f"fleet {fleet!r} is not in {config.source or 'the configuration'} (there are {known})"
        )
    for agent in agents.values():
        said = config.type_of(agent.type)
        _agrees(config, agent, "fleet", agent.fleet, said.fleet)
        if agent.on_unknown is not None:
            _agrees(config, agent, "on_unknown", agent.on_unknown, said.on_unknown)
        if said.on_unknown == "reconcile" and agent.reconciler is None:
            raise RunnerConfigError(
                f'agent {agent.type!r}: {config.source or "the configuration"} says on_unknown = "reconcile", '
                f"but the agent has no reconcile function"
            )


def _agrees(config: Config, agent: AnyAgent, field: str, declared: str, said: str) -> None:
    if declared != said:
        raise RunnerConfigError(
            f"agent {agent.type!r} declares {field}={declared!r}, but {config.source or 'the configuration'} "
            f'says {said!r}: write [types.{agent.type}] {field} = "{declared}" into your laxity.toml'
        )


def _import(name: str, where: str) -> ModuleType:
    if not name:
        raise AgentLoadError(f"{where!r}: write MODULE or MODULE:ATTR")
    try:
        return importlib.import_module(name)
    except AgentDefinitionError:
        raise
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(error.name + ".")):
            raise AgentLoadError(f"{where}: there is no module {error.name!r} on the Python path") from error
        raise AgentLoadError(f"{where}: importing it failed: {error}") from error
    except Exception as error:
        raise AgentLoadError(f"{where}: importing it failed: {type(error).__name__}: {error}") from error


def _named(module: ModuleType, attribute: str) -> list[AnyAgent | None]:
    try:
        value = getattr(module, attribute)
    except AttributeError:
        raise AgentLoadError(f"{module.__name__}:{attribute}: the module has no such name") from None
    one = as_agent(value)
    if one is not None:
        return [one]
    items = (
        list(value.values() if isinstance(value, Mapping) else value) if isinstance(value, Iterable) else []
    )
    agents = [as_agent(item) for item in items]
    if not agents or None in agents:
        raise AgentLoadError(
            f"{module.__name__}:{attribute} is a {type(value).__name__}, no agent and no collection of agents"
        )
    return agents


def _unique(agents: Iterable[AnyAgent]) -> dict[str, AnyAgent]:
    by_type: dict[str, AnyAgent] = {}
    for agent in agents:
        other = by_type.setdefault(agent.type, agent)
        if other is not agent:
            raise AgentDefinitionError(
                f"agent {agent.type!r} is declared twice: {other.name} and {agent.name}"
            )
        agent.check()
    return by_type
