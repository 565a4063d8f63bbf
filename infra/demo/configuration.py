"""The configuration under which a demonstration's own stack runs: limits at its speed, backoffs divided by it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

from laxity.infra.demo.sizing import Capacity, at_speed_one
from laxity.infra.demo.submission import RESOURCE
from laxity.infra.local.data_dir import write_private

CONFIG_FILE: Final = "demo.toml"  # in the data directory
BACKOFF_MS: Final = 1_000  # at speed 1, as of types that are not configured
BACKOFF_MS_MAX: Final = 10_000

_TEXT = """\
# Written by `laxity demo`: limits sized for its load, at speed {speed:g}.
[resources.{resource}]
kind = "rate"
requests_per_minute = {requests}
tokens_per_minute = {tokens}

[fleets.default]
partitions = 16

[types."demo.chat"]
backoff_ms = {backoff}
backoff_ms_max = {backoff_max}

[types."demo.summarise"]
backoff_ms = {backoff}
backoff_ms_max = {backoff_max}

[prices]
tokens_in = 3
tokens_out = 15
"""


def text(capacity: Capacity, speed: float) -> str:
    """The file's content."""
    return _TEXT.format(
        speed=speed,
        resource=RESOURCE,
        requests=capacity.requests_per_minute,
        tokens=capacity.tokens_per_minute,
        backoff=max(1, round(BACKOFF_MS / speed)),
        backoff_max=max(1, round(BACKOFF_MS_MAX / speed)),
    )


def write(data_dir: Path, content: str) -> Path:
    """Make it the directory's configuration; another one that was there keeps its text, because the journal refers to it."""
    path = data_dir / CONFIG_FILE
    if path.exists() and (before := path.read_text("utf-8")) != content:
        digest = hashlib.sha256(before.encode()).hexdigest()[:12]
        path.replace(path.with_stem(f"{path.stem}-{digest}"))
    write_private(path, content)
    return path


def files_in(data_dir: Path) -> list[Path]:
    """Of all demonstrations that brought their own stack to this data directory."""
    return sorted(data_dir.glob("demo*.toml"))


def model_argument(capacity: Capacity, speed: float) -> str:
    """`--model` for a provider that is started with this speed: it then enforces exactly the limits of the file."""
    requests = at_speed_one(capacity.requests_per_minute, speed)
    return f"{RESOURCE}:{requests}:{at_speed_one(capacity.tokens_per_minute, speed)}"
