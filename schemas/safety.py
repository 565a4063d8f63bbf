"""What a process refuses to start with: passwords in clear, unverified servers, an open Redis on a network, secrets that others can read.

Each check returns the reason, empty if there is none; the caller says where the value came from.
"""

from __future__ import annotations

import ipaddress
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Final
from urllib.parse import parse_qs, urlsplit

from laxity.schemas.masking import is_secret

REDIS_SCHEMES: Final = ("redis", "rediss", "unix")
_KEY_FILES: Final = (
    "ssl.key.location",
    "ssl.keystore.location",
)  # librdkafka properties that name private keys
_OFF: Final = ("false", "f", "0", "no", "none")


def is_loopback(url: str) -> bool:
    """Whether a URL's host is this machine by name or address; a unix socket is."""
    parts = urlsplit(url)
    if parts.scheme == "unix" or parts.hostname == "localhost":
        return True
    try:
        return ipaddress.ip_address(parts.hostname or "").is_loopback
    except ValueError:
        return False


def unsafe_kafka(properties: Mapping[str, str]) -> str:
    """Of a user's librdkafka properties. SASL without TLS shows the password (or what it can be guessed from) to the network."""
    protocol = properties.get("security.protocol", "plaintext").lower()
    mechanism = properties.get("sasl.mechanisms", properties.get("sasl.mechanism", "GSSAPI")).upper()
    if protocol == "sasl_plaintext" and mechanism != "GSSAPI":
        return (
            f"{mechanism} over a connection without TLS gives the password away: security.protocol=SASL_SSL"
        )
    if (
        protocol.endswith("ssl")
        and properties.get("enable.ssl.certificate.verification", "true").lower() in _OFF
    ):
        return "enable.ssl.certificate.verification=false lets anybody be the broker: name its CA with ssl.ca.location"
    for name in _KEY_FILES:
        if name in properties and (reason := exposed(Path(properties[name]))):
            return f"{name}: {reason}"
    return ""


def unsafe_redis(url: str) -> str:
    """Of a Redis address. Whoever reaches the ledger without a password owns every limit and every lease."""
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - raises for what is no number
    except ValueError:
        return "it is no URL; a password's / : @ % must be written as %2F %3A %40 %25"
    if parts.scheme not in REDIS_SCHEMES:
        return f"it must begin with {', '.join(f'{scheme}://' for scheme in REDIS_SCHEMES)}"
    options = {name: values[0] for name, values in parse_qs(parts.query).items()}
    if options.get("ssl_cert_reqs", "required") != "required":
        return "ssl_cert_reqs lets anybody be the server: name its CA with ssl_ca_certs"
    if not (is_loopback(url) or parts.password or "ssl_certfile" in options):
        return "a Redis beyond this machine needs a password or a client certificate"
    if key := options.get("ssl_keyfile"):
        reason = exposed(Path(key))
        return f"ssl_keyfile: {reason}" if reason else ""
    return ""


def exposed(path: Path) -> str:
    """Who else can read or change a private file or folder. Ours: nobody may. Another's (a mounted secret, its group is ours): its owner and group may."""
    try:
        found = path.stat()
    except OSError as error:
        return f"{path}: {error.strerror}"
    mode = stat.S_IMODE(found.st_mode)
    ours = found.st_uid == os.geteuid()
    if not mode & (0o077 if ours else 0o007):
        return ""
    wanted = "go-rwx" if ours else "o-rwx"
    return f"{path} has mode {mode:04o}, so others can read or change it: chmod {wanted}"


def holds_secret(properties: Mapping[str, str]) -> bool:
    """Whether a file with these properties must be private."""
    return any(is_secret(name) for name in properties)
