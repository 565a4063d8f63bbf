"""Business keys -> idempotency key -> run id -> task id; the placement of a run on a shard.

H(...) is the first 32 hex digits of SHA-256 over the fields in UTF-8, each prefixed with its length in 4 bytes, big-endian, so
that ("a:b", "c") and ("a", "b:c") never meet.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

_HEX_DIGITS = 32  # 128 bits: no collision among 10^15 ids


def _framed(fields: Sequence[str]) -> bytes:
    raw = [f.encode("utf-8", "surrogatepass") for f in fields]
    return b"".join(len(r).to_bytes(4, "big") + r for r in raw)


def digest_of(*fields: str) -> str:
    """H(fields): 32 hex digits."""
    return hashlib.sha256(_framed(fields)).hexdigest()[:_HEX_DIGITS]


def idempotency_key(
    tenant: str, type_: str, business: Sequence[str], event_ms: int = 0, window_ms: int = 0
) -> str:
    """Full SHA-256 (64 hex digits) of tenant, type, business fields and, where `window_ms` > 0, the window of the event's own time."""
    window = str(event_ms // window_ms) if window_ms > 0 else ""
    return hashlib.sha256(_framed([tenant, type_, *business, window])).hexdigest()


def positional_key(topic: str, partition: int, offset: int) -> str:
    """The key of a trigger that brought none: its position."""
    return f"{topic}/{partition}/{offset}"


def run_id_of(tenant: str, run_id: str, key: str) -> str:
    """The explicit run, else H(tenant, key)."""
    return run_id or digest_of(tenant, key)


def task_id_of(tenant: str, run_id: str, key: str) -> str:
    """H(tenant, run, key); `run_id` is the resolved one."""
    return digest_of(tenant, run_id, key)


def effect_key(tenant: str, task_id: str, effect_generation: int, step: str) -> str:
    """What a provider sees as Idempotency-Key: the same on every attempt; a new one once the earlier outcome is known failed and redriven."""
    generation = str(effect_generation) if effect_generation else ""
    return digest_of(tenant, task_id, generation, step)


def reservation_id(task_id: str, generation: int, dispatch_no: int) -> str:
    """`task:generation:dispatch_no`: the name of a reservation and its fence."""
    return f"{task_id}:{generation}:{dispatch_no}"


def payload_digest(type_: str, payload: bytes) -> bytes:
    """SHA-256 of type and payload bytes as received; the type is framed by its length."""
    return hashlib.sha256(_framed([type_]) + payload).digest()


def murmur2(data: bytes) -> int:
    """Murmur2 as Kafka's Java client computes it (seed 0x9747b28c), made positive: the partitioner of every client we ship."""
    mask, m = 0xFFFFFFFF, 0x5BD1E995
    h = (0x9747B28C ^ len(data)) & mask
    whole = len(data) & ~3
    for i in range(0, whole, 4):
        k = int.from_bytes(data[i : i + 4], "little") * m & mask
        k = (k ^ (k >> 24)) * m & mask
        h = (h * m & mask) ^ k
    tail = data[whole:]
    if tail:
        h = (h ^ int.from_bytes(tail, "little")) * m & mask
    h = (h ^ (h >> 13)) * m & mask
    return (h ^ (h >> 15)) & 0x7FFFFFFF


def shard_of(run_id: str, shards: int) -> int:
    """Partition of a run: murmur2 of its UTF-8 bytes modulo the number of shards."""
    return murmur2(run_id.encode("utf-8", "surrogatepass")) % shards
