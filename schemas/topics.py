"""The catalogue of topics. Names here have no prefix; `Names` puts it before them."""

from __future__ import annotations

TIERS = ("critical", "high", "normal", "low", "background")  # most urgent first; a tier's index is its number
