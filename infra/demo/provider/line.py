"""One line of the ledger: what the provider did about one call."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from enum import StrEnum


class Kind(StrEnum):
    """`effect`: done and paid for; `replay`: its answer again; `refused`: by us; `injected`: failed on purpose."""

    EFFECT = "effect"
    REPLAY = "replay"
    REFUSED = "refused"
    INJECTED = "injected"


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A call and its answer. Times are UTC ms; `charged` LLM tokens were taken from the limit at `arrived_ms`.

    `tokens_out` is 0 unless the call was served; `body` is the fingerprint by which a reused key is judged;
    `reason` says why, where the kind alone does not.
    """

    ts_ms: int
    key: str
    tenant: str
    task: str
    model: str
    tokens_in: int
    tokens_out: int
    kind: Kind
    status: int
    reason: str
    body: str
    charged: int
    arrived_ms: int

    @property
    def identity(self) -> str:
        """What counts as the same call again: its key, or its body if it has none."""
        return f"key:{self.key}" if self.key else f"body:{self.body}"


_TYPES = {field.name: int if field.type == "int" else str for field in fields(Line)}


def encode(line: Line) -> bytes:
    """The line as JSON with its newline; whatever a header holds, it stays one line."""
    return json.dumps(asdict(line), separators=(",", ":")).encode() + b"\n"


def decode(text: bytes) -> Line:
    """The line of this JSON; `ValueError` names the field that is wrong."""
    values = json.loads(text)
    if not isinstance(values, dict) or values.keys() != _TYPES.keys():
        raise ValueError(f"fields are not {', '.join(_TYPES)}")
    wrong = [name for name, kind in _TYPES.items() if type(values[name]) is not kind]
    if wrong:
        raise ValueError(f"field {wrong[0]} is {values[wrong[0]]!r}")
    return Line(**{**values, "kind": Kind(values["kind"])})
