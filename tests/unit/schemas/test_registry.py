"""The registry client against answers that registries give, and against nonsense."""

from __future__ import annotations

import json
from collections.abc import Callable

import httpx
import pytest

from laxity.schemas.avro_schema import fingerprint, schema_text
from laxity.schemas.contracts import ContractError, codec_of, verify_contracts
from laxity.schemas.records import Contract, Trigger
from laxity.schemas.registry import IncompatibleSchema, Registry, RegistryError, RegistryUnavailable

URL = "http://registry/apis/ccompat/v7"


def registry(answer: Callable[[httpx.Request], httpx.Response] | httpx.Response) -> Registry:
    handler = answer if callable(answer) else (lambda _: answer)
    return Registry(URL + "/", transport=httpx.MockTransport(handler))


def error(status: int, code: int) -> httpx.Response:
    return httpx.Response(status, json={"error_code": code, "message": "words differ"})


def test_what_is_asked() -> None:
    asked: list[tuple[str, str, object]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append((request.method, str(request.url), json.loads(request.content or b"null")))
        return httpx.Response(200, json={"id": 7, "schema": "{}"})

    with registry(answer) as client:
        assert client.register("a.b-value", "{}") == 7
        assert client.lookup("a/b", "{}") == 7
        assert client.schema(7) == "{}"
        client.set_compatibility("s", "FULL_TRANSITIVE")
    assert asked == [
        ("POST", f"{URL}/subjects/a.b-value/versions", {"schema": "{}"}),
        ("POST", f"{URL}/subjects/a%2Fb", {"schema": "{}"}),
        ("GET", f"{URL}/schemas/ids/7", None),
        ("PUT", f"{URL}/config/s", {"compatibility": "FULL_TRANSITIVE"}),
    ]


@pytest.mark.parametrize("code", [40401, 40402, 40403])
def test_not_found_is_an_answer(code: int) -> None:
    with registry(error(404, code)) as client:
        assert client.lookup("s", "{}") is None
        assert client.schema(1) is None
        with pytest.raises(RegistryError):
            client.register("s", "{}")


@pytest.mark.parametrize("code", [409, 40901])
def test_incompatible(code: int) -> None:
    with registry(error(409, code)) as client, pytest.raises(IncompatibleSchema):
        client.register("s", "{}")


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(200, text="<html>"),
        httpx.Response(200, json=[1]),
        httpx.Response(200, json={"id": "7"}),
        httpx.Response(200, json={"id": -1}),
        httpx.Response(200, json={"id": 2**31}),
        httpx.Response(200, json={}),
        httpx.Response(200, json={"id": 1, "pad": "x" * 600_000}),
        httpx.Response(302, headers={"location": "http://elsewhere/"}),
        httpx.Response(404, text="not here"),
        httpx.Response(404, json={"error_code": "40403"}),
        httpx.Response(422, json={"error_code": 42201}),
        httpx.Response(401),
    ],
)
def test_nonsense_is_one_typed_error(answer: httpx.Response) -> None:
    with registry(answer) as client:
        with pytest.raises(RegistryError):
            client.register("s", "{}")
        if answer.status_code != 200:
            with pytest.raises(RegistryError):
                client.lookup("s", "{}")


def test_away_and_ill_are_one_kind() -> None:
    def away(_: httpx.Request) -> httpx.Response:
        raise httpx.ConnectTimeout("away")

    for answer in (away, error(503, 50301), httpx.Response(500, text="")):
        with registry(answer) as client, pytest.raises(RegistryUnavailable):
            client.lookup("s", "{}")


TEXT = schema_text(Trigger)
CONTRACT = Contract(fingerprint=fingerprint(TEXT), subject="s", registry_id=3, schema=TEXT)


def test_contracts_agree_if_only_docs_differ() -> None:
    edited = TEXT.replace('"doc":"Who pays', '"doc":"Whoever pays')
    assert edited != TEXT
    with registry(httpx.Response(200, json={"schema": edited})) as client:
        verify_contracts([CONTRACT], client)


@pytest.mark.parametrize(
    "text", [TEXT.replace('"firm"', '"hard"'), '"string"', "not json", "{}", "[" * 100_000]
)
def test_contracts_that_differ(text: str) -> None:
    with (
        registry(httpx.Response(200, json={"schema": text})) as client,
        pytest.raises(ContractError, match="id 3"),
    ):
        verify_contracts([CONTRACT], client)


def test_a_registry_that_is_away_is_told_apart_from_one_that_differs() -> None:
    with registry(error(500, 50001)) as client, pytest.raises(RegistryUnavailable):
        verify_contracts([CONTRACT], client)


def test_a_codec_of_contracts_leaves_out_records_of_later_releases() -> None:
    later = Contract(
        fingerprint="f",
        subject="s",
        registry_id=4,
        schema='{"type":"record","name":"laxity.Novelty","fields":[]}',
    )
    assert codec_of([CONTRACT, later]).ids() == {Trigger: 3}


def test_a_version_that_this_release_cannot_read_stops_the_start() -> None:
    text = (
        '{"type":"record","name":"Trigger","namespace":"laxity","fields":[{"name":"kind","type":"string"}]}'
    )
    newer = Contract(fingerprint="f", subject="s", registry_id=4, schema=text)
    with pytest.raises(ContractError, match="schema id 4 of Trigger: field 'type' is missing"):
        codec_of([CONTRACT, newer])
