"""The demonstration's agents, which `laxity up` offers: each task is one chat completion at the provider.

`demo.chat` relies on the provider's deduplication: an attempt of unknown outcome is simply made again under the same key.
`demo.summarise` trusts no deduplication: it asks first what the earlier attempt did.
The triggers say so themselves (`on_unknown`), so that the agents run under any configuration.
"""

from __future__ import annotations

from laxity.consumers.agents import agent
from laxity.consumers.context import AgentContext
from laxity.infra.demo.chat import Completion, Prompt, ask_effect, complete


@agent("demo.chat")
async def chat(ctx: AgentContext, prompt: Prompt) -> Completion:
    """Somebody waits for the answer."""
    return await complete(ctx, prompt)


@agent("demo.summarise")
async def summarise(ctx: AgentContext, prompt: Prompt) -> Completion:
    """Nobody waits, and nothing is to be paid for twice."""
    return await complete(ctx, prompt)


@summarise.reconcile
async def ask_provider(ctx: AgentContext, prompt: Prompt) -> Completion:  # noqa: ARG001 - the agent's parameters
    """What the attempt before did, if anything."""
    return await ask_effect(ctx)
