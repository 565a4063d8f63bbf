"""Repeatable chance: a draw is a function of what it is for, so an order of events or a restart changes none."""

from __future__ import annotations

from hashlib import sha256

_BITS = 53  # what a float between 0 and 1 holds exactly


def draw_integer(seed: int, *parts: str | int) -> int:
    """An integer of 64 bits, evenly spread, the same for the same seed and parts on every machine."""
    digest = sha256(str(seed).encode())
    for part in parts:
        field = str(part).encode()
        digest.update(len(field).to_bytes(4, "big") + field)
    return int.from_bytes(digest.digest()[:8], "big")


def draw_unit(seed: int, *parts: str | int) -> float:
    """A number in [0, 1), evenly spread, the same for the same seed and parts on every machine."""
    return (draw_integer(seed, *parts) >> (64 - _BITS)) / (1 << _BITS)
