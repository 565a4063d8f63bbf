"""The agents of the chaos suites: each task is one call of the demonstration's provider, and its payload says what else happens."""

from __future__ import annotations

import asyncio
from typing import Final

from pydantic import Field

from laxity.consumers.agents import agent
from laxity.consumers.context import AgentContext
from laxity.consumers.errors import Fail, Retry
from laxity.infra.demo.chat import Completion, Prompt, ask_effect, complete

STEP_S: Final = 0.5  # between two looks of a long task, each with a checkpoint behind it


class Work(Prompt):
    """The provider call, and what comes before it: attempts that fail, steps of STEP_S each."""

    failures: int = Field(default=0, ge=0)
    steps: int = Field(default=0, ge=0)


@agent("chaos.call")
async def call(ctx: AgentContext, work: Work) -> Completion:
    """One call; the first `failures` attempts fail before it and may be repeated."""
    if ctx.attempt <= work.failures:
        raise Retry("not_yet", f"attempt {ctx.attempt} of {work.failures} that fail")
    return await complete(ctx, work)


@call.reconcile
async def ask(ctx: AgentContext, work: Work) -> Completion:
    """What the attempt before did, if anything."""
    return await ask_effect(ctx)


@agent("chaos.wrong")
async def wrong(ctx: AgentContext, work: Work) -> Completion:
    """No attempt can help."""
    raise Fail("wrong", "this task is wrong on purpose")


@agent("chaos.long")
async def long(ctx: AgentContext, work: Work) -> Completion:
    """Steps over several leases, each kept by a checkpoint, then the call: what a lost attempt did is not done again."""
    done = int(ctx.last_checkpoint or b"0")
    while done < work.steps:
        await asyncio.sleep(STEP_S)
        done += 1
        await ctx.checkpoint(str(done).encode())
    return await complete(ctx, work)
