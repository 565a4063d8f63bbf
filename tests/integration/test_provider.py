"""The provider over HTTP: a real server in this process, and the real command as a process that is killed."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from laxity.infra.demo.provider.ledger import LedgerError, read_ledger
from laxity.infra.demo.provider.line import Kind, Line, encode
from laxity.infra.demo.provider.server import running_provider
from laxity.infra.demo.provider.settings import ModelLimit, ProviderSettings
from laxity.schemas.timing import ManualClock, SystemClock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

MODEL = ModelLimit(name="m", requests_per_minute=100_000, tokens_per_minute=100_000_000)
WAIT_S = 20.0  # far beyond what any of it takes; reached only by a failure
POLL_S = 0.01


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    return tmp_path / "provider.jsonl"


@asynccontextmanager
async def serving(
    ledger: Path, *, clock: ManualClock | None = None, **changes: Any
) -> AsyncIterator[httpx.AsyncClient]:
    """A provider 1,000 times as fast as a real one, without failures, and a client of it."""
    defaults: dict[str, Any] = {"models": (MODEL,), "speed": 1_000.0, "inject_500": 0.0}
    settings = ProviderSettings(ledger=ledger, **{**defaults, **changes})
    async with running_provider(settings, clock=clock) as running, client_of(running.url) as client:
        yield client


def client_of(url: str) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=None)
    return httpx.AsyncClient(base_url=url, timeout=WAIT_S, trust_env=False, limits=limits)


async def ask(
    client: httpx.AsyncClient, key: str = "", *, context: int = 8, generate: int = 1, **fields: Any
) -> httpx.Response:
    headers = {
        "authorization": "Bearer anything",
        "x-laxity-context": str(context),
        "x-laxity-generate": str(generate),
        "x-laxity-tenant": "acme",
        "x-laxity-task": f"task-of-{key}",
    }
    body = {"model": "m", "messages": [{"role": "user", "content": "?"}], "max_tokens": 10, **fields}
    if key:
        headers["idempotency-key"] = key
    return await client.post("/v1/chat/completions", headers=headers, json=body)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110  another process or a file has no event
            await asyncio.sleep(POLL_S)


async def one_in_flight(client: httpx.AsyncClient) -> None:
    async with asyncio.timeout(WAIT_S):
        text = ""
        while "laxity_provider_in_flight 1.0" not in text:
            text = (await client.get("/metrics")).text


def kinds(ledger: Path) -> list[str]:
    return [line.kind.value for line in read_ledger(ledger)]


def effects(ledger: Path) -> list[str]:
    return [line.key for line in read_ledger(ledger) if line.kind is Kind.EFFECT]


# --- one call ---------------------------------------------------------------------------------------------


async def test_a_call_is_answered_as_openai_does_and_is_in_the_ledger_by_then(ledger: Path) -> None:
    before_ms = SystemClock().now_ms()
    async with serving(ledger) as client:
        response = await ask(client, "k1", context=4_808, generate=7)
        (line,) = read_ledger(ledger)
    answer = response.json()
    assert response.status_code == 200
    assert answer["object"] == "chat.completion"
    assert answer["id"].startswith("chatcmpl-")
    assert answer["usage"] == {"prompt_tokens": 4_808, "completion_tokens": 7, "total_tokens": 4_815}
    (choice,) = answer["choices"]
    assert choice["finish_reason"] == "stop"
    assert choice["message"]["role"] == "assistant"
    assert len(choice["message"]["content"]) // 4 in {6, 7}
    assert (line.key, line.tenant, line.task, line.model) == ("k1", "acme", "task-of-k1", "m")
    assert (line.tokens_in, line.tokens_out, line.kind, line.charged) == (4_808, 7, Kind.EFFECT, 4_818)
    assert before_ms <= line.arrived_ms <= line.ts_ms <= SystemClock().now_ms()


async def test_service_takes_time_by_tokens_and_speed_divides_it(ledger: Path) -> None:
    clock = SystemClock()
    async with serving(ledger, speed=2.0) as client:
        start_ms = clock.monotonic_ms()
        await ask(client, context=4_000, generate=5)
        took_ms = clock.monotonic_ms() - start_ms
    assert 299 <= took_ms < 2_000  # (500 + 100) / 2, and room for a busy machine


async def test_calls_are_served_side_by_side(ledger: Path) -> None:
    clock = SystemClock()
    async with serving(ledger, speed=1.0) as client:
        start_ms = clock.monotonic_ms()
        await asyncio.gather(*(ask(client, f"k{index}", context=2_400, generate=0) for index in range(20)))
        took_ms = clock.monotonic_ms() - start_ms
    assert took_ms < 20 * 300 / 2


async def test_the_list_of_models_and_the_probes(ledger: Path) -> None:
    other = ModelLimit(name="other", requests_per_minute=1, tokens_per_minute=1)
    async with serving(ledger, models=(MODEL, other)) as client:
        models = (await client.get("/v1/models")).json()
        assert [model["id"] for model in models["data"]] == ["m", "other"]
        assert (await client.get("/livez")).status_code == 200
        assert (await client.get("/readyz")).status_code == 200
        await ask(client, "k1", generate=3)
        await ask(client, "k1", generate=3)
        metrics = (await client.get("/metrics")).text
    assert 'laxity_provider_calls_total{kind="effect",model="m",status="200"} 1.0' in metrics
    assert 'laxity_provider_calls_total{kind="replay",model="m",status="200"} 1.0' in metrics
    assert 'laxity_provider_tokens_total{direction="out",model="m"} 3.0' in metrics
    assert "laxity_provider_in_flight 0.0" in metrics


async def test_requests_that_are_no_calls_are_refused_and_recorded(ledger: Path) -> None:
    async with serving(ledger) as client:
        no_json = await client.post(
            "/v1/chat/completions", content=b"{", headers=[(b"x-laxity-task", b"t\xe4sk")]
        )
        too_large = await client.post("/v1/chat/completions", content=b" " * (5 << 20))
        unknown = await client.post(
            "/v1/chat/completions", content=rb'{"model": "no\ud800where", "messages": [{"role": "user"}]}'
        )
        stream = await ask(client, stream=True)
        wrong_method = await client.get("/v1/chat/completions")
    assert [r.status_code for r in (no_json, too_large, unknown, stream, wrong_method)] == [
        400,
        413,
        404,
        400,
        405,
    ]
    assert unknown.json()["error"]["code"] == "model_not_found"
    assert stream.json()["error"]["param"] == "stream"
    assert [(line.kind, line.status, line.reason) for line in read_ledger(ledger)] == [
        (Kind.REFUSED, 400, "invalid"),
        (Kind.REFUSED, 413, "invalid"),
        (Kind.REFUSED, 404, "model"),
        (Kind.REFUSED, 400, "invalid"),
    ]


# --- limits -----------------------------------------------------------------------------------------------


def limited(requests: int, tokens: int) -> tuple[ModelLimit]:
    return (ModelLimit(name="m", requests_per_minute=requests, tokens_per_minute=tokens),)


async def test_requests_per_minute_are_enforced_to_the_millisecond(ledger: Path) -> None:
    clock = ManualClock()
    async with serving(ledger, clock=clock, models=limited(3, 10**9), speed=1.0) as client:
        first = await ask(client)
        assert first.headers["x-ratelimit-limit-requests"] == "3"
        assert first.headers["x-ratelimit-remaining-requests"] == "2"
        assert first.headers["x-ratelimit-reset-requests"] == "20s"
        assert [(await ask(client)).status_code for _ in range(3)] == [200, 200, 429]
        clock.advance(19_999)
        refused = await ask(client)
        clock.advance(1)
        admitted = await ask(client)
    assert refused.status_code == 429
    assert refused.headers["retry-after"] == "1"
    assert refused.headers["retry-after-ms"] == "1"
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    assert admitted.status_code == 200
    lines = list(read_ledger(ledger))
    assert [(line.status, line.reason) for line in lines if line.kind is Kind.REFUSED] == [
        (429, "requests")
    ] * 2


async def test_tokens_are_prompt_and_max_tokens_whatever_is_generated(ledger: Path) -> None:
    clock = ManualClock()
    async with serving(ledger, clock=clock, models=limited(100, 600), speed=1.0) as client:
        first = await ask(client, context=390, generate=1, max_tokens=10)
        assert first.headers["x-ratelimit-remaining-tokens"] == "200"
        refused = await ask(client, context=195, generate=1, max_tokens=10)
        assert (refused.status_code, refused.headers["retry-after-ms"]) == (429, "500")
        assert refused.json()["error"]["type"] == "tokens"
        never = await ask(client, context=600, generate=1, max_tokens=10)
        assert (never.status_code, never.headers["x-should-retry"]) == (429, "false")
        assert "retry-after" not in never.headers
        fits = await ask(client, context=190, generate=1, max_tokens=10)
        assert (fits.status_code, fits.headers["x-ratelimit-reset-tokens"]) == (200, "1m0s")


async def test_models_have_limits_of_their_own_and_speed_multiplies_them(ledger: Path) -> None:
    models = (ModelLimit(name="small", requests_per_minute=1, tokens_per_minute=9_000), MODEL)
    async with serving(ledger, clock=ManualClock(), models=models, speed=2.0) as client:
        small = [(await ask(client, model="small")).status_code for _ in range(3)]
        assert small == [200, 200, 429]
        assert (await ask(client)).status_code == 200


async def test_a_crowd_gets_what_the_limit_allows_and_no_more(ledger: Path) -> None:
    async with serving(ledger, clock=ManualClock(), models=limited(40, 10**9), speed=1.0) as client:
        crowd = await asyncio.gather(*(ask(client, f"k{index}") for index in range(100)))
    assert sum(response.status_code == 200 for response in crowd) == 40
    assert sum(response.status_code == 429 for response in crowd) == 60
    assert sorted(set(kinds(ledger))) == ["effect", "refused"]
    assert kinds(ledger).count("effect") == 40


async def test_a_restart_grants_no_second_minute(ledger: Path) -> None:
    clock = ManualClock()
    async with serving(ledger, clock=clock, models=limited(2, 10**9), speed=1.0) as client:
        assert [(await ask(client)).status_code for _ in range(3)] == [200, 200, 429]
    async with serving(ledger, clock=clock, models=limited(2, 10**9), speed=1.0) as client:
        assert (await ask(client)).status_code == 429
        clock.advance(30_000)
        assert (await ask(client)).status_code == 200


# --- idempotency ------------------------------------------------------------------------------------------


async def test_a_known_key_gets_the_first_answer_again_even_after_a_restart(ledger: Path) -> None:
    async with serving(ledger) as client:
        first = await ask(client, "k1", generate=9)
        again = await ask(client, "k1", generate=9)
    async with serving(ledger) as client:
        later = await ask(client, "k1", generate=9)
        other = await ask(client, "k2", generate=9)
    assert first.json() == again.json() == later.json()
    assert other.json()["id"] != first.json()["id"]
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == later.headers["idempotent-replayed"] == "true"
    assert kinds(ledger) == ["effect", "replay", "replay", "effect"]


async def test_duplicates_at_the_same_time_have_one_effect(ledger: Path) -> None:
    async with serving(ledger, speed=10.0) as client:
        answers = await asyncio.gather(*(ask(client, "k1", context=8_000) for _ in range(25)))
    assert {response.status_code for response in answers} == {200}
    assert len({response.text for response in answers}) == 1
    assert kinds(ledger) == ["effect"] + ["replay"] * 24


async def test_a_duplicate_of_a_call_that_fails_tries_for_itself(ledger: Path) -> None:
    async with serving(ledger, inject_500=1.0, speed=10.0) as client:
        answers = await asyncio.gather(*(ask(client, "k1", context=800) for _ in range(3)))
    assert [response.status_code for response in answers] == [500] * 3
    assert kinds(ledger) == ["injected"] * 3


async def test_without_dedupe_every_call_has_its_effect(ledger: Path) -> None:
    async with serving(ledger, dedupe=False) as client:
        answers = [await ask(client, "k1") for _ in range(3)]
        await ask(client, "k1", user="other body")
    assert {response.status_code for response in answers} == {200}
    assert effects(ledger) == ["k1"] * 4


async def test_calls_without_a_key_are_never_duplicates(ledger: Path) -> None:
    async with serving(ledger) as client:
        await ask(client)
        await ask(client)
    assert kinds(ledger) == ["effect", "effect"]


async def test_a_key_with_another_body_is_an_error_and_has_no_effect(ledger: Path) -> None:
    async with serving(ledger, speed=1.0) as client:
        flying = asyncio.ensure_future(ask(client, "k1", context=8_000))
        await one_in_flight(client)
        during = await ask(client, "k1", user="someone else")
        assert not flying.done()  # told at once, not after the wait
        await flying
        after = await ask(client, "k1", user="someone else")
    for response in (during, after):
        assert (response.status_code, response.json()["error"]["type"]) == (400, "idempotency_error")
    assert len(effects(ledger)) == 1


# --- failures on purpose ----------------------------------------------------------------------------------


async def outcomes(ledger: Path, **changes: Any) -> list[int]:
    async with serving(ledger, **changes) as client:
        return [(await ask(client, f"k{index}")).status_code for index in range(60)]


async def test_failures_repeat_with_the_seed_and_have_no_effect(tmp_path: Path) -> None:
    runs = [
        await outcomes(tmp_path / str(run), inject_500=0.3, inject_429=0.2, seed=seed)
        for run, seed in enumerate((1, 1, 2))
    ]
    assert runs[0] == runs[1] != runs[2]
    assert set(runs[0]) == {200, 429, 500}
    lines = list(read_ledger(tmp_path / "0"))
    assert [line.status for line in lines] == runs[0]
    assert {(line.kind, line.status) for line in lines} == {
        (Kind.EFFECT, 200),
        (Kind.INJECTED, 429),
        (Kind.INJECTED, 500),
    }


async def test_attempts_are_counted_across_restarts(tmp_path: Path) -> None:
    async def attempts(ledger: Path, *, restart: bool) -> list[int]:
        statuses: list[int] = []
        while not statuses or (statuses[-1] != 200 and len(statuses) < 100):
            async with serving(ledger, inject_500=0.6, inject_429=0.2, seed=5) as client:
                for _ in range(1 if restart else 100):
                    statuses.append((await ask(client, "k1")).status_code)
                    if statuses[-1] == 200:
                        break
        return statuses

    throughout = await attempts(tmp_path / "a", restart=False)
    restarted = await attempts(tmp_path / "b", restart=True)
    assert throughout == restarted
    assert len(throughout) > 1, "seed 5 should fail k1 at least once"


async def test_an_injected_429_says_when_to_come_back(ledger: Path) -> None:
    async with serving(ledger, inject_429=1.0, speed=10.0) as client:
        response = await ask(client)
    assert response.headers["retry-after-ms"] == "100"
    assert response.headers["x-ratelimit-limit-requests"] == "1000000"


# --- clients and disks that fail --------------------------------------------------------------------------


async def test_a_call_goes_on_when_its_caller_has_left(ledger: Path) -> None:
    async with serving(ledger, speed=4.0) as client:
        with pytest.raises(httpx.ReadTimeout):
            await client.post(
                "/v1/chat/completions",
                headers={"idempotency-key": "k1", "x-laxity-context": "16000", "x-laxity-generate": "0"},
                json={"model": "m", "messages": [{"role": "user", "content": "?"}]},
                timeout=0.1,
            )
        assert effects(ledger) == []
        await until(lambda: effects(ledger) == ["k1"])


async def test_leaving_drains_what_is_in_flight(ledger: Path) -> None:
    settings = ProviderSettings(ledger=ledger, models=(MODEL,), inject_500=0.0)
    async with running_provider(settings) as running:
        client = client_of(running.url)
        flying = asyncio.ensure_future(ask(client, "k1", context=4_000))
        await one_in_flight(client)
        assert not flying.done()
    assert (await flying).status_code == 200
    with pytest.raises(httpx.ConnectError):
        await ask(client, "k2")
    await client.aclose()
    assert effects(ledger) == ["k1"]


async def test_a_damaged_ledger_is_not_served(ledger: Path) -> None:
    ledger.write_bytes(b"damage\n")  # noqa: ASYNC240  nothing else runs yet
    with pytest.raises(LedgerError, match="line 1"):
        async with serving(ledger):
            pytest.fail("served from a damaged ledger")


# --- the command as a process -----------------------------------------------------------------------------


class Process:
    """`laxity provider` on its own; ends with the test whatever happens."""

    def __init__(self, process: asyncio.subprocess.Process, url: str) -> None:
        self.process = process
        self.client = client_of(url)

    async def ended(self) -> int:
        async with asyncio.timeout(WAIT_S):
            return await self.process.wait()

    def signal(self, number: int) -> None:
        self.process.send_signal(number)


async def spawn(ledger: Path, *options: str, shell_prefix: str = "") -> asyncio.subprocess.Process:
    command = [sys.executable, "-m", "laxity.infra.cli", "provider", "--ledger", str(ledger), *options]
    if shell_prefix:
        command = ["/bin/sh", "-c", f'{shell_prefix}; exec "$@"', "sh", *command]
    return await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )


@asynccontextmanager
async def process(ledger: Path, *options: str, shell_prefix: str = "") -> AsyncIterator[Process]:
    fast = ["--model", "m:100000:100000000", "--inject-500", "0", *options]
    child = await spawn(ledger, *fast, shell_prefix=shell_prefix)
    try:
        assert child.stdout is not None
        async with asyncio.timeout(WAIT_S):
            announced = (await child.stdout.readline()).decode()
        found = re.search(r"http://\S+:\d+", announced)
        assert found, announced or (await child.communicate())[1].decode()
        running = Process(child, found[0])
        async with running.client:
            yield running
    finally:
        if child.returncode is None:
            child.kill()
        await child.communicate()


async def test_kill_9_loses_no_answer_and_doubles_no_effect(ledger: Path) -> None:
    acknowledged: dict[str, Any] = {}

    async def work(client: httpx.AsyncClient, worker: int) -> None:
        for number in range(10_000):
            key = f"{worker}-{number}"
            try:
                response = await ask(client, key)
            except httpx.TransportError:
                return
            assert response.status_code == 200, response.text
            acknowledged[key] = response.json()

    for life in range(3):
        async with process(ledger, "--speed", "100") as running:
            workers = [asyncio.create_task(work(running.client, life * 8 + index)) for index in range(8)]
            at_least = len(acknowledged) + 100
            await until(lambda least=at_least: len(acknowledged) >= least)  # type: ignore[misc]
            running.signal(signal.SIGKILL)
            assert await running.ended() == -signal.SIGKILL
            await asyncio.gather(*workers)
        assert effects(ledger).count("") == 0
        assert acknowledged.keys() <= set(effects(ledger))
        assert len(effects(ledger)) == len(set(effects(ledger)))
    async with process(ledger, "--speed", "100") as running:
        for key in [*acknowledged][:: max(1, len(acknowledged) // 40)]:
            assert (await ask(running.client, key)).json() == acknowledged[key]
    assert len(effects(ledger)) == len(set(effects(ledger)))


async def test_sigterm_drains_the_call_in_flight_and_ends_with_0(ledger: Path) -> None:
    async with process(ledger, "--speed", "2") as running:
        flying = asyncio.ensure_future(ask(running.client, "k1", context=8_000))
        await one_in_flight(running.client)
        running.signal(signal.SIGTERM)
        assert (await flying).status_code == 200
        assert await running.ended() == 0
    assert effects(ledger) == ["k1"]


async def test_sigterm_does_not_wait_for_ever(ledger: Path) -> None:
    clock = SystemClock()
    async with process(ledger, "--drain-ms", "1000") as running:
        flying = asyncio.ensure_future(ask(running.client, "k1", context=8 * 8_000))
        await one_in_flight(running.client)
        start_ms = clock.monotonic_ms()
        running.signal(signal.SIGTERM)
        assert await running.ended() == 0
        assert (await flying).status_code == 500
        assert clock.monotonic_ms() - start_ms < 6_000
    assert effects(ledger) == []


async def test_ctrl_c_ends_with_130(ledger: Path) -> None:
    async with process(ledger) as running:
        running.signal(signal.SIGINT)
        assert await running.ended() == 130


async def failure_of(ledger: Path, *options: str) -> tuple[int | None, str]:
    child = await spawn(ledger, *options)
    try:
        async with asyncio.timeout(WAIT_S):
            _, errors = await child.communicate()
    finally:
        if child.returncode is None:  # it served although it should not have
            child.kill()
    return child.returncode, errors.decode()


async def test_a_start_that_cannot_be_fails_in_one_line(ledger: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        code, errors = await failure_of(ledger, "--port", port)
    assert (code, len(errors.splitlines())) == (1, 1)
    assert f"127.0.0.1:{port}" in errors
    assert not os.path.exists(ledger)  # noqa: ASYNC240, PTH110
    code, errors = await failure_of(ledger, "--speed", "0")
    assert (code, len(errors.splitlines())) == (2, 1)
    assert "speed is 0" in errors
    async with process(ledger):
        code, errors = await failure_of(ledger)
        assert (code, len(errors.splitlines())) == (1, 1)
        assert "another provider is writing it" in errors


async def test_a_full_disk_ends_the_process_and_the_next_one_knows_what_was_promised(ledger: Path) -> None:
    statuses: dict[str, int] = {}
    async with process(ledger, "--speed", "1000", shell_prefix="ulimit -f 8") as running:  # a few KiB
        for number in range(200):
            try:
                statuses[f"k{number}"] = (await ask(running.client, f"k{number}")).status_code
            except httpx.TransportError:
                break
        assert await running.ended() == 1
        assert running.process.stderr is not None
        assert "File too large" in (await running.process.stderr.read()).decode()
    served = [key for key, status in statuses.items() if status == 200]
    assert len(served) > 3
    assert 500 in statuses.values()
    async with process(ledger, "--speed", "1000") as running:
        replayed = [(await ask(running.client, key)).headers.get("idempotent-replayed") for key in served]
    assert replayed == ["true"] * len(served)


async def test_a_line_that_was_torn_by_a_crash_is_forgotten(ledger: Path) -> None:
    async with serving(ledger) as client:
        await ask(client, "whole")
    (whole,) = read_ledger(ledger)
    torn = encode(Line(**{**json.loads(encode(whole)), "key": "torn", "kind": Kind.EFFECT}))[:-9]
    with ledger.open("ab") as file:
        file.write(torn)
    async with serving(ledger) as client:
        assert "idempotent-replayed" in (await ask(client, "whole")).headers
        assert "idempotent-replayed" not in (await ask(client, "torn")).headers
    assert effects(ledger) == ["whole", "torn"]
