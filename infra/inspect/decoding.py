"""Records of any topic of the catalogue as values and as JSON documents; what cannot be decoded keeps its bytes and says why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from laxity.infra.inspect.catalogue import record_of
from laxity.infra.inspect.errors import InspectError
from laxity.infra.inspect.reading import Message, headers_of
from laxity.infra.inspect.text import json_bytes
from laxity.schemas.contracts import codec_of, read_contracts
from laxity.schemas.kafka import KafkaClients
from laxity.schemas.records import PayloadRow, SettleRow, ShardRow, StateRow, TaskRow
from laxity.schemas.serde import Codec, Undecodable, decode_row
from laxity.schemas.settings import Settings
from laxity.schemas.timing import Clock
from laxity.schemas.topics import Names
from laxity.streams.state import keys

ROWS: Mapping[str, type] = {
    keys.TASK: TaskRow,
    keys.PAYLOAD: PayloadRow,
    keys.SETTLE: SettleRow,
    keys.SHARD: ShardRow,
}
ORIGIN = "laxity.error.topic"  # header of dead letters


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One record. `value`: a dataclass of schemas/records.py, or None where `problem` says why (`tombstone` and `bytes` are no failures)."""

    topic: str  # without prefix
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    raw: bytes | None
    headers: Sequence[tuple[str, bytes | None]]
    kind: str  # name of the record, for `state` that of the row
    value: Any
    problem: str

    def document(self) -> dict[str, Any]:
        """All of it, losslessly."""
        return {
            "topic": self.topic,
            "partition": self.partition,
            "offset": self.offset,
            "timestamp_ms": self.timestamp_ms,
            "key": json_key(self),
            "headers": [{"name": name, "value": json_bytes(value)} for name, value in self.headers],
            "record": self.kind or None,
            "value": json_bytes(self.raw) if self.value is None else document_of(self.value),
            "problem": self.problem or None,
        }


def pinned_codec(settings: Settings, clients: KafkaClients, clock: Clock) -> Codec:
    """By the contracts alone: looking at records needs no registry. InspectError where nothing is provisioned."""
    contracts = read_contracts(settings, clients, clock)
    if not contracts:
        raise InspectError(
            "no schemas are registered for this deployment",
            f"topic {settings.names.full('contracts')} is missing or empty",
            "laxity topics apply",
        )
    return codec_of(contracts.values())


class Decoder:
    """Messages of one deployment to `Seen`."""

    def __init__(self, codec: Codec, names: Names) -> None:
        self._codec, self._names = codec, names

    def seen(self, message: Message) -> Seen:
        """Never raises for the content of a record."""
        topic, headers = self._names.short(message.topic()), headers_of(message)
        kind, value, problem = self._decode(topic, message.value(), headers)
        return Seen(
            topic=topic,
            partition=message.partition(),
            offset=message.offset(),
            timestamp_ms=message.timestamp()[1],
            key=message.key(),
            raw=message.value(),
            headers=headers,
            kind=kind,
            value=value,
            problem=problem,
        )

    def _decode(
        self, topic: str, raw: bytes | None, headers: Sequence[tuple[str, bytes | None]]
    ) -> tuple[str, Any, str]:
        record = self._record(topic, headers)
        if raw is None:
            return "", None, "tombstone"
        if record is None:
            return "", None, "bytes"
        try:
            value: Any = self._codec.decode(record, raw)
            return _row(value) if isinstance(value, StateRow) else (record.__name__, value, "")
        except Undecodable as error:
            return record.__name__, None, str(error)

    def _record(self, topic: str, headers: Sequence[tuple[str, bytes | None]]) -> type | None:
        """Of a dead letter, that of the topic it came from: ours is the last header of that name."""
        if not topic.startswith("dlq."):
            return record_of(topic)
        origin = next((value for name, value in reversed(headers) if name == ORIGIN and value), b"")
        return record_of(origin.decode("utf-8", "replace").removeprefix(self._names.prefix))


def _row(state: StateRow) -> tuple[str, Any, str]:
    cls = ROWS.get(state.table)
    if cls is None:
        return "StateRow", state, f"table {state.table!r} is not known to this release"
    return cls.__name__, decode_row(cls, state.row), ""


def json_key(seen: Seen) -> Any:
    """UTF-8 text everywhere but in `state`: table and key there."""
    if seen.topic == "state" and seen.key:
        try:
            change = keys.change_of(seen.key, None)
        except ValueError:
            return json_bytes(seen.key)
        return {"table": change.table, **(json_bytes(change.key) or {})}
    return json_bytes(seen.key)


def document_of(value: Any) -> Any:
    """A record as plain JSON values; bytes as `json_bytes`."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: document_of(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, bytes):
        return json_bytes(value)
    if isinstance(value, Mapping):
        return {str(name): document_of(item) for name, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [document_of(item) for item in value]
    return value
