"""A folder with one file per user, readable by its owner only: made where absent, else taken as it is."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Final

from laxity.schemas.masking import SECRET_FILE_BYTES_MAX
from laxity.schemas.safety import exposed

PASSWORD_BYTES: Final = 32


class PasswordError(Exception):
    """A folder or file is missing, empty, or open to others."""


def password_of(folder: Path, user: str) -> str:
    """The first line's text of FOLDER/USER; a random one is written there if there is none. PasswordError."""
    path = folder / user
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _make(path)
        if reason := exposed(path):
            raise PasswordError(reason)
        with path.open(encoding="utf-8") as file:
            found = file.read(SECRET_FILE_BYTES_MAX).strip()
    except OSError as error:
        raise PasswordError(f"{path}: {error.strerror}") from error
    if not found:
        raise PasswordError(f"{path} is empty")
    return found


def _make(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(secrets.token_urlsafe(PASSWORD_BYTES) + "\n")
