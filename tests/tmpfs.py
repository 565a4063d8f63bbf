"""A small file system of memory that a test may fill, for whoever writes to a full disk.

It is mounted in a mount namespace of its own, kept by a child process, and reached through /proc: nothing is left behind whatever dies,
and root is not needed where user namespaces are allowed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_KEEP = 'mount -t tmpfs -o size="$1",mode=0700 tmpfs /mnt && echo mounted && exec cat'
_FILLER = "filler"


@contextmanager
def mounted_tmpfs(size: int) -> Iterator[Path]:
    """The root of an empty file system of `size` bytes. Fails the test where neither root nor a user namespace can be had."""
    namespaces = ["--mount"] if os.geteuid() == 0 else ["--user", "--map-root-user", "--mount"]
    command = ["unshare", *namespaces, "sh", "-c", _KEEP, "sh", str(size)]
    pipe = subprocess.PIPE
    keeper = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
    assert keeper.stdin is not None
    assert keeper.stdout is not None
    assert keeper.stderr is not None
    try:
        if keeper.stdout.readline().strip() != "mounted":
            pytest.fail(f"a tmpfs needs root or user namespaces: {keeper.stderr.read().strip()}")
        yield Path(f"/proc/{keeper.pid}/root/mnt")
    finally:
        keeper.stdin.close()
        keeper.wait(10)
        keeper.stdout.close()
        keeper.stderr.close()


def fill(root: Path, *, leave: int = 0) -> None:
    """Leave so many bytes free."""
    with (root / _FILLER).open("ab") as file:
        while (room := shutil.disk_usage(root).free - leave) > 0:
            try:
                file.write(bytes(min(room, 1 << 20)))
                file.flush()
            except OSError:
                return


def make_room(root: Path) -> None:
    """Take back what `fill` took."""
    (root / _FILLER).unlink()
