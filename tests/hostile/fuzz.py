"""A million mutated payloads through the decoders of all records: refused with the typed error or read as another implementation reads them.

    PYTHONPATH=tests python tests/hostile/fuzz.py [--payloads N] [--seed TEXT]      (make fuzz)

Each payload is a good record of which values, lengths or bytes were changed. A crash is any other exception, a stall anything above STALL_MS,
of processor time so that a crowded machine is none. Exit code 1 if there was one.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from random import Random  # noqa: TID251 - the seed is the argument
from typing import Any

import fastavro
from hostile.mutants import any_value, mutated_bytes, mutated_record

from laxity.schemas.avro_schema import all_records, parsed, schema_of
from laxity.schemas.serde import Codec, Undecodable, decode_row, encode_row
from laxity.schemas.timing import SystemClock

PAYLOADS = 1_000_000
STALL_MS = 50
COMPARED_OF = 4  # every so many that are accepted, fastavro reads, too: it takes ten times as long
GROWTH_MIB_MAX = 200  # over the whole run
SAMPLES = 16  # good records per kind to mutate


@dataclass
class Report:
    """What came of it."""

    payloads: int = 0
    accepted: int = 0
    compared: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    slowest_ms: float = 0.0
    crashes: list[str] = field(default_factory=list)
    stalls: list[str] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)

    def failures(self) -> list[str]:
        return [*self.crashes, *self.stalls, *self.differences]


def payloads(random: Random, kinds: list[Any]) -> Iterator[tuple[Any, bytes]]:
    """For ever: a kind of record, and bytes that may be one."""
    good = {kind: [encode_row(whole(random, kind)) for _ in range(SAMPLES)] for kind in kinds}
    everything = [data for samples in good.values() for data in samples]
    while True:
        kind = random.choice(kinds)
        if random.random() < 0.2:
            yield kind, encode_row(mutated_record(random, whole(random, kind)))
        else:
            yield kind, mutated_bytes(random, random.choice(good[kind]), random.choice(everything))


def whole(random: Random, kind: Any) -> Any:
    fields = {f["name"]: any_value(random, f["type"]) for f in schema_of(kind)["fields"]}
    return kind(**fields)


def fuzz(count: int, seed: str) -> Report:
    """Through the bare decoder and, every other one, through the wire format."""
    random, report, codec = Random(seed), Report(), Codec.local()
    source = payloads(random, list(all_records()))
    decoders: tuple[Callable[[Any, bytes], Any], ...] = (
        decode_row,
        lambda kind, data: codec.decode(kind, codec.frame(kind, data)),
    )
    for number in range(count):
        kind, data = next(source)
        _one(report, kind, data, decoders[number % 2])
    return report


def _one(report: Report, kind: Any, data: bytes, decode: Callable[[Any, bytes], Any]) -> None:
    report.payloads += 1
    where = f"{kind.__name__} {data[:400].hex()}"
    began = time.thread_time()
    try:
        found = decode(kind, data)
    except Undecodable as error:
        report.refused[error.reason] += 1
        found = None
    except BaseException as error:  # noqa: BLE001 - that is what is looked for
        report.crashes.append(f"crash {type(error).__name__}: {error}: {where}")
        return
    took_ms = (time.thread_time() - began) * 1_000
    report.slowest_ms = max(report.slowest_ms, took_ms)
    if took_ms > STALL_MS:
        report.stalls.append(f"stall of {took_ms:.0f} ms: {where}")
    if found is not None:
        report.accepted += 1
        if report.accepted % COMPARED_OF == 0:
            report.compared += 1
            if not same(found, fastavro.schemaless_reader(io.BytesIO(data), parsed(kind), None)):
                report.differences.append(f"read otherwise by fastavro: {where}")


def same(record: Any, other: Any) -> bool:
    """Does a record equal the dicts of the other implementation?"""
    if dataclasses.is_dataclass(record):
        return all(same(getattr(record, f.name), other[f.name]) for f in dataclasses.fields(record))
    if isinstance(record, tuple):
        return len(record) == len(other) and all(map(same, record, other))
    return bool(record == other)


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--payloads", type=int, default=PAYLOADS)
    arguments.add_argument("--seed", default="2026")
    chosen = arguments.parse_args()
    clock = SystemClock()
    began_ms, before_mib = clock.monotonic_ms(), peak_mib()
    report = fuzz(chosen.payloads, chosen.seed)
    growth_mib = peak_mib() - before_mib
    document = {
        "seed": chosen.seed,
        "payloads": report.payloads,
        "accepted": report.accepted,
        "compared": report.compared,
        "refused": dict(report.refused.most_common()),
        "slowest_ms": round(report.slowest_ms, 2),
        "took_s": (clock.monotonic_ms() - began_ms) // 1_000,
        "growth_mib": growth_mib,
        "failures": report.failures()[:20],
    }
    sys.stdout.write(json.dumps(document, indent=2) + "\n")
    return 1 if report.failures() or growth_mib > GROWTH_MIB_MAX else 0


def peak_mib() -> int:
    """Most memory that this process ever had."""
    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kib // (1024 * 1024 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    sys.exit(main())
