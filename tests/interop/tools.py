"""What the foreign clients need: looked for, said in one line if missing, then installed from the locks beside each client.

Everything goes to `.venv/interop`, so that `make clean` removes it. Run as a program it only prepares.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
BUILD = HERE.parent.parent / ".venv" / "interop"
NODE_MIN, JAVA_MIN = 18, 17  # fetch and modules; HexFormat and running a source file
INSTALL_S = 420.0
ASK_S = 60.0


class Missing(Exception):  # noqa: N818 - it is a fact about the machine
    """The machine lacks something; the text is the one line to show."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """Commands of the three clients, each to be extended by arguments."""

    node: Path  # folder with the programs and their modules
    java: Sequence[str]
    kaskade: Sequence[str]


def prepare() -> Tools:
    """Install what is not there yet. Missing, or CalledProcessError with the installer's own words on stderr."""
    lacking = [text for text in (_node(), _java(), _on_path("npm"), _on_path("mvn", "Maven")) if text]
    if lacking:
        raise Missing(f"make interop needs {', '.join(lacking)}")
    BUILD.mkdir(parents=True, exist_ok=True)
    return Tools(node=_install_node(), java=_install_java(), kaskade=_install_kaskade())


def _on_path(program: str, name: str = "") -> str:
    return "" if shutil.which(program) else f"{name or program} ({program} on PATH)"


def _node() -> str:
    found = _version("node", "--version").removeprefix("v").partition(".")[0]
    return "" if found.isdigit() and int(found) >= NODE_MIN else f"Node.js {NODE_MIN} or later (node on PATH)"


def _java() -> str:
    words = _version("java", "--version").split()
    found = words[1].partition(".")[0] if len(words) > 1 else ""
    return "" if found.isdigit() and int(found) >= JAVA_MIN else f"a JDK {JAVA_MIN} or later (java on PATH)"


def _version(*command: str) -> str:
    if shutil.which(command[0]) is None:
        return ""
    return subprocess.run(command, capture_output=True, text=True, timeout=ASK_S, check=False).stdout.strip()


def _install_node() -> Path:
    folder = BUILD / "node"
    folder.mkdir(exist_ok=True)
    for source in sorted((HERE / "node").glob("*.js*")):
        shutil.copy(source, folder)
    lock = HERE / "node" / "package-lock.json"
    _once(lock, folder, ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix", str(folder)])
    return folder


def _install_java() -> Sequence[str]:
    folder, pom = BUILD / "java", HERE / "java" / "pom.xml"
    goal = ["dependency:copy-dependencies", f"-DoutputDirectory={folder / 'lib'}"]
    folder.mkdir(exist_ok=True)
    _once(pom, folder, ["mvn", "-q", "-B", "-f", str(pom), *goal])
    return ["java", "-cp", str(folder / "lib" / "*"), str(HERE / "java" / "Publish.java")]


def _install_kaskade() -> Sequence[str]:
    folder, lock = BUILD / "kaskade", HERE / "kaskade" / "requirements.txt"
    python = folder / "bin" / "python"
    if not python.exists():
        _run([sys.executable, "-m", "venv", str(folder)])
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    _once(lock, folder, [*pip, "--require-hashes", "-r", str(lock)])
    return [str(python), str(HERE / "kaskade" / "screen.py")]


def _once(lock: Path, folder: Path, command: Sequence[str]) -> None:
    """Run the command unless this very lock was installed here before."""
    stamp, digest = folder / ".installed", hashlib.sha256(lock.read_bytes()).hexdigest()
    if stamp.exists() and stamp.read_text() == digest:
        return
    _run(command)
    stamp.write_text(digest)


def _run(command: Sequence[str]) -> None:
    sys.stderr.write(" ".join(command) + "\n")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run(command, check=True, timeout=INSTALL_S, env=environment)


if __name__ == "__main__":
    try:
        prepare()
    except Missing as missing:
        sys.exit(str(missing))
    except subprocess.CalledProcessError as error:
        sys.exit(f"make interop: {' '.join(error.cmd[:3])} … ended with {error.returncode}")
