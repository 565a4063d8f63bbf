"""Payloads in, results out, by annotation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, field_validator
from typing_extensions import TypedDict

from laxity.consumers.payloads import (
    JSON,
    TEXT,
    ContractBroken,
    PayloadMismatch,
    Result,
    decoder_for,
    encoder_for,
)


class Model(BaseModel):
    n: int


class Hostile(BaseModel):
    n: int

    @field_validator("n")
    @classmethod
    def _explode(cls, value: int) -> int:
        raise RuntimeError("inside a validator")


@dataclass
class Plain:
    n: int


class Typed(TypedDict):
    n: int


@pytest.mark.parametrize("annotation", [Model, Plain, Typed, dict[str, int], dict, Any])
def test_json_goes_both_ways(annotation: Any) -> None:
    value = decoder_for(annotation)(b'{"n": 3}', JSON)
    assert encoder_for(annotation)(value) == Result(data=b'{"n":3}')


@given(st.binary())
def test_bytes_pass_untouched(data: bytes) -> None:
    assert decoder_for(bytes)(data, JSON) == data
    assert encoder_for(bytes)(data).data == data


@given(st.text())
def test_text_is_utf8(text: str) -> None:
    try:
        raw = text.encode()
    except UnicodeEncodeError:  # a lone surrogate
        return
    assert decoder_for(str)(raw, TEXT) == text
    assert encoder_for(str)(text).data == raw


@pytest.mark.parametrize("content_type", [JSON, "application/JSON; charset=utf-8", "application/geo+json"])
def test_text_that_came_as_json_is_a_json_string(content_type: str) -> None:
    decode = decoder_for(str)
    assert decode('"wörld"'.encode(), content_type) == "wörld"
    for payload in (b"world", b"7", b'{"a": 1}', b""):
        with pytest.raises(PayloadMismatch):
            decode(payload, content_type)


@given(st.binary(max_size=60), st.sampled_from([JSON, TEXT, ""]))
def test_no_bytes_raise_anything_but_a_mismatch(data: bytes, content_type: str) -> None:
    for annotation in (Model, str, dict[str, int], Hostile):
        try:
            decoder_for(annotation)(data, content_type)
        except PayloadMismatch:
            continue


def test_a_validator_that_raises_is_a_mismatch_too() -> None:
    with pytest.raises(PayloadMismatch, match="RuntimeError: inside a validator"):
        decoder_for(Hostile)(b'{"n": 1}', JSON)


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (Model, {"n": "x"}),
        (Model, None),
        (Model, Model.model_construct(n="x")),
        (int, "seven"),
        (bytes, "text"),
        (str, b"bytes"),
        (None, 0),
        (bytes, b"x" * 786_433),
        (Any, object()),
    ],
)
def test_a_result_that_is_not_what_was_declared_breaks_the_contract(annotation: Any, value: Any) -> None:
    with pytest.raises(ContractBroken):
        encoder_for(annotation)(value)


def test_nothing_is_nothing() -> None:
    assert encoder_for(None)(None).data is None


def test_messages_do_not_repeat_the_payload() -> None:
    with pytest.raises(PayloadMismatch) as caught:
        decoder_for(Model)(b'{"n": "a secret"}', JSON)
    assert "secret" not in str(caught.value)
