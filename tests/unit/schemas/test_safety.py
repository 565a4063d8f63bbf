"""What a process refuses to start with, and what it takes."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from laxity.schemas.safety import exposed, unsafe_kafka, unsafe_redis
from laxity.schemas.settings import Settings, SettingsError, settings

SECRET = "s3cret-canary"


@pytest.mark.parametrize(
    ("properties", "reason"),
    [
        ({}, ""),
        ({"security.protocol": "SSL"}, ""),
        ({"security.protocol": "sasl_ssl", "sasl.mechanism": "SCRAM-SHA-512"}, ""),
        ({"security.protocol": "SASL_PLAINTEXT"}, ""),  # GSSAPI protects itself
        ({"security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": "SCRAM-SHA-512"}, "SASL_SSL"),
        ({"security.protocol": "sasl_plaintext", "sasl.mechanisms": "PLAIN"}, "SASL_SSL"),
        ({"security.protocol": "SSL", "enable.ssl.certificate.verification": "false"}, "ssl.ca.location"),
    ],
)  # fmt: skip
def test_kafka(properties: dict[str, str], reason: str) -> None:
    assert (reason in unsafe_kafka(properties)) if reason else not unsafe_kafka(properties)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("redis://127.0.0.1:1/0", ""),
        ("redis://localhost", ""),
        ("redis://[::1]:6379", ""),
        ("unix:///tmp/redis.sock", ""),
        (f"redis://:{SECRET}@redis.example:6379/0", ""),
        (f"rediss://me:{SECRET}@redis.example:6379/0?ssl_ca_certs=/ca.pem", ""),
        ("rediss://redis.example:6379/0?ssl_certfile=/c.pem", ""),
        ("redis://redis.example:6379/0", "password"),
        ("redis://0.0.0.0:6379/0", "password"),
        ("rediss://redis.example:6379/0", "password"),
        (f"redis://:{SECRET}/x@127.0.0.1:6379", "%2F"),
        (f"http://:{SECRET}@127.0.0.1:6379", "redis://"),
        (f"rediss://:{SECRET}@127.0.0.1?ssl_cert_reqs=none", "ssl_ca_certs"),
    ],
)  # fmt: skip
def test_redis(url: str, reason: str) -> None:
    found = unsafe_redis(url)
    assert (reason in found) if reason else not found
    assert SECRET not in found


@pytest.mark.parametrize(
    ("mode", "private"), [(0o600, True), (0o400, True), (0o640, False), (0o604, False), (0o622, False)]
)
def test_modes_of_our_files(mode: int, private: bool, tmp_path: Path) -> None:  # noqa: FBT001
    file = tmp_path / "f"
    file.touch()
    file.chmod(mode)
    assert (exposed(file) == "") is private
    assert private or "chmod go-rwx" in exposed(file)


def test_a_mounted_secret_may_be_read_by_its_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "f"
    file.touch()
    monkeypatch.setattr("laxity.schemas.safety.os.geteuid", lambda: file.stat().st_uid + 1)
    file.chmod(0o440)
    assert exposed(file) == ""
    file.chmod(0o444)
    assert "chmod o-rwx" in exposed(file)


def private(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o600)
    return path


def test_passwords_come_from_files(tmp_path: Path) -> None:
    file = private(tmp_path / "password", "a/b@c:d%\n")
    found = settings(
        redis_url="rediss://me:old@h:1/0?ssl_ca_certs=/ca", redis_password_file=file,
        registry_url="https://u@r/apis/", registry_password_file=file,
    )  # fmt: skip
    assert found.redis_url == "rediss://me:a%2Fb%40c%3Ad%25@h:1/0?ssl_ca_certs=/ca"
    assert found.registry_url == "https://u:a%2Fb%40c%3Ad%25@r/apis"
    assert "a%2Fb" not in repr(found)
    assert settings(redis_url="", redis_password_file=file).redis_url == ""


@pytest.mark.parametrize("how", ["absent", "empty", "open", "folder"])
def test_password_files_that_are_refused(how: str, tmp_path: Path) -> None:
    file = private(tmp_path / "password", "" if how == "empty" else SECRET)
    if how == "open":
        file.chmod(0o644)
    path = {"absent": tmp_path / "absent", "folder": tmp_path}.get(how, file)
    with pytest.raises(ValidationError) as raised:
        settings(redis_url="redis://h:1", redis_password_file=path)
    assert SECRET not in str(raised.value)


def test_a_refused_url_is_not_quoted() -> None:
    with pytest.raises(ValidationError, match="ssl_ca_certs") as raised:
        settings(redis_url=f"rediss://:{SECRET}@h?ssl_cert_reqs=none")
    assert SECRET not in str(raised.value)


def test_a_file_with_a_secret_must_be_private(tmp_path: Path) -> None:
    file = private(tmp_path / "k.properties", f"sasl.password={SECRET}\n")
    place = Settings(kafka="k:1", kafka_config=file)
    assert place.kafka_properties({}) == {"sasl.password": SECRET}
    file.chmod(0o644)
    with pytest.raises(SettingsError, match="chmod go-rwx") as raised:
        place.kafka_properties({})
    assert SECRET not in str(raised.value)
    file.write_text("linger.ms=5\n")
    assert place.kafka_properties({}) == {"linger.ms": "5"}


def test_a_key_must_be_private_and_sasl_needs_tls(tmp_path: Path) -> None:
    key = private(tmp_path / "key.pem", "")
    place, env = Settings(kafka="k:1"), {"LAXITY_KAFKA__SSL__KEY__LOCATION": str(key)}
    assert place.kafka_properties(env)
    key.chmod(0o604)
    with pytest.raises(SettingsError, match=r"ssl\.key\.location"):
        place.kafka_properties(env)
    clear = {"LAXITY_KAFKA__SECURITY__PROTOCOL": "SASL_PLAINTEXT", "LAXITY_KAFKA__SASL__MECHANISM": "PLAIN"}
    with pytest.raises(SettingsError, match="SASL_SSL"):
        place.kafka_properties(clear)
