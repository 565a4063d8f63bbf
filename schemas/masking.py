"""Secrets stay out of what a process writes: log lines, errors, documents, tracebacks. What is masked becomes `***`.

Two nets: passwords in URLs, wherever they came from, and the very values of this process's secrets, wherever they turn up.
"""

from __future__ import annotations

import json
import re
import sys
import threading
import traceback
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Final
from urllib.parse import quote, unquote

MASKED: Final = "***"
SECRET_CHARS_MIN: Final = (
    6  # a shorter one is a word like any other: masking it would hide half of every line
)
SECRET_FILE_BYTES_MAX: Final = 65_536  # a password, a key or some properties; a larger file is a mistake
PROPERTY_PREFIX: Final = "LAXITY_KAFKA__"  # LAXITY_KAFKA__SASL__PASSWORD is sasl.password
PASSWORD_FILES: Final = ("LAXITY_REDIS_PASSWORD_FILE", "LAXITY_REGISTRY_PASSWORD_FILE")
PROPERTIES_FILE: Final = "LAXITY_KAFKA_CONFIG"

_IN_URL: Final = re.compile(r"(?<=://)(?P<user>[^\s/:@\"']*):[^\s@\"']+@")
# Names of variables and librdkafka properties whose values nobody may read. An agent's own keys to its providers are among them.
_SECRET_NAME: Final = re.compile(
    r"(password|passwd|secret|credentials?|api[._]?key|access[._]?key|private[._]?key|key[._]pem|token)$",
    re.IGNORECASE,
)


def masked(text: str) -> str:
    """`redis://me:secret@host` becomes `redis://me:***@host`; everything else stays."""
    return _IN_URL.sub(rf"\g<user>:{MASKED}@", text)


def is_secret(name: str) -> bool:
    """Whether the value of a variable or property of that name is a secret."""
    return _SECRET_NAME.search(name) is not None


def properties_of(text: str) -> dict[str, str]:
    """Lines `key=value`; comments begin with # or !. ValueError names the number of a line that is neither."""
    found = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith(("#", "!")):
            continue
        key, equals, value = line.partition("=")
        if not equals or not key.strip():
            raise ValueError(f"{number}: expected key=value")
        found[key.strip()] = value.strip()
    return found


class Mask:
    """Callable: a text without the given secrets and without passwords in URLs."""

    def __init__(self, secrets: Iterable[str]) -> None:
        shapes = {shape for secret in secrets if len(secret) >= SECRET_CHARS_MIN for shape in _shapes(secret)}
        longest_first = sorted(shapes, key=len, reverse=True)
        self._values = re.compile("|".join(map(re.escape, longest_first))) if shapes else None

    def __call__(self, text: str) -> str:
        """The text to write."""
        text = masked(text)
        return text if self._values is None else self._values.sub(MASKED, text)


def mask_of(environment: Mapping[str, str]) -> Mask:
    """Knows the secrets that the variables hold and those of the files that they name. A file that cannot be read has none to give away."""
    return Mask(_secrets(environment))


def guard_tracebacks(mask: Mask) -> None:
    """Tracebacks of this process, of all its threads, are masked from here on: messages of errors quote what they were given."""

    def write(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
        lines = traceback.format_exception(kind, error, trace)
        sys.stderr.write(mask("".join(lines)))

    def of_thread(hooked: threading.ExceptHookArgs) -> None:
        if hooked.exc_type is not SystemExit:
            write(hooked.exc_type, hooked.exc_value, hooked.exc_traceback)

    sys.excepthook = write
    threading.excepthook = of_thread


def _shapes(secret: str) -> Iterator[str]:
    """As it is, and as a URL, JSON or repr() would have it."""
    yield from (secret, quote(secret, safe=""), unquote(secret), json.dumps(secret)[1:-1], repr(secret)[1:-1])


def _secrets(environment: Mapping[str, str]) -> Iterator[str]:
    for name, value in environment.items():
        if is_secret(name):
            yield value.strip()
        if "://" in value:
            yield from (found.rpartition(":")[2][:-1] for found in _credentials(value))
    for name in PASSWORD_FILES:
        yield _content(environment.get(name, "")).strip()
    try:
        properties = properties_of(_content(environment.get(PROPERTIES_FILE, "")))
    except ValueError:
        return  # it is refused before anything is sent
    yield from (value for key, value in properties.items() if is_secret(key))


def _credentials(text: str) -> Iterator[str]:
    return (found.group() for found in _IN_URL.finditer(text))


def _content(path: str) -> str:
    if not path:
        return ""
    try:
        with Path(path).open("rb") as file:
            return file.read(SECRET_FILE_BYTES_MAX).decode("utf-8", "replace")
    except OSError:
        return ""
