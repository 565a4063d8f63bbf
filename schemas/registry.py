"""A schema registry with the Confluent API: register, look up, read by id, set compatibility. Used when topics are made and processes start, never per record."""

from __future__ import annotations

import json
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx

from laxity.schemas import limits
from laxity.schemas.masking import masked
from laxity.schemas.topics import Compatibility

TIMEOUT_S = 5.0
CONNECT_RETRIES = 2
_NOT_FOUND = {40401, 40402, 40403}  # subject, version, schema
_INCOMPATIBLE = {409, 40901}
_MEDIA_TYPE = "application/vnd.schemaregistry.v1+json"


class RegistryError(Exception):
    """The registry refused or answered nonsense. `error_code` is the API's own (0: none); messages differ between registries."""

    def __init__(self, message: str, error_code: int = 0) -> None:
        super().__init__(message)
        self.error_code = error_code


class RegistryUnavailable(RegistryError):  # noqa: N818 - a state of the world
    """No answer in time, or a server error: what was asked may have happened."""


class IncompatibleSchema(RegistryError):  # noqa: N818 - a verdict
    """The subject's compatibility mode refuses the schema."""


class Registry:
    """Client of one registry. `url` has the API's path (`…/apis/ccompat/v7`). Follows no redirects. A context manager."""

    def __init__(self, url: str, *, transport: httpx.BaseTransport | None = None) -> None:
        self._url = url.rstrip("/")
        self._shown = masked(self._url)  # in errors
        self._http = httpx.Client(
            timeout=TIMEOUT_S,
            follow_redirects=False,
            headers={"Accept": f"{_MEDIA_TYPE}, application/json", "Content-Type": _MEDIA_TYPE},
            transport=transport or httpx.HTTPTransport(retries=CONNECT_RETRIES),
        )

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def register(self, subject: str, schema: str) -> int:
        """The schema's id; the same one each time. IncompatibleSchema if the subject's mode refuses it."""
        answer = self._call("POST", f"/subjects/{quote(subject, safe='')}/versions", {"schema": schema})
        return _number(answer, "id")

    def lookup(self, subject: str, schema: str) -> int | None:
        """The id under which the subject has this very schema; None if it has not."""
        try:
            answer = self._call("POST", f"/subjects/{quote(subject, safe='')}", {"schema": schema})
        except RegistryError as error:
            if error.error_code in _NOT_FOUND:
                return None
            raise
        return _number(answer, "id")

    def schema(self, registry_id: int) -> str | None:
        """The schema's text; None if the id is unknown."""
        try:
            answer = self._call("GET", f"/schemas/ids/{registry_id}")
        except RegistryError as error:
            if error.error_code in _NOT_FOUND:
                return None
            raise
        if not isinstance(text := answer.get("schema"), str):
            raise RegistryError(f"{self._shown}: schema {registry_id} came without text")
        return text

    def set_compatibility(self, subject: str, mode: Compatibility) -> None:
        """The subject must exist (40401 otherwise: some registries accept it before, some do not)."""
        self._call("PUT", f"/config/{quote(subject, safe='')}", {"compatibility": mode})

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        try:
            response = self._http.request(
                method, self._url + path, content=json.dumps(body) if body else None
            )
        except httpx.HTTPError as error:
            raise RegistryUnavailable(f"registry {self._shown}: {type(error).__name__}: {error}") from error
        document = self._document(response)
        if response.is_success:
            return document
        raise self._error(method, path, response, document)

    def _document(self, response: httpx.Response) -> dict[str, Any]:
        if len(response.content) > 2 * limits.SCHEMA_BYTES_MAX:  # JSON in JSON: every quote is escaped
            raise RegistryError(
                f"{self._shown}: answer of {len(response.content)} bytes, limit {2 * limits.SCHEMA_BYTES_MAX}"
            )
        try:
            document = response.json()
        except ValueError:
            document = None
        if isinstance(document, dict):
            return document
        if response.is_success:
            raise RegistryError(
                f"{self._shown}: answered {response.status_code} without a JSON object: not a schema registry?"
            )
        return {}

    def _error(
        self, method: str, path: str, response: httpx.Response, document: dict[str, Any]
    ) -> RegistryError:
        code = document.get("error_code", response.status_code)
        code = code if isinstance(code, int) else response.status_code
        text = f"registry {self._shown}: {method} {path}: {response.status_code}, error {code}: {document.get('message', '')}"
        if response.status_code >= 500:
            return RegistryUnavailable(text, code)
        return (IncompatibleSchema if code in _INCOMPATIBLE else RegistryError)(text, code)


def _number(answer: dict[str, Any], key: str) -> int:
    number = answer.get(key)
    if not isinstance(number, int) or not 0 <= number <= limits.INT_MAX:
        raise RegistryError(f"registry answered {key} {number!r}, not a schema id")
    return number
