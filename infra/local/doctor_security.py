"""The part of `laxity doctor` that looks at how we connect, what crosses the network in clear, and who else can read our files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from laxity.infra.local.endpoints import Endpoints
from laxity.infra.local.findings import Finding, Level
from laxity.infra.local.kafka_version import Unanswered, judge, newest_metadata_level
from laxity.schemas.masking import masked
from laxity.schemas.safety import exposed, is_loopback, unsafe_redis
from laxity.schemas.settings import Settings, SettingsError


def connection_findings(found: Endpoints) -> Iterator[Finding]:
    """How each given or running server is spoken to."""
    if found.kafka:
        yield from _kafka(found.kafka)
    if found.redis:
        yield _redis(found.redis)
    if found.registry.startswith("http://") and not is_loopback(found.registry):
        detail = f"{masked(found.registry)} is spoken to in clear"
        yield Finding(name="registry connection", level=Level.WARN, detail=detail, remedy="use https://")


def file_findings(data_dir: Path) -> Iterator[Finding]:
    """State holds payloads, the record of the stack holds passwords: nobody else may look."""
    open_to_others = [reason for path in _private(data_dir) if (reason := exposed(path))]
    for reason in open_to_others:
        yield Finding(name="private files", level=Level.ERROR, detail=reason)
    if not open_to_others and data_dir.exists():
        yield Finding(name="private files", level=Level.OK, detail=f"{data_dir} is open to nobody else")


def _private(data_dir: Path) -> Iterator[Path]:
    secrets = ("redis.password", "stack.json", "redis/redis.conf")
    state = sorted((data_dir / "state").glob("*")) if (data_dir / "state").is_dir() else []
    return (path for path in (data_dir, *(data_dir / name for name in secrets), *state) if path.exists())


def _kafka(bootstrap: str) -> Iterator[Finding]:
    name = "kafka connection"
    try:
        properties = Settings(redis_url="", registry_url="").kafka_properties()
    except SettingsError as error:
        yield Finding(name=name, level=Level.ERROR, detail=str(error))
        return
    protocol = properties.get("security.protocol", "PLAINTEXT").upper()
    away = [place for place in bootstrap.split(",") if not is_loopback(f"kafka://{place.strip()}")]
    if away and not protocol.endswith("SSL"):
        detail = f"{', '.join(away)} is spoken to in clear"
        yield Finding(name=name, level=Level.WARN, detail=detail, remedy="security.protocol=SASL_SSL or SSL")
    elif properties.get("ssl.endpoint.identification.algorithm", "https").lower() == "none":
        detail = "ssl.endpoint.identification.algorithm=none takes any certificate of the CA for the broker's"
        yield Finding(name=name, level=Level.WARN, detail=detail)
    else:
        yield Finding(name=name, level=Level.OK, detail=protocol)
    try:
        yield judge(newest_metadata_level(bootstrap, properties))
    except Unanswered as error:
        yield Finding(name="kafka version", level=Level.WARN, detail=f"could not be asked: {error}")


def _redis(url: str) -> Finding:
    name = "redis connection"
    if reason := unsafe_redis(url):
        return Finding(name=name, level=Level.ERROR, detail=reason)
    if url.startswith("redis://") and not is_loopback(url):
        detail = f"{masked(url)} is spoken to in clear"
        return Finding(name=name, level=Level.WARN, detail=detail, remedy="use rediss://")
    return Finding(name=name, level=Level.OK, detail=masked(url))
