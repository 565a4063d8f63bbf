"""What doctor says of connections, files and the broker's age, without real servers but for a socket that answers."""

from __future__ import annotations

import json
import os
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import pytest

from laxity.infra.local.data_dir import RECORD_FORMAT, DataDir
from laxity.infra.local.doctor_security import connection_findings, file_findings
from laxity.infra.local.endpoints import Endpoints
from laxity.infra.local.findings import Level
from laxity.infra.local.kafka_version import Unanswered, judge, newest_metadata_level
from laxity.infra.local.pids import identify
from laxity.infra.local.status import describe

SECRET = "canary-canary"


def features(*found: tuple[str, int]) -> bytes:
    """An answer to ApiVersions version 3 with one api and these features."""
    supported = bytes([len(found) + 1])
    for name, newest in found:
        supported += bytes([len(name) + 1]) + name.encode() + struct.pack(">hh", 1, newest) + b"\0"
    tags = b"\x02" + b"\x01\x08" + bytes(8) + b"\0" + bytes([len(supported)]) + supported
    return struct.pack(">ih", 1, 0) + b"\x02" + struct.pack(">hhh", 18, 0, 4) + b"\0" + bytes(4) + tags


@contextmanager
def answering(*pieces: bytes) -> Iterator[str]:
    """A server that answers one request so."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = server.accept()
        with connection:
            connection.recv(1_024)
            for piece in pieces:
                connection.sendall(piece)

    thread = threading.Thread(target=serve)
    thread.start()
    yield f"127.0.0.1:{server.getsockname()[1]}"
    thread.join()
    server.close()


@pytest.mark.parametrize(
    ("found", "level"),
    [
        ((("group.version", 1), ("metadata.version", 30)), 30),
        ((("metadata.version", 21),), 21),
        ((("x", 9),), 0),
    ],
)
def test_the_broker_tells_its_line(found: tuple[tuple[str, int], ...], level: int) -> None:
    answer = features(*found)
    with answering(struct.pack(">i", len(answer)), answer[:7], answer[7:]) as place:
        assert newest_metadata_level(place, {}) == level


def test_a_broker_too_old_for_the_question_tells_nothing() -> None:
    answer = struct.pack(">ih", 1, 35)
    with answering(struct.pack(">i", len(answer)) + answer) as place:
        assert newest_metadata_level(place, {}) == 0


@pytest.mark.parametrize(
    "answer",
    [b"", b"HTTP/1.1 400 Bad Request\r\n", struct.pack(">i", 10) + b"x", struct.pack(">i", 6) + bytes(6)],
)
def test_what_is_no_broker(answer: bytes) -> None:
    with answering(answer) as place, pytest.raises(Unanswered):
        newest_metadata_level(place, {})


def test_nobody_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        place = f"127.0.0.1:{server.getsockname()[1]}"
    with pytest.raises(Unanswered, match=place):
        newest_metadata_level(place, {})


@pytest.mark.parametrize(
    ("level", "finding"),
    [(30, Level.OK), (22, Level.OK), (21, Level.WARN), (20, Level.ERROR), (0, Level.ERROR)],
)
def test_releases_by_their_metadata_version(level: int, finding: Level) -> None:
    assert judge(level).level is finding


@pytest.mark.parametrize(
    ("url", "level"),
    [
        ("redis://127.0.0.1:1", Level.OK),
        (f"redis://:{SECRET}@far:1", Level.WARN),
        (f"rediss://:{SECRET}@far:1", Level.OK),
        ("redis://far:1", Level.ERROR),
        (f"rediss://:{SECRET}@far:1?ssl_cert_reqs=none", Level.ERROR),
    ],
)
def test_redis_connections(url: str, level: Level) -> None:
    (found,) = connection_findings(Endpoints(redis=url))
    assert found.level is level
    assert SECRET not in found.detail


def test_a_registry_in_clear_far_away_is_told_without_its_password() -> None:
    (found,) = connection_findings(Endpoints(registry=f"http://u:{SECRET}@far/apis"))
    assert (found.level, SECRET in found.detail) == (Level.WARN, False)
    assert not list(connection_findings(Endpoints(registry="https://far/apis")))


@pytest.mark.parametrize(
    ("bootstrap", "variables", "level"),
    [
        ("127.0.0.1:1", {}, Level.OK),
        ("127.0.0.1:1,far.invalid:1", {}, Level.WARN),
        ("127.0.0.1:1", {"SECURITY__PROTOCOL": "SSL"}, Level.OK),
        (
            "127.0.0.1:1",
            {"SECURITY__PROTOCOL": "SSL", "SSL__ENDPOINT__IDENTIFICATION__ALGORITHM": "none"},
            Level.WARN,
        ),
        ("127.0.0.1:1", {"SECURITY__PROTOCOL": "SASL_PLAINTEXT", "SASL__MECHANISM": "PLAIN"}, Level.ERROR),
    ],
)
def test_kafka_connections(
    bootstrap: str, variables: dict[str, str], level: Level, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(f"LAXITY_KAFKA__{name}", value)
    found = {finding.name: finding for finding in connection_findings(Endpoints(kafka=bootstrap))}
    assert found["kafka connection"].level is level
    assert (level is Level.ERROR) or found["kafka version"].level is Level.WARN


def test_files_that_others_can_read_are_told(tmp_path: Path) -> None:
    data = DataDir.at(tmp_path / "data")
    assert not list(file_findings(data.root))
    data.create()
    assert [finding.level for finding in file_findings(data.root)] == [Level.OK]
    (data.root / "state" / "0").mkdir(parents=True, mode=0o755)
    (data.root / "redis.password").write_text("x")
    (data.root / "redis.password").chmod(0o644)
    found = [finding.detail for finding in file_findings(data.root) if finding.level is Level.ERROR]
    assert len(found) == 2
    assert all("chmod" in detail for detail in found)


def test_status_shows_no_password(tmp_path: Path) -> None:
    here = identify(os.getpid())
    assert here is not None
    addresses = {
        "kafka": "k:1",
        "registry": f"http://u:{SECRET}@r",
        "redis": f"redis://:{SECRET}@r:1/0",
        "provider": "",
    }
    record = {"format": RECORD_FORMAT, "supervisor": asdict(here), "endpoints": addresses}
    rest = {"ready": True, "processes": [], "provider_ledger": None}
    DataDir.at(tmp_path).record_file.write_text(json.dumps(record | rest))
    running, found = describe(DataDir.at(tmp_path))
    assert running
    assert found["endpoints"] == {
        "kafka": "k:1",
        "registry": "http://u:***@r",
        "redis": "redis://:***@r:1/0",
        "provider": None,
    }
