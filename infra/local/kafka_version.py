"""How new a Kafka broker is: asked with ApiVersions, the one request that is answered before any login.

The protocol tells features, not releases: the newest metadata version that a broker supports names its line, not its patch.
"""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from laxity.infra.local.findings import Finding, Level

ANSWER_TIMEOUT_S: Final = 2.0
ANSWER_BYTES_MAX: Final = 65_536  # real ones have some 800 bytes
LEVEL_39: Final = 21  # metadata version 3.9-IV0, the last of that line
_API_VERSIONS: Final = 18
_REQUEST_VERSION: Final = 3  # the first with features
_FEATURE: Final = "metadata.version"
_NAME: Final = "kafka version"
_WHY: Final = "older ones have CVE-2025-27817 and CVE-2025-27818, and SCRAM of CVE-2024-56128"


class Unanswered(Exception):  # noqa: N818 - a state of the world
    """No connection, or no answer that can be read."""


def judge(level: int) -> Finding:
    """By the newest metadata version that the broker supports; 0: it tells none."""
    if level > LEVEL_39:
        return Finding(name=_NAME, level=Level.OK, detail="4.0 or newer")
    if level == LEVEL_39:
        detail = f"3.9, and which patch cannot be asked: 3.9.0 and {_WHY}"
        return Finding(name=_NAME, level=Level.WARN, detail=detail, remedy="be sure of 3.9.1 or newer")
    return Finding(
        name=_NAME, level=Level.ERROR, detail=f"older than 3.9: {_WHY}", remedy="use 4.0 or newer, or 3.9.1"
    )


def newest_metadata_level(bootstrap: str, properties: Mapping[str, str]) -> int:
    """Of the first broker that is named. `properties`: the user's for librdkafka, for TLS. Raises Unanswered."""
    host, _, port = bootstrap.split(",", maxsplit=1)[0].strip().rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), ANSWER_TIMEOUT_S) as plain:
            if "ssl" not in properties.get("security.protocol", "").lower():
                return _level(_ask(plain))
            with _context(properties).wrap_socket(plain, server_hostname=host.strip("[]")) as secure:
                return _level(_ask(secure))
    except (OSError, ValueError, struct.error, IndexError) as error:
        raise Unanswered(f"{host}:{port}: {error or type(error).__name__}") from error


def _context(properties: Mapping[str, str]) -> ssl.SSLContext:
    if given := {"ssl.keystore.location", "ssl.certificate.pem", "ssl.ca.pem"} & properties.keys():
        raise Unanswered(f"not asked: {', '.join(sorted(given))} is for the client library alone")
    context = ssl.create_default_context(cafile=properties.get("ssl.ca.location"))
    if certificate := properties.get("ssl.certificate.location"):
        password = properties.get("ssl.key.password", "")
        context.load_cert_chain(certificate, properties.get("ssl.key.location"), password)
    return context


def _ask(connection: socket.socket) -> bytes:
    name = b"laxity-doctor"
    header = struct.pack(">hhih", _API_VERSIONS, _REQUEST_VERSION, 1, len(name)) + name + b"\0"
    body = bytes((len(name) + 1,)) + name + b"\x02" + b"1" + b"\0"  # compact texts: length + 1, then the text
    connection.sendall(struct.pack(">i", len(header + body)) + header + body)
    (size,) = struct.unpack(">i", _exactly(connection, 4))
    if not 0 < size <= ANSWER_BYTES_MAX:
        raise ValueError(f"answered {size} bytes: not a Kafka broker?")
    return _exactly(connection, size)


def _exactly(connection: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size:
        piece = connection.recv(size - len(found))
        if not piece:
            raise ValueError("closed the connection")
        found += piece
    return found


@dataclass(slots=True)
class _Cursor:
    """Reads Kafka's flexible encoding."""

    data: bytes
    at: int = 0

    def varint(self) -> int:
        value = shift = 0
        while True:
            byte = self.data[self.at]
            self.at += 1
            value |= (byte & 0x7F) << shift
            if not byte & 0x80:
                return value
            shift += 7

    def short(self) -> int:
        self.at += 2
        return int(struct.unpack_from(">h", self.data, self.at - 2)[0])

    def text(self) -> str:
        size = self.varint() - 1
        self.at += size
        return self.data[self.at - size : self.at].decode("utf-8", "replace")

    def tags(self) -> Iterator[int]:
        """Each tag with the cursor at its content; afterwards it stands behind it."""
        for _ in range(self.varint()):
            tag, size = self.varint(), self.varint()
            end = self.at + size
            yield tag
            self.at = end


def _level(answer: bytes) -> int:
    cursor = _Cursor(answer, 4)  # behind the correlation id
    if cursor.short():
        return 0  # too old for this version of the request
    for _ in range(cursor.varint() - 1):
        cursor.at += 6
        list(cursor.tags())
    cursor.at += 4  # throttle time
    for tag in cursor.tags():
        if tag == 0:
            return _supported(cursor).get(_FEATURE, 0)
    return 0


def _supported(cursor: _Cursor) -> dict[str, int]:
    """Feature and the newest version of it."""
    found = {}
    for _ in range(cursor.varint() - 1):
        name, _oldest, newest = cursor.text(), cursor.short(), cursor.short()
        list(cursor.tags())
        found[name] = newest
    return found
