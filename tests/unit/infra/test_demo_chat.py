"""What an answer, or its absence, means for an attempt; against a real provider and real sockets."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import httpx
import pytest

from laxity.consumers.context import AgentContext
from laxity.consumers.errors import Ending, Fail, NotApplied, OutcomeUnknown, Retry
from laxity.infra.demo import agents, chat
from laxity.infra.demo.chat import Completion, Prompt, ask_effect, complete
from laxity.infra.demo.provider.ledger import read_ledger
from laxity.infra.demo.provider.server import running_provider
from laxity.infra.demo.provider.settings import ModelLimit, ProviderSettings

PROMPT = Prompt(model="llm", text="Say it.", context_tokens=80, generate_tokens=5, max_tokens=64)
Pointing = Callable[[str], None]


class Context:
    """As much of an AgentContext as the demonstration uses."""

    def __init__(self, key: str = "key") -> None:
        self.key = key
        self.task_id, self.tenant = f"task of {key}", "acme"
        self.called: list[tuple[str, int]] = []
        self.settled: dict[str, int] = {}
        self.counted: dict[str, int] = {}

    def idempotency_key(self) -> str:
        return self.key

    async def call(self, resource: str, amount: int) -> None:
        self.called.append((resource, amount))

    def used(self, resource: str, amount: int) -> None:
        self.settled[resource] = amount

    def usage(self, **counts: int) -> None:
        self.counted = counts


def as_context(context: Context) -> AgentContext:
    return cast("AgentContext", context)


async def ask(context: Context | None = None, prompt: Prompt = PROMPT) -> Completion:
    return await complete(as_context(context or Context()), prompt)


@pytest.fixture
async def pointing(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Pointing]:
    """Makes the agents call a URL."""

    def point(url: str) -> None:
        monkeypatch.setenv("LAXITY_PROVIDER_URL", url)
        chat._provider_url.cache_clear()

    yield point
    await chat._client(asyncio.get_running_loop()).aclose()
    chat._provider_url.cache_clear()


@asynccontextmanager
async def provider(ledger: Path, pointing: Pointing, **changes: Any) -> AsyncIterator[None]:
    limits: dict[str, Any] = {"requests_per_minute": 10**6, "tokens_per_minute": 10**9}
    options = {name: changes.pop(name) for name in list(changes) if name in limits}
    model = ModelLimit(name="llm", **(limits | options))
    settings = ProviderSettings(
        ledger=ledger, models=(model,), **({"speed": 1_000.0, "inject_500": 0.0} | changes)
    )
    async with running_provider(settings) as running:
        pointing(running.url)
        yield


async def test_a_completion_is_charged_counted_and_told_by_its_key(
    tmp_path: Path, pointing: Pointing
) -> None:
    context = Context()
    async with provider(tmp_path / "ledger", pointing):
        done = await ask(context)
        again = await ask()
        found = await ask_effect(as_context(Context()))
        with pytest.raises(NotApplied):
            await ask_effect(as_context(Context("never sent")))
    line = next(read_ledger(tmp_path / "ledger"))
    assert (line.key, line.tenant, line.task) == ("key", "acme", "task of key")
    assert (line.tokens_in, line.tokens_out) == (80, 5) == (done.tokens_in, done.tokens_out)
    assert context.called == [("llm", line.charged)] == [("llm", PROMPT.charge)]
    assert context.settled == {"llm": line.charged}
    assert context.counted == {"tokens_in": 80, "tokens_out": 5, "requests": 1}
    assert (done.replayed, again.replayed, found.replayed) == (False, True, True)
    assert done.id == again.id == found.id


async def test_a_call_under_way_is_neither_done_nor_not_done(tmp_path: Path, pointing: Pointing) -> None:
    slow = PROMPT.model_copy(update={"context_tokens": 4_000})  # half a second
    for dedupe in (True, False):
        async with provider(tmp_path / f"ledger-{dedupe}", pointing, speed=1.0, dedupe=dedupe):
            call = asyncio.create_task(ask(prompt=slow))
            async with asyncio.timeout(10), httpx.AsyncClient(trust_env=False) as client:
                text = ""
                while "in_flight 1.0" not in text:
                    text = (await client.get(f"{chat._base_url()}/metrics")).text
            with pytest.raises(OutcomeUnknown, match="under way"):
                await ask_effect(as_context(Context()))
            await call
            assert (await ask_effect(as_context(Context()))).tokens_in == 4_000


async def test_no_room_is_tried_again_when_there_is(tmp_path: Path, pointing: Pointing) -> None:
    async with provider(tmp_path / "ledger", pointing, speed=1.0, requests_per_minute=1):
        await ask()
        with pytest.raises(Retry) as refused:
            await ask(Context("another"))
        assert refused.value.code == "rate_limited"
        assert 30_000 < refused.value.retry_after_ms <= 60_000


async def test_a_call_that_never_fits_is_given_up(tmp_path: Path, pointing: Pointing) -> None:
    async with provider(tmp_path / "ledger", pointing, speed=1.0, tokens_per_minute=100):
        with pytest.raises(Fail) as refused:
            await ask()
    assert refused.value.code == "never_fits"


async def test_a_failure_on_the_way_is_tried_again(tmp_path: Path, pointing: Pointing) -> None:
    async with provider(tmp_path / "ledger", pointing, inject_500=1.0):
        with pytest.raises(Retry) as failed:
            await ask()
    assert failed.value.code == "provider_error"


@pytest.mark.parametrize("dedupe", [True, False])
async def test_a_failure_after_the_effect_is_unknown_not_failed(
    tmp_path: Path, pointing: Pointing, *, dedupe: bool
) -> None:
    async with provider(tmp_path / "ledger", pointing, inject_lost=1.0, dedupe=dedupe):
        with pytest.raises(OutcomeUnknown):
            await ask()
        found = await ask_effect(as_context(Context()))
        assert found.replayed
        if dedupe:
            assert (await ask()).id == found.id
    assert sum(line.kind == "effect" for line in read_ledger(tmp_path / "ledger")) == 1


async def test_a_provider_that_hangs_is_given_up_as_unknown(
    pointing: Pointing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half-open: the connection stands, and nothing ever comes."""
    monkeypatch.setattr(chat, "ANSWER_TIMEOUT_S", 0.1)
    over = asyncio.Event()

    async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await over.wait()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        pointing(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        with pytest.raises(OutcomeUnknown, match="no answer to a call that was sent"):
            await ask()
        over.set()


async def test_a_connection_that_is_reset_under_the_call_is_unknown(pointing: Pointing) -> None:
    """As when the provider is killed."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        at_once = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        pointing(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        with pytest.raises(OutcomeUnknown, match="no answer to a call that was sent"):
            await ask()


async def test_what_the_provider_will_never_do_is_given_up(tmp_path: Path, pointing: Pointing) -> None:
    async with provider(tmp_path / "ledger", pointing):
        for prompt in (PROMPT.model_copy(update={"model": "other"}), PROMPT):
            context = Context()
            if prompt is PROMPT:  # the key stands for another body already
                await ask(context, PROMPT.model_copy(update={"text": "Say something else."}))
            with pytest.raises(Fail) as refused:
                await ask(context, prompt)
            assert refused.value.code == "provider_refused"


async def test_nobody_there_means_nothing_was_done(
    pointing: Pointing, unused_tcp_port_factory: Callable[[], int]
) -> None:
    pointing(f"http://127.0.0.1:{unused_tcp_port_factory()}")
    context = Context()
    with pytest.raises(Retry) as failed:
        await ask(context)
    assert failed.value.code == "provider_unreachable"
    assert context.settled == {}
    with pytest.raises(OutcomeUnknown):
        await ask_effect(as_context(context))


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b"", OutcomeUnknown),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{", OutcomeUnknown),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", OutcomeUnknown),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nnull", OutcomeUnknown),
        (
            b'HTTP/1.1 500 No\r\nContent-Length: 27\r\n\r\n{"error":{"code":"ledger"}}',
            OutcomeUnknown,
        ),
        (b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n", OutcomeUnknown),
        (b'HTTP/1.1 500 No\r\nContent-Length: 30\r\n\r\n{"error":{"code":"no_effect"}}', Retry),
        (b"HTTP/1.1 429 No\r\nRetry-After: 7\r\nContent-Length: 0\r\n\r\n", Retry),
        (b'HTTP/1.1 400 No\r\nContent-Length: 11\r\n\r\n{"error":1}', Fail),
    ],
)
async def test_answers_that_are_cut_off_damaged_or_foreign(
    answer: bytes, expected: type[Ending], pointing: Pointing
) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        pointing(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        with pytest.raises(expected) as ended:
            await ask()
    if b"Retry-After" in answer:
        assert cast("Retry", ended.value).retry_after_ms == 7_000


async def test_without_an_address_it_is_said_so(monkeypatch: pytest.MonkeyPatch, pointing: Pointing) -> None:
    pointing("")
    with pytest.raises(Fail) as failed:
        await ask()
    assert "LAXITY_PROVIDER_URL" in str(failed.value)


def test_the_agents_can_be_asked_after_an_unknown_outcome() -> None:
    agents.chat.check()
    agents.summarise.check()
    assert agents.summarise.reconciler is agents.ask_provider
