"""Ports, plans, versions, locks and settings of the local stack: no process is started."""

import re
import socket
from pathlib import Path
from typing import Any

import pytest

from laxity.infra.local import Endpoints, endpoints
from laxity.infra.local.artifacts import load_lock
from laxity.infra.local.broker import BROKER_SETTINGS, properties
from laxity.infra.local.containers import KAFKA_IMAGE, REDIS_IMAGE, REGISTRY_IMAGE, broker_environment
from laxity.infra.local.data_dir import DataDir, held, read_record, redis_password
from laxity.infra.local.doctor_services import judge_redis
from laxity.infra.local.errors import ConfigurationError, StackError
from laxity.infra.local.findings import Level
from laxity.infra.local.java import JAVA_VERSION_MIN, Java
from laxity.infra.local.java import parse_version as java_version
from laxity.infra.local.kafka_tools import main_class, with_bootstrap
from laxity.infra.local.plan import ROLES, from_json, make_plan, to_json
from laxity.infra.local.ports import parse_choice, settle_ports
from laxity.infra.local.processes import stack_endpoints
from laxity.infra.local.redis_server import configuration
from laxity.infra.local.redis_server import parse_version as redis_version
from laxity.infra.local.schema_registry import environment
from laxity.infra.local.settings import StackSettings
from laxity.schemas.safety import is_loopback

COMPOSE = Path(__file__).parents[3] / "infra" / "compose.yaml"


def settings(tmp_path: Path, **given: Any) -> StackSettings:
    return StackSettings(data_dir=tmp_path, cache_dir=tmp_path / "cache", **given)


# Ports


def test_ports_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "ports.json"
    first = settle_ports(path, ["kafka", "redis"], {})
    assert first["kafka"] != first["redis"]
    assert settle_ports(path, ["redis", "kafka"], {}) == first
    assert settle_ports(path, ["redis", "kafka", "registry"], {}).items() >= first.items()


def test_a_kept_port_that_is_taken_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "ports.json"
    first = settle_ports(path, ["kafka", "redis"], {})
    with socket.create_server(("127.0.0.1", first["kafka"])):
        second = settle_ports(path, ["kafka", "redis"], {})
    assert second["kafka"] != first["kafka"]
    assert second["redis"] == first["redis"]


def test_a_chosen_port_that_is_taken_is_an_error(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(StackError, match=f"port {port} for kafka is taken"):
            settle_ports(tmp_path / "ports.json", ["kafka"], {"kafka": port})


@pytest.mark.parametrize("text", ["kafka", "kafka=", "kafka=0", "kafka=65536", "kafka=-1", "kafka=x"])
def test_a_malformed_choice_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="NAME=PORT"):
        parse_choice(text)


def test_an_unknown_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="names are kafka"):
        settle_ports(tmp_path / "ports.json", ["kafka"], {"kafak": 9092})


# Plans


def test_a_plan_starts_everything_by_default(tmp_path: Path) -> None:
    names = make_plan(settings(tmp_path, kafka="", registry_url="", redis_url="")).names()
    order = [name.partition("-")[0] for name in names]
    assert order == ["kafka", "registry", "redis", "provider", *["scheduler"] * 2, *["runner"] * 2]


def test_a_given_service_is_not_started(tmp_path: Path) -> None:
    plan = make_plan(settings(tmp_path, kafka="broker:9092"), only="kafka,redis")
    assert plan.roles == {"redis"}
    assert stack_endpoints(plan, {"redis": 6379}).kafka == "broker:9092"


def test_an_unknown_role_is_refused_with_the_roles(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=", ".join(ROLES)):
        make_plan(settings(tmp_path), only="kafka,zookeeper")


def test_a_plan_survives_the_way_to_the_daemon(tmp_path: Path) -> None:
    plan = make_plan(settings(tmp_path, redis_url="redis://x"), only="kafka", provider_args=["--speed", "2"])
    assert from_json(to_json(plan)) == plan


# The data directory


def test_the_lock_is_held_by_one(tmp_path: Path) -> None:
    data = DataDir.at(tmp_path)
    with held(data) as first, held(data) as second:
        assert (first, second) == (True, False)
    with held(data) as free:
        assert free


def test_secrets_are_private_and_kept(tmp_path: Path) -> None:
    data = DataDir.at(tmp_path)
    password = redis_password(data)
    assert len(password) >= 32
    assert redis_password(data) == password
    assert (tmp_path / "redis.password").stat().st_mode & 0o777 == 0o600


def test_nothing_runs_in_an_empty_or_absent_directory(tmp_path: Path) -> None:
    assert endpoints(tmp_path) is None
    assert endpoints(tmp_path / "absent") is None


def test_the_record_of_a_dead_supervisor_gives_no_endpoints(tmp_path: Path) -> None:
    (tmp_path / "stack.json").write_text(
        '{"format": 1, "supervisor": {"pid": 1, "started": "another boot"}, "endpoints": {"kafka": "x:1"}}'
    )
    assert read_record(DataDir.at(tmp_path)) is not None
    assert endpoints(tmp_path) is None


def test_a_damaged_record_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "stack.json").write_text('{"format": 1, ')
    with pytest.raises(StackError, match="laxity down"):
        endpoints(tmp_path)


def test_environment_names_only_what_there_is() -> None:
    assert Endpoints(kafka="k:1").environment() == {"LAXITY_KAFKA": "k:1"}


# Versions


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ('openjdk version "25.0.2" 2026-01-20 LTS', 25),
        ('openjdk version "21" 2023-09-19', 21),
        ('java version "1.8.0_402"', 8),
        ('openjdk version "26-ea" 2026-03-17', 26),
        ("The operation couldn't be completed. Unable to locate a Java Runtime.", None),
    ],
)
def test_java_versions(text: str, version: int | None) -> None:
    assert java_version(text) == version


def test_flags_fit_the_runtime() -> None:
    oldest = Java(path=Path("java"), version=JAVA_VERSION_MIN, origin="PATH")
    assert oldest.flags() == (), "unknown options would keep it from starting"
    assert len(Java(path=Path("java"), version=25, origin="PATH").flags()) == 2


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64", ("redis", (7, 0, 15))),
        ("Valkey server v=9.1.2 sha=00000000:0 malloc=libc bits=64", ("valkey", (9, 1, 2))),
        ("bash: redis-server: not found", None),
    ],
)
def test_redis_versions(text: str, parsed: tuple[str, tuple[int, int, int]] | None) -> None:
    assert redis_version(text) == parsed


@pytest.mark.parametrize(
    ("url", "version", "level"),
    [
        ("redis://127.0.0.1:6379/0", "7.0.15", Level.WARN),
        ("redis://localhost:6379/0", "7.0.15", Level.WARN),
        ("redis://:secret@10.0.0.7:6379/0", "7.0.15", Level.ERROR),
        ("redis://cache.example:6379/0", "7.0.15", Level.ERROR),
        ("redis://cache.example:6379/0", "8.2.6", Level.OK),
        ("redis://127.0.0.1:6379/0", "6.0.16", Level.ERROR),
    ],
)
def test_an_unpatched_server_is_worse_where_others_reach_it(url: str, version: str, level: Level) -> None:
    assert judge_redis(url, {"redis_version": version}).level is level


def test_loopback() -> None:
    assert is_loopback("redis://[::1]:6379")
    assert is_loopback("unix:///tmp/redis.sock")
    assert not is_loopback("redis://0.0.0.0:6379")


# Lock and settings


def test_the_broker_and_its_clients_have_one_version() -> None:
    lock = load_lock()
    kafka = {each.name: each.version for each in lock.kafka if each.group == "org.apache.kafka"}
    assert {"kafka_2.13", "kafka-clients", "kafka-tools", "kafka-server"} <= kafka.keys()
    assert set(kafka.values()) == {lock.version_of("kafka_2.13")}
    assert KAFKA_IMAGE.endswith(f":{lock.version_of('kafka_2.13')}")
    assert REGISTRY_IMAGE.endswith(f":{lock.registry.version}")


def test_the_lock_names_each_artifact_once_with_a_checksum() -> None:
    lock = load_lock()
    keys = [(each.group, each.name, each.classifier) for each in lock.kafka]
    assert len(keys) == len(set(keys)) > 80
    for each in (*lock.kafka, lock.registry):
        assert re.fullmatch(r"[0-9a-f]{64}", each.sha256)
        assert each.size > 0


def test_compose_has_the_settings_of_the_local_stack() -> None:
    lines = COMPOSE.read_text("utf-8").splitlines()
    entries = dict(re.findall(r'^      (\w+): "([^"]*)"$', "\n".join(lines), re.MULTILINE))
    assert entries.items() >= broker_environment().items()
    registry = {
        **environment(Path("/data")),
        "APICURIO_DATASOURCE_URL": "jdbc:h2:file:/data/registry;WRITE_DELAY=0",
    }
    assert entries.items() >= registry.items()
    images = set(re.findall(r"image: (\S+)", "\n".join(lines)))
    assert images == {KAFKA_IMAGE, REGISTRY_IMAGE, REDIS_IMAGE}


def test_compose_listens_on_loopback_only() -> None:
    published = re.findall(r'ports: \["([^"]+)"\]', COMPOSE.read_text("utf-8"))
    assert len(published) == 3
    assert all(port.startswith("127.0.0.1:") for port in published)


def test_server_properties_listen_on_loopback_only() -> None:
    text = properties(port=9092, controller_port=9093, log_dir=Path("/data"))
    pairs = dict(line.split("=", 1) for line in text.splitlines())
    assert pairs.items() >= BROKER_SETTINGS.items()
    assert re.findall(r"//([^:]+):", pairs["listeners"]) == ["127.0.0.1", "127.0.0.1"]


def test_redis_listens_on_loopback_with_a_password() -> None:
    lines = configuration(port=6379, folder=Path("/a b"), password="s3cret").splitlines()
    assert {"bind 127.0.0.1", "requirepass s3cret", 'dir "/a b"', "maxmemory-policy noeviction"} <= set(lines)


# Kafka's tools


def test_tools_are_known_by_both_names() -> None:
    assert main_class("kafka-topics.sh") == main_class("topics")
    with pytest.raises(ConfigurationError, match="consumer-groups"):
        main_class("topcis")


def test_bootstrap_is_filled_in_unless_given() -> None:
    assert with_bootstrap("topics", ["--list"], "k:1") == ["--bootstrap-server", "k:1", "--list"]
    assert with_bootstrap("topics", ["--bootstrap-server=x:2", "--list"], "k:1") == [
        "--bootstrap-server=x:2",
        "--list",
    ]
    assert with_bootstrap("dump-log", ["--files", "f"], "k:1") == ["--files", "f"]
