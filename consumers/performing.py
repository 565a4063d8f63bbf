"""Run an agent's function so that it can be stopped: on the loop if it is async, in a thread of its own if it is not."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import threading
from collections.abc import Callable
from typing import Any, Final

from laxity.consumers.context import AgentContext, Attempt

STOP_GRACE_MS: Final = 5_000  # for an agent that was cancelled to tidy up; then it is left behind


class AgentExited(Exception):  # noqa: N818 - an agent tried to end the process
    """The agent raised SystemExit or KeyboardInterrupt: the end of its attempt, not of the runner."""


async def perform(
    function: Callable[..., Any], attempt: Attempt, arguments: tuple[Any, ...]
) -> asyncio.Future[Any]:
    """The finished work: done, raised or cancelled; not done only if it ignored its cancellation for STOP_GRACE_MS.

    A thread cannot be stopped: its future is cancelled at once, and the slot stays taken until the thread has ended.
    """
    context = AgentContext(attempt)
    over = attempt.loop.create_future()
    work = _start(function, attempt, (context, *arguments))
    work.add_done_callback(lambda _: _settle(over))

    def stop() -> None:
        work.cancel()
        attempt.loop.call_later(STOP_GRACE_MS / 1_000, _settle, over)

    attempt.lease.on_stop = stop
    if attempt.lease.stop is not None:
        stop()
    try:
        await over
    except asyncio.CancelledError:
        work.cancel()
        raise
    finally:
        attempt.lease.on_stop = None
    if not work.done():
        attempt.slot.hold()
        work.add_done_callback(lambda _: attempt.slot.let_go())
    return work


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _start(function: Callable[..., Any], attempt: Attempt, arguments: tuple[Any, ...]) -> asyncio.Future[Any]:
    if inspect.iscoroutinefunction(function):
        return attempt.loop.create_task(_contained(function, arguments))
    return _thread(function, attempt, arguments)


async def _contained(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    try:
        return await function(*arguments)
    except (SystemExit, KeyboardInterrupt) as error:
        raise AgentExited(f"{type(error).__name__}: {error}") from error


def _thread(
    function: Callable[..., Any], attempt: Attempt, arguments: tuple[Any, ...]
) -> asyncio.Future[Any]:
    """A daemon thread: one that hangs must not keep the process from ending."""
    loop, future = attempt.loop, attempt.loop.create_future()
    attempt.slot.hold()

    def finish(result: Any, error: BaseException | None) -> None:
        attempt.slot.let_go()
        if future.done():
            return
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)

    def run() -> None:
        result, raised = None, None
        try:
            result = function(*arguments)
        except BaseException as error:  # noqa: BLE001 - the judge decides about all of them
            exits = isinstance(error, SystemExit | KeyboardInterrupt | StopIteration)
            raised = AgentExited(f"{type(error).__name__}: {error}") if exits else error
        if not loop.is_closed():
            loop.call_soon_threadsafe(finish, result, raised)

    threading.Thread(
        target=contextvars.copy_context().run, args=(run,), name=f"agent-{attempt.dispatch.type}", daemon=True
    ).start()
    return future
