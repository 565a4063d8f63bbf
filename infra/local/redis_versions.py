"""Which releases of Redis and Valkey have the fix for the Lua sandbox escape, CVE-2025-49844.

Any client that may run scripts can take over an older server, and our ledger is scripts.
"""

from collections.abc import Mapping

Version = tuple[int, int, int]

# First patched release of each line that got one; lines after the last one were born patched.
PATCHED: Mapping[str, tuple[Version, ...]] = {
    "redis": ((6, 2, 20), (7, 2, 11), (7, 4, 6), (8, 0, 4), (8, 2, 2)),
    "valkey": ((7, 2, 11), (8, 0, 6), (8, 1, 4)),
}


def _first_patched(flavour: str, version: Version) -> Version | None:
    for first in PATCHED[flavour]:
        if first[:2] == version[:2]:
            return first
    return None


def unpatched(flavour: str, version: Version) -> str:
    """Why this version is unsafe and from which one on it is safe; empty if it is patched."""
    first = _first_patched(flavour, version) or (
        () if version > PATCHED[flavour][-1] else PATCHED[flavour][-1]
    )
    if version >= first:
        return ""
    return f"{flavour} {'.'.join(map(str, version))} has CVE-2025-49844; take {'.'.join(map(str, first))} or newer"
