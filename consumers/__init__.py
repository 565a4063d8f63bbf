"""Agents: what an agent is written with, the runner, one attempt as a pipeline, leases."""

if __name__ != "laxity.consumers":
    raise ImportError("import laxity.consumers: under its bare name every class would exist twice")

from laxity.consumers.agents import Agent, agent
from laxity.consumers.context import AgentContext
from laxity.consumers.errors import (
    AgentDefinitionError,
    CallRefused,
    Fail,
    LeaseLost,
    NotApplied,
    OutcomeUnknown,
    Retry,
    Yield,
)

__all__ = [
    "Agent",
    "AgentContext",
    "AgentDefinitionError",
    "CallRefused",
    "Fail",
    "LeaseLost",
    "NotApplied",
    "OutcomeUnknown",
    "Retry",
    "Yield",
    "agent",
]
