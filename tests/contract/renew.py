"""After a change of a schema: write its next version into history and make new golden bytes.

python tests/contract/renew.py            adds a version where a schema changed
python tests/contract/renew.py --rewrite  replaces the last one (only before the first release)
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from laxity.schemas.avro_schema import all_records, file_name, fingerprint, schema_of
from laxity.schemas.serde import encode_row

HERE = Path(__file__).parent
Sample = Callable[[Any, str, Iterator[int]], Any]


def full(kind: Any, name: str, count: Iterator[int]) -> Any:
    """A value that is no default, in JSON form."""
    if isinstance(kind, list):
        return full(kind[1], name, count)
    if isinstance(kind, str):
        return _plain(kind, name, next(count))
    if kind["type"] == "array":
        return [full(kind["items"], name, count) for _ in range(2)]
    if kind["type"] == "map":
        return {key: full(kind["values"], name, count) for key in ("llm", "account:a")}
    return {field["name"]: full(field["type"], field["name"], count) for field in kind["fields"]}


def _plain(kind: str, name: str, n: int) -> Any:
    match kind:
        case "string":
            return f"{name} {n} é🧾" if n % 5 == 0 else f"{name}-{n}"
        case "bytes":
            return bytes([n % 256, 0, 255, 128, 10]).hex()
        case "boolean":
            return True
        case "int":
            return (n, -n * 1_000, 2**31 - 1, -(2**31))[n % 4]
    return 1_790_000_000_000 + n if name.endswith("_ms") else (n, -n * 10**9, 2**63 - 1, -(2**63))[n % 4]


def minimal(kind: Any, name: str, count: Iterator[int]) -> Any:
    """Only what has no default."""
    plain = {"string": name, "bytes": "00ff", "boolean": False, "int": 1, "long": 1}
    if isinstance(kind, str):
        return plain[kind]
    if isinstance(kind, list):
        return None
    if kind["type"] != "record":
        return [] if kind["type"] == "array" else {}
    return {f["name"]: minimal(f["type"], f["name"], count) for f in kind["fields"] if "default" not in f}


def main(*, rewrite: bool) -> None:
    """Renew what changed."""
    spec = importlib.util.spec_from_file_location("contract_conftest", HERE / "conftest.py")
    assert spec
    assert spec.loader
    data = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(data)
    for cls in all_records():
        _version(cls, rewrite=rewrite)
        schema, examples = schema_of(cls), {}
        samples: dict[str, Sample] = {"minimal": minimal, "full": full}
        for name, sample in samples.items():
            values = sample(schema, cls.__name__, itertools.count(1))
            examples[name] = {"values": values, "avro": encode_row(data.build(schema, values)).hex()}
        path = HERE / "golden" / file_name(cls).replace(".avsc", ".json")
        path.write_text(json.dumps(examples, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _version(cls: type, *, rewrite: bool) -> None:
    folder = HERE / "history" / file_name(cls).removesuffix(".avsc")
    folder.mkdir(parents=True, exist_ok=True)
    last = len(list(folder.glob("*.avsc")))
    text = json.dumps(schema_of(cls), indent=2, ensure_ascii=False) + "\n"
    if last and fingerprint((folder / f"{last}.avsc").read_text(encoding="utf-8")) == fingerprint(text):
        return
    number = max(1, last) if rewrite else last + 1
    (folder / f"{number}.avsc").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(rewrite="--rewrite" in sys.argv[1:])
