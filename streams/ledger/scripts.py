"""The Lua of each decision, ready to load: the constants of limits.py, the parts that it needs, then its own file."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Final

from laxity.schemas.limits import DEMANDS_MAX, QUANTITY_MAX
from laxity.streams.ledger import limits

_BASE: Final = ("base",)
_COUNTS: Final = (*_BASE, "counts")
_BOOKS: Final = (*_COUNTS, "books")
_PARTS: Final = {  # no more than needed: each call of a script builds its functions anew
    "acknowledge": _BASE,
    "settle": _BOOKS,
    "revoke": _BOOKS,
    "cancel": _BOOKS,
    "reserve": _BOOKS,
    "reap": _BOOKS,
    "reconcile": _BOOKS,
    "register": _COUNTS,
    "deregister": _COUNTS,
    "claim": _BASE,
    "renew": _BASE,
    "call": _COUNTS,
    "release": _BOOKS,
}
DECISIONS: Final = tuple(_PARTS)
_CONSTANTS: Final = {
    "QUANTITY_MAX": QUANTITY_MAX,
    "DEMANDS_MAX": DEMANDS_MAX,
    "CANDIDATES_MAX": limits.CANDIDATES_MAX,
    "RATE_MAX": limits.RATE_MAX,
    "HELD_MAX": limits.HELD_MAX,
    "RESOURCES_MAX": limits.RESOURCES_MAX,
    "IDS_MAX": limits.IDS_MAX,
    "REPORT_MAX": limits.REPORT_MAX,
    "LOOK_MAX": limits.LOOK_MAX,
    "USED_MAX": limits.USED_MAX,
    "REAP_MAX": limits.REAP_MAX,
    "REAPED_MAX": limits.REAPED_MAX,
    "CREDIT_MAX": limits.CREDIT_MAX,
    "BUCKET_UNITS": limits.BUCKET_UNITS,
    "DEBT_MINUTES_MAX": limits.DEBT_MINUTES_MAX,
    "SLOT_RETRY_MS": limits.SLOT_RETRY_MS,
    "CONFIG_RETRY_MS": limits.CONFIG_RETRY_MS,
    "CALL_GRACE_MS": limits.CALL_GRACE_MS,
}
_TABLES: Final = (
    "epoch", "owners", "reports", "reservations", "leases", "held", "reaped", "tombstones",
    "used", "buckets", "runners", "alive", "idle", "fleets", "waiting",
)  # fmt: skip
_OF_SHARDS: Final = frozenset(
    {"owners", "held", "reaped", "tombstones"}
)  # no decision of a runner touches them
_OF_RUNNERS: Final = frozenset({"register", "deregister", "claim", "renew", "call", "release"})
_NOTHING: Final = "nothing"  # a table that never exists


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """A decision's text and the name under which the server keeps it."""

    text: str
    sha: str


@cache
def script(decision: str) -> Script:
    """The script of one of DECISIONS."""
    assert decision in DECISIONS, f"no decision {decision!r}"
    text = _constants() + "".join(_file(name) for name in (*_PARTS[decision], decision))
    return Script(text=text, sha=hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


def keys(prefix: str, decision: str = "") -> tuple[str, ...]:
    """The ledger's keys in the order of base.lua, under one hash tag: a Redis Cluster keeps them together.

    A runner's decision gets those of shards replaced by one that does not exist: so its user needs no rights on them.
    """
    hidden = _OF_SHARDS if decision in _OF_RUNNERS else frozenset[str]()
    return tuple(f"{prefix}{{ledger}}:{_NOTHING if table in hidden else table}" for table in _TABLES)


def channel(prefix: str) -> str:
    """Where the names of resources that have room again are published."""
    return f"{prefix}woken"


def _constants() -> str:
    lines = [f"local {name} = {value}\n" for name, value in _CONSTANTS.items()]
    return "".join(lines) + f"local FLEET_PREFIX = '{limits.FLEET_PREFIX}'\n"


def _file(name: str) -> str:
    return resources.files("laxity.streams.ledger.lua").joinpath(f"{name}.lua").read_text(encoding="utf-8")
