"""Fetch locked artifacts into the cache: eight at a time, checked by SHA-256, never half a file.

Two processes may share a cache; a file lock lets one of them fetch while the other waits.
"""

import fcntl
import hashlib
import os
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx

from laxity.infra.local.artifacts import Artifact, cached_path
from laxity.infra.local.errors import StackError

THREADS = 8  # 93 files in 20 s; more gain nothing on one host
CHUNK_BYTES = 1 << 18
ATTEMPTS = 3  # a broken connection or a truncated file is tried again
TIMEOUT = httpx.Timeout(60.0, connect=15.0)


def is_intact(path: Path, artifact: Artifact) -> bool:
    """Whether the file is there with the locked size and SHA-256."""
    try:
        if path.stat().st_size != artifact.size:
            return False
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == artifact.sha256
    except FileNotFoundError:
        return False


@contextmanager
def cache_lock(cache_dir: Path) -> Iterator[None]:
    """Hold the cache for this process; blocks while another process fetches."""
    cache_dir.mkdir(parents=True, exist_ok=True)
    with (cache_dir / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def missing(cache_dir: Path, artifacts: Sequence[Artifact]) -> list[Artifact]:
    """Those that are absent from the cache, or there with the wrong bytes."""
    with ThreadPoolExecutor(THREADS) as threads:
        intact = threads.map(lambda each: is_intact(cached_path(cache_dir, each), each), artifacts)
        return [artifact for artifact, good in zip(artifacts, intact, strict=True) if not good]


def _download(client: httpx.Client, url: str, target: Path, on_bytes: Callable[[int], None]) -> None:
    done = 0
    try:
        with client.stream("GET", url) as response, target.open("wb") as file:
            response.raise_for_status()
            for chunk in response.iter_bytes(CHUNK_BYTES):
                file.write(chunk)
                done += len(chunk)
                on_bytes(len(chunk))
    except BaseException:
        on_bytes(-done)  # the bar goes back by what this attempt had counted
        raise


def _fetch_one(
    client: httpx.Client, base_url: str, path: Path, artifact: Artifact, on_bytes: Callable[[int], None]
) -> None:
    """Put one verified file at `path`; raises StackError after the last attempt."""
    url = f"{base_url.rstrip('/')}/{artifact.path}"
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    reason = ""
    for _ in range(ATTEMPTS):
        try:
            _download(client, url, partial, on_bytes)
        except httpx.HTTPError as error:
            reason = str(error) or type(error).__name__
            continue
        if is_intact(partial, artifact):
            partial.replace(path)
            return
        reason = (
            f"{partial.stat().st_size} bytes do not have the locked SHA-256 (expected {artifact.size} bytes)"
        )
        on_bytes(-partial.stat().st_size)
    partial.unlink(missing_ok=True)
    raise StackError(
        f"cannot fetch {artifact.coordinate} from {url}",
        reason,
        "check the network, or set LAXITY_MAVEN_URL to a mirror",
    )


def fetch(
    cache_dir: Path,
    base_url: str,
    artifacts: Sequence[Artifact],
    on_bytes: Callable[[int], None] = lambda _: None,
) -> list[Path]:
    """Make every artifact present and verified; returns their paths in the order given.

    `on_bytes` hears how many bytes arrived (negative when an attempt is thrown away), from several threads.
    """
    with cache_lock(cache_dir):
        wanted = missing(cache_dir, artifacts)
        with (
            httpx.Client(timeout=TIMEOUT, follow_redirects=True) as client,
            ThreadPoolExecutor(THREADS) as threads,
        ):
            jobs = [
                threads.submit(_fetch_one, client, base_url, cached_path(cache_dir, each), each, on_bytes)
                for each in sorted(wanted, key=lambda each: -each.size)
            ]
            try:
                for job in jobs:
                    job.result()
            except BaseException:
                threads.shutdown(wait=False, cancel_futures=True)
                raise
    return [cached_path(cache_dir, each) for each in artifacts]


def unpacked_path(cache_dir: Path, archive: Artifact) -> Path:
    """The folder of an unpacked archive; it exists only if it is complete."""
    return cache_dir / "unpacked" / archive.sha256[:16]


def unpack(cache_dir: Path, archive: Artifact) -> Path:
    """Unpack a fetched .tar.gz beside the cache and rename it into place, so that it is whole or absent."""
    folder = unpacked_path(cache_dir, archive)
    with cache_lock(cache_dir):
        if folder.exists():
            return folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".unpacking-"))
        try:
            with tarfile.open(cached_path(cache_dir, archive)) as tar:
                tar.extractall(staging, filter="data")
            staging.rename(folder)
            cached_path(cache_dir, archive).unlink()  # 159 MB that nothing reads again
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise
    return folder
