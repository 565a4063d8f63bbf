"""Bytes -> typed payload and result -> bytes, by the annotations of an agent.

`bytes` passes untouched; everything else is JSON through pydantic (models, dataclasses, TypedDicts, dicts, lists, numbers, Any). `str` is a
JSON string where the content type says JSON, and UTF-8 text where it says anything else. A result that does not fit its annotation is no
success.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import PydanticSchemaGenerationError, PydanticUserError, TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError

from laxity.schemas.limits import RESULT_BYTES_MAX

JSON = "application/json"
TEXT = "text/plain; charset=utf-8"
BINARY = "application/octet-stream"
PROBLEMS_SHOWN = 3  # of a validation error: the message has 1 KiB


class PayloadMismatch(Exception):  # noqa: N818 - a fact about the payload
    """The payload is not what the agent's annotation says: poison."""


class ContractBroken(Exception):  # noqa: N818 - a fact about the result
    """The result is not what the agent's annotation says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A result as it travels; `data` None: the agent returns nothing."""

    data: bytes | None
    content_type: str = JSON


Decode = Callable[[bytes, str], Any]
"""Of payload and content type."""

Encode = Callable[[Any], Result]


def decoder_for(annotation: Any) -> Decode:
    """A function that raises PayloadMismatch. TypeError if no value can be validated against the annotation."""
    if annotation is bytes:
        return _untouched
    adapter = _adapter(annotation)

    def decode(payload: bytes, content_type: str) -> Any:
        if annotation is str and not _is_json(content_type):
            return _text(payload)
        try:
            return adapter.validate_json(payload)
        except ValidationError as error:
            raise PayloadMismatch(_summary(error)) from None
        except Exception as error:  # a model's own validators may raise anything
            raise PayloadMismatch(f"validating the payload raised {type(error).__name__}: {error}") from error

    return decode


def encoder_for(annotation: Any) -> Encode:
    """A function that raises ContractBroken. TypeError if no value can be validated against the annotation."""
    encode = _encoder_for(annotation)

    def limited(value: Any) -> Result:
        result = encode(value)
        size = len(result.data or b"")
        if size > RESULT_BYTES_MAX:
            raise ContractBroken(f"result: {size} bytes, limit {RESULT_BYTES_MAX}")
        return result

    return limited


def _encoder_for(annotation: Any) -> Encode:
    if annotation is None or annotation is type(None):
        return _nothing
    if annotation is bytes:
        return _binary
    if annotation is str:
        return _written
    return _json_encoder(_adapter(annotation))


def _json_encoder(adapter: TypeAdapter[Any]) -> Encode:
    def encode(value: Any) -> Result:
        try:
            return Result(data=adapter.dump_json(adapter.validate_python(value), warnings="error"))
        except ValidationError as error:
            raise ContractBroken(_summary(error)) from None
        except PydanticSerializationError as error:
            raise ContractBroken(f"result cannot be written as JSON: {error}") from None
        except Exception as error:  # a model's own validators may raise anything
            raise ContractBroken(f"validating the result raised {type(error).__name__}: {error}") from error

    return encode


def _adapter(annotation: Any) -> TypeAdapter[Any]:
    try:
        return TypeAdapter(annotation)
    except (PydanticSchemaGenerationError, PydanticUserError) as error:
        raise TypeError(f"{annotation!r} cannot be validated: {str(error).splitlines()[0]}") from error


def _untouched(payload: bytes, content_type: str) -> bytes:  # noqa: ARG001 - the shape of Decode
    return payload


def _is_json(content_type: str) -> bool:
    """`application/json; charset=utf-8` and `application/problem+json` are too; parameters and case do not count."""
    kind = content_type.partition(";")[0].strip().lower()
    return kind == JSON or kind.endswith("+json")


def _text(payload: bytes) -> str:
    try:
        return payload.decode()
    except UnicodeDecodeError as error:
        raise PayloadMismatch(f"payload is not UTF-8: {error.reason} at byte {error.start}") from None


def _nothing(value: Any) -> Result:
    if value is not None:
        raise ContractBroken(f"result is a {type(value).__name__}, but the agent declares None")
    return Result(data=None)


def _binary(value: Any) -> Result:
    if not isinstance(value, bytes):
        raise ContractBroken(f"result is a {type(value).__name__}, but the agent declares bytes")
    return Result(data=value, content_type=BINARY)


def _written(value: Any) -> Result:
    if not isinstance(value, str):
        raise ContractBroken(f"result is a {type(value).__name__}, but the agent declares str")
    return Result(data=value.encode("utf-8", "replace"), content_type=TEXT)


def _summary(error: ValidationError) -> str:
    """Where and why, without the values: they may be confidential and long."""
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    shown = [
        f"{'.'.join(map(str, problem['loc'])) or 'value'}: {problem['msg']}"
        for problem in problems[:PROBLEMS_SHOWN]
    ]
    more = len(problems) - len(shown)
    return "; ".join(shown) + (f"; and {more} more" if more else "")
