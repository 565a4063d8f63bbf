"""The cache holds verified files or none: against a real HTTP server that misbehaves in turn."""

import hashlib
import io
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from laxity.infra.local.artifacts import Artifact, cached_path
from laxity.infra.local.errors import StackError
from laxity.infra.local.fetch import ATTEMPTS, fetch, missing, unpack, unpacked_path

GOOD = b"class files " * 50_000


def artifact(content: bytes = GOOD, name: str = "thing", extension: str = "jar") -> Artifact:
    return Artifact(
        group="org.example",
        name=name,
        version="1.0",
        classifier="",
        extension=extension,
        size=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
    )


class Repository:
    """Answers each path with the next of its prepared replies; the last one repeats."""

    def __init__(self) -> None:
        self.replies: dict[str, list[tuple[int, bytes, int]]] = {}
        self.requests: list[str] = []
        repository = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path = self.path.lstrip("/")
                repository.requests.append(path)
                replies = repository.replies.get(path, [(404, b"", 0)])
                status, body, length = replies.pop(0) if len(replies) > 1 else replies[0]
                self.send_response(status)
                self.send_header("Content-Length", str(length))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # as inherited
                """Silent."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def serve(self, each: Artifact, *bodies: bytes, cut: int = 0) -> None:
        """Bodies in turn; the first is cut by `cut` bytes although its length is announced in full."""
        replies = [(200, body, len(body)) for body in bodies]
        if cut:
            replies[0] = (200, bodies[0][:-cut], len(bodies[0]))
        self.replies[each.path] = replies


@pytest.fixture
def repository() -> Iterator[Repository]:
    made = Repository()
    made.thread.start()
    yield made
    made.server.shutdown()
    made.thread.join()
    made.server.server_close()


def test_fetched_once_then_from_the_cache(repository: Repository, tmp_path: Path) -> None:
    each = artifact()
    repository.serve(each, GOOD)
    counted: list[int] = []
    paths = fetch(tmp_path, repository.url, [each], counted.append)
    assert paths == [cached_path(tmp_path, each)]
    assert paths[0].read_bytes() == GOOD
    assert sum(counted) == len(GOOD)
    fetch(tmp_path, repository.url, [each])
    assert len(repository.requests) == 1


def test_wrong_bytes_are_fetched_again_and_never_kept(repository: Repository, tmp_path: Path) -> None:
    each = artifact()
    repository.serve(each, b"x" * len(GOOD), GOOD)
    counted: list[int] = []
    fetch(tmp_path, repository.url, [each], counted.append)
    assert cached_path(tmp_path, each).read_bytes() == GOOD
    assert sum(counted) == len(GOOD), "the progress bar takes back what was thrown away"


def test_a_truncated_answer_is_fetched_again(repository: Repository, tmp_path: Path) -> None:
    each = artifact()
    repository.serve(each, GOOD, GOOD, cut=1000)
    counted: list[int] = []
    fetch(tmp_path, repository.url, [each], counted.append)
    assert cached_path(tmp_path, each).read_bytes() == GOOD
    assert sum(counted) == len(GOOD)


def test_a_damaged_cache_is_repaired(repository: Repository, tmp_path: Path) -> None:
    each = artifact()
    repository.serve(each, GOOD)
    fetch(tmp_path, repository.url, [each])
    damaged = bytearray(GOOD)
    damaged[1234] ^= 1
    cached_path(tmp_path, each).write_bytes(damaged)
    assert missing(tmp_path, [each]) == [each]
    fetch(tmp_path, repository.url, [each])
    assert cached_path(tmp_path, each).read_bytes() == GOOD


def test_always_wrong_names_the_artifact_and_leaves_nothing(repository: Repository, tmp_path: Path) -> None:
    each = artifact()
    repository.serve(each, b"forged")
    with pytest.raises(StackError, match=r"org\.example:thing:1\.0.*SHA-256.*LAXITY_MAVEN_URL"):
        fetch(tmp_path, repository.url, [each])
    assert len(repository.requests) == ATTEMPTS
    assert list(cached_path(tmp_path, each).parent.iterdir()) == []


def test_an_absent_artifact_fails_with_the_status(repository: Repository, tmp_path: Path) -> None:
    with pytest.raises(StackError, match="404"):
        fetch(tmp_path, repository.url, [artifact()])


def test_many_artifacts_arrive_whole(repository: Repository, tmp_path: Path) -> None:
    contents = {f"part{n}": bytes([n]) * (1000 + n) for n in range(30)}
    artifacts = [artifact(content, name) for name, content in contents.items()]
    for each in artifacts:
        repository.serve(each, contents[each.name])
    paths = fetch(tmp_path, repository.url, artifacts)
    assert [path.read_bytes() for path in paths] == list(contents.values())


def archive_of(name: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        entry = tarfile.TarInfo(name)
        entry.size = 5
        tar.addfile(entry, io.BytesIO(b"hello"))
    return buffer.getvalue()


def put_in_cache(cache: Path, content: bytes) -> Artifact:
    each = artifact(content, "archive", "tar.gz")
    path = cached_path(cache, each)
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    return each


def test_unpacked_once(tmp_path: Path) -> None:
    each = put_in_cache(tmp_path, archive_of("app/run.txt"))
    folder = unpack(tmp_path, each)
    assert (folder / "app" / "run.txt").read_text() == "hello"
    assert not cached_path(tmp_path, each).exists(), "nothing reads the archive again"
    assert unpack(tmp_path, each) == folder


def test_an_archive_that_escapes_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    each = put_in_cache(tmp_path / "cache", archive_of("../../escaped.txt"))
    with pytest.raises(tarfile.OutsideDestinationError):
        unpack(tmp_path / "cache", each)
    assert not unpacked_path(tmp_path / "cache", each).exists()
    assert not list(tmp_path.rglob("escaped.txt"))
    assert not list((tmp_path / "cache" / "unpacked").iterdir())
