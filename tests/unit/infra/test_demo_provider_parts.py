from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from laxity.infra.demo.draws import draw_integer, draw_unit
from laxity.infra.demo.provider.answers import duration, retry_headers
from laxity.infra.demo.provider.injection import Injection
from laxity.infra.demo.provider.settings import (
    ModelLimit,
    ProviderSettings,
    ProviderSettingsError,
    parse_model,
)
from laxity.infra.demo.provider.wire import Call, InvalidCallError, parse_call

MESSAGES = [{"role": "user", "content": "x" * 41}]


def parsed(headers: dict[str, str] | None = None, **fields: Any) -> Call:
    body = {"model": "m", "messages": MESSAGES, **fields}
    return parse_call(headers or {}, json.dumps(body).encode())


def test_draws_are_pinned_so_that_no_platform_changes_a_run() -> None:
    assert draw_integer(7, "a", 1) == draw_integer(7, "a", "1")
    assert draw_integer(7, "ab", "c") != draw_integer(7, "a", "bc")
    assert draw_unit(7, "tier", 0) == pytest.approx(0.015860584475784534)


def test_draws_are_even() -> None:
    draws = [draw_unit(1, index) for index in range(20_000)]
    assert 0 <= min(draws) < max(draws) < 1
    for tenth in range(10):
        share = sum(tenth / 10 <= draw < (tenth + 1) / 10 for draw in draws) / len(draws)
        assert share == pytest.approx(0.1, abs=0.01)


def test_prompt_tokens_are_a_quarter_of_the_characters_or_as_the_header_says() -> None:
    assert parsed().tokens_in == 10
    parts = [{"role": "user", "content": [{"type": "text", "text": "x" * 8}, {"type": "image_url"}]}]
    assert parsed(messages=parts).tokens_in == 2
    assert parsed(messages=[{"role": "user", "content": ""}]).tokens_in == 1
    assert parsed({"x-laxity-context": "4808"}).tokens_in == 4_808


def test_generated_tokens_never_exceed_max_tokens() -> None:
    assert parsed({"x-laxity-generate": "44"}, max_tokens=100).tokens_out == 44
    assert parsed({"x-laxity-generate": "44"}, max_tokens=43).tokens_out == 43
    assert parsed({"x-laxity-generate": "0"}).tokens_out == 0
    assert parsed(max_tokens=5).tokens_out == 5
    assert parsed(max_tokens=5, max_completion_tokens=7).max_tokens == 7


def test_without_a_header_the_key_decides_how_much_is_generated() -> None:
    sizes = {parsed({"idempotency-key": f"k{index}"}).tokens_out for index in range(50)}
    assert len(sizes) > 20
    assert (
        parsed({"idempotency-key": "k1"}).tokens_out == parsed({"idempotency-key": "k1"}, user="u").tokens_out
    )


def test_the_fingerprint_is_of_what_is_asked_not_of_how_it_is_written() -> None:
    spaced = json.dumps({"messages": MESSAGES, "model": "m"}, indent=4).encode()
    assert parse_call({}, spaced).body == parsed().body
    assert parsed(temperature=0.5).body != parsed().body


def test_the_tenant_comes_from_the_header_or_the_user_field() -> None:
    assert parsed(user="u").origin.tenant == "u"
    assert parsed({"x-laxity-tenant": "t"}, user="u").origin.tenant == "t"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": None}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": 7}]}, "messages"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "12"}, "max_tokens"),
        ({"max_tokens": 10**9}, "max_tokens"),
        ({"n": 2}, "n"),
        ({"stream": True}, "stream"),
        ({"user": "u" * 256}, "user"),
    ],
)
def test_a_field_that_cannot_be_is_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidCallError) as raised:
        parsed(**fields)
    assert (raised.value.param or "").split(".")[0] == param
    assert raised.value.status == 400


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"[]", b"\xff", b'{"model": "m", "messages": NaN}', b"[" * 100_000, b"1" * 5_000]
)
def test_a_body_that_is_no_request_is_refused(raw: bytes) -> None:
    with pytest.raises(InvalidCallError):
        parse_call({}, raw)


@pytest.mark.parametrize("value", ["-1", "1.5", "x", "", "\u0663", "10000001", "9" * 5_000])
def test_a_header_that_is_no_count_is_refused(value: str) -> None:
    for name in ("x-laxity-context", "x-laxity-generate"):
        with pytest.raises(InvalidCallError, match=name):
            parsed({name: value})


def test_a_key_that_is_too_long_is_refused_not_cut() -> None:
    assert parsed({"idempotency-key": "k" * 255}).origin.key == "k" * 255
    with pytest.raises(InvalidCallError, match="idempotency-key is longer than 255"):
        parsed({"idempotency-key": "k" * 256})


def test_failures_follow_seed_call_and_attempt() -> None:
    injection = Injection(seed=3, rate_429=0.2, rate_500=0.015)
    calls = [f"key:{index}" for index in range(20_000)]
    failed = [call for call in calls if injection.fails_after(call, 1) is not None]
    assert len(failed) / len(calls) == pytest.approx(0.015, abs=0.004)
    assert failed == [call for call in calls if injection.fails_after(call, 1) is not None]
    assert sum(injection.fails_after(call, 2) is not None for call in failed) < len(failed) / 5
    refused = [call for call in calls if injection.refuses(call, 1)]
    assert sum(injection.refuses(call, 2) for call in refused) < len(refused) / 3
    other = Injection(seed=4, rate_429=0.2, rate_500=0.015)
    assert failed != [call for call in calls if other.fails_after(call, 1) is not None]
    assert sum(injection.refuses(call, 1) for call in calls) / len(calls) == pytest.approx(0.2, abs=0.015)
    assert all(0 <= (injection.fails_after(call, 1) or 0) < 1 for call in failed)


def test_rates_of_none_and_all_are_exact() -> None:
    none, every = Injection(seed=1, rate_429=0, rate_500=0), Injection(seed=1, rate_429=1, rate_500=1)
    for index in range(2_000):
        assert none.fails_after(str(index), 1) is None
        assert not none.refuses(str(index), 1)
        assert every.fails_after(str(index), 1) is not None
        assert every.refuses(str(index), 1)


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (0, "0s"),
        (250, "250ms"),
        (1_000, "1s"),
        (1_500, "1.5s"),
        (59_999, "59.999s"),
        (60_000, "1m0s"),
        (360_000, "6m0s"),
    ],
)
def test_durations_read_as_openai_writes_them(ms: int, text: str) -> None:
    assert duration(ms) == text


def test_retry_after_is_never_too_early() -> None:
    assert retry_headers(1)["retry-after"] == "1"
    assert retry_headers(1_000)["retry-after"] == "1"
    assert retry_headers(1_001) == {"retry-after": "2", "retry-after-ms": "1001"}


def test_a_model_is_given_as_name_requests_tokens() -> None:
    assert parse_model("small:60:1000") == ModelLimit(
        name="small", requests_per_minute=60, tokens_per_minute=1_000
    )


@pytest.mark.parametrize(
    "text", ["", "m", "m:1", "m:1:", "m:x:1", "m:-1:1", ":1:1", "m m:1:1", "m:0:1", "m:1:0", "m:1:2:3"]
)
def test_a_model_that_cannot_be_is_named(text: str) -> None:
    with pytest.raises(ProviderSettingsError, match="model"):
        parse_model(text)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"speed": 0}, "speed is 0"),
        ({"speed": float("nan")}, "speed is nan"),
        ({"inject_429": 1.1}, "inject_429 is 1.1"),
        ({"inject_500": -0.1}, "inject_500 is -0.1"),
        ({"inject_500": float("nan")}, "inject_500 is nan"),
        ({"port": 65_536}, "port is 65536"),
        ({"drain_ms": 0}, "drain_ms is 0"),
        ({"models": ()}, "models are"),
        ({"models": (parse_model("m:1:1"), parse_model("m:2:2"))}, "each name once"),
    ],
)
def test_a_setting_out_of_range_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ProviderSettingsError, match=message):
        ProviderSettings(**{"ledger": Path("unused"), "models": (parse_model("m:1:1"),), **changes})


@pytest.mark.parametrize("depth", range(10, 3_000, 130))
def test_a_deep_body_is_a_call_or_refused_but_never_a_crash(depth: int) -> None:
    raw = json.dumps({"model": "m", "messages": MESSAGES})[:-1] + ', "x": ' + "[" * depth + "]" * depth + "}"
    with suppress(InvalidCallError):
        assert parse_call({}, raw.encode()).model == "m"
