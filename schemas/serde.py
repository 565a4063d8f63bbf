"""Records <-> bytes: rows (bare Avro) and the Confluent wire format (0, schema id in 4 bytes, Avro). Every refusal is an `Undecodable`.

    codec = Codec.local()                        # tests; processes take open_codec() of contracts.py
    codec.decode(Trigger, codec.encode(trigger)) == trigger

No call to a registry happens here: the ids are pinned when the codec is made.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Protocol, TypeVar

from fastavro import schemaless_writer

from laxity.schemas import limits
from laxity.schemas.avro_decoder import Decode, Malformed, compile_decoder
from laxity.schemas.avro_schema import all_records, fingerprint, parsed, schema_of, schema_text
from laxity.schemas.avro_writer import compile_converter

MAGIC = b"\0"
HEADER_BYTES = 5  # magic and id
LOCAL_ID_FIRST = 1_001  # Codec.local(): by name of the record, so that golden bytes stay


class Undecodable(Exception):  # noqa: N818 - it is a fact about the bytes
    """Bytes that are no record of the kind asked for: poison. `reason` is stable, `detail` for people; neither quotes more than 64 characters of the bytes.

    Reasons: empty, too_large, not_framed, schema_unknown, wrong_schema, truncated, trailing_bytes, bad_utf8, bad_number, bad_index, bad_size,
    bad_boolean, duplicate_key, too_many_items.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class SchemaUnknown(Undecodable):
    """The id is not pinned: another writer's schema, or one newer than this process. It may become known, so it is a case of its own."""

    def __init__(self, schema_id: int) -> None:
        super().__init__("schema_unknown", f"schema id {schema_id} is not among the pinned ones")
        self.schema_id = schema_id


class _Record(Protocol):
    """Any dataclass of records.py."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


R = TypeVar("R")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """One version of a record's schema and the id under which a registry knows it."""

    registry_id: int
    record: type
    schema: str  # JSON text


def encode_row(record: _Record) -> bytes:
    """Bare Avro by the record's own schema. A value of the wrong type or range raises TypeError, ValueError or OverflowError: a bug."""
    return _encoder(type(record))(record)


def decode_row(cls: type[R], data: bytes) -> R:
    """The record in bare Avro, or Undecodable."""
    record: R = _guarded(_decoder(cls), data)  # type: ignore[arg-type]  # classes are hashable
    return record


class Codec:
    """The wire format with pinned ids: encodes by each record's newest schema, decodes any pinned version of it."""

    def __init__(self, pins: Iterable[Pin]) -> None:
        """`pins` hold every version that may be read; exactly one per record has our own schema's fingerprint: that is what is written.

        ValueError if a version cannot be read by our schema or an id stands for two.
        """
        self._decoders: dict[bytes, tuple[type, Decode]] = {}
        self._ids: dict[type, int] = {}
        for pin in pins:
            self._add(pin)
        self._prefixes = {cls: _prefix(number) for cls, number in self._ids.items()}

    @classmethod
    def local(cls) -> Codec:
        """Fixed ids without a registry, for tests and simulations."""
        return cls(
            Pin(registry_id=number, record=record, schema=schema_text(record))
            for number, record in enumerate(all_records(), start=LOCAL_ID_FIRST)
        )

    def ids(self) -> Mapping[type, int]:
        """What is written, by record."""
        return dict(self._ids)

    def encode(self, record: _Record) -> bytes:
        """Framed. KeyError for a record without a pinned schema; else as encode_row."""
        kind = type(record)
        return self._prefixes[kind] + _encoder(kind)(record)

    def frame(self, cls: type, row: bytes) -> bytes:
        """Put the pinned id before bytes that encode_row made."""
        return self._prefixes[cls] + row

    def decode(self, cls: type[R], data: bytes | None) -> R:
        """The record, or Undecodable (SchemaUnknown where the id is not pinned)."""
        if data is None:
            raise Undecodable("empty", "no value")
        found = self._decoders.get(data[:HEADER_BYTES])
        if found is None or found[0] is not cls:
            raise _refusal(cls, data, found)
        record: R = _guarded(found[1], data[HEADER_BYTES:])
        return record

    def _add(self, pin: Pin) -> None:
        prefix = _prefix(pin.registry_id)
        if prefix in self._decoders:
            raise ValueError(f"schema id {pin.registry_id} is pinned twice")
        newest = _fingerprint_of(pin) == _fingerprint(pin.record)
        self._decoders[prefix] = (pin.record, _decoder(pin.record) if newest else _foreign(pin))
        if newest:
            self._ids[pin.record] = pin.registry_id


def _prefix(registry_id: int) -> bytes:
    return MAGIC + registry_id.to_bytes(4, "big")


def _refusal(cls: type, data: bytes, found: tuple[type, Decode] | None) -> Undecodable:
    if found is not None:
        return Undecodable("wrong_schema", f"a {found[0].__name__}, not a {cls.__name__}")
    if not data:
        return Undecodable("empty", "0 bytes")
    if data[:1] != MAGIC:
        return Undecodable("not_framed", f"first byte is {data[0]}, not 0")
    if len(data) < HEADER_BYTES:
        return Undecodable("truncated", f"{len(data)} bytes, the frame has {HEADER_BYTES}")
    return SchemaUnknown(int.from_bytes(data[1:HEADER_BYTES], "big"))


def _guarded(decode: Decode, data: bytes) -> Any:
    if len(data) > limits.RECORD_BYTES_MAX:
        raise Undecodable("too_large", f"{len(data)} bytes, limit {limits.RECORD_BYTES_MAX}")
    try:
        return decode(data)
    except IndexError:
        raise Undecodable("truncated", f"ends after {len(data)} bytes") from None
    except UnicodeDecodeError as error:
        raise Undecodable("bad_utf8", f"{error.reason} at {error.start} of a text") from None
    except Malformed as error:
        raise Undecodable(error.reason, error.detail) from None


@cache
def _decoder(cls: type) -> Decode:
    return compile_decoder(schema_of(cls), schema_of(cls), cls)


def _fingerprint_of(pin: Pin) -> str:
    """Of a text that anybody may have registered. ValueError for what is no schema, or one beyond the limits."""
    if len(pin.schema) > limits.SCHEMA_BYTES_MAX:
        raise ValueError(
            f"schema id {pin.registry_id} has {len(pin.schema)} characters, limit {limits.SCHEMA_BYTES_MAX}"
        )
    try:
        return fingerprint(pin.schema)
    except Exception as error:  # fastavro raises whatever a hostile text provokes
        raise ValueError(f"schema id {pin.registry_id} is no Avro schema: {type(error).__name__}") from error


def _foreign(pin: Pin) -> Decode:
    try:
        return compile_decoder(json.loads(pin.schema), schema_of(pin.record), pin.record)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"schema id {pin.registry_id} of {pin.record.__name__}: {error}") from error


@cache
def _fingerprint(cls: type) -> str:
    return fingerprint(schema_text(cls))


@cache
def _encoder(cls: type) -> Callable[[Any], bytes]:
    schema, convert = parsed(cls), compile_converter(schema_of(cls), cls)

    def encode(record: Any) -> bytes:
        out = io.BytesIO()
        schemaless_writer(out, schema, convert(record))
        return out.getvalue()

    return encode
