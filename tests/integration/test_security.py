"""Roles on real servers over TLS: each works with exactly what roles.toml gives it, nobody does more, and nobody's password is seen."""

from __future__ import annotations

import json
import socket
import ssl
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import redis
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]
from security import acts, deployment, ledger, rights, trials
from security.broker import Question
from security.certificates import Authority
from security.deployment import ADMINISTRATOR_PASSWORD, FLEET, PREFIX, Deployment
from security.waiting import until

from laxity.infra.local import Endpoints
from laxity.infra.security.roles import KafkaAcl, RedisRules, role_names

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(600),
]  # with its own servers, on a machine that is busy

REQUEST_S = 10.0
LIBRARY_HABITS = {"client|setinfo"}  # redis-py introduces itself, and does without if that is refused


@pytest.fixture(scope="module")
def made(stack: Endpoints, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with deployment.running(tmp_path_factory.mktemp("secure"), stack.registry) as one:
        yield one


@pytest.fixture
def redis_admin(made: Deployment) -> Iterator[Any]:
    with redis.Redis.from_url(made.redis.administrator, decode_responses=True) as client:
        client.acl_log_reset()
        yield client


# What each is for


def test_everything_works_with_exactly_these_rights(made: Deployment, redis_admin: Any) -> None:
    events = acts.Events(made)
    scheduler, runner = made.both_ready()
    sent = acts.publish(made, "pipeline")
    until("all have ended", lambda: events.has_all(sent))
    events.close()
    assert made.laxity("publisher", "submit", "greet", "--payload", '"by command"').returncode == 0
    until("the ui sees it", lambda: acts.look(made, sent))
    made.written += [process.http("/metrics").text for process in (scheduler, runner)]
    made.written += [Path(f"/proc/{p.popen.pid}/cmdline").read_text() for p in (scheduler, runner)]
    for process in (scheduler, runner):
        process.stop()
    restoring = made.scheduler()  # with an empty state directory: only now there are keys to read
    until("the second scheduler is ready", restoring.ready, deployment.READY_S)
    restoring.stop()
    assert acts.operate(made)
    assert made.kafka.denials() == [], "nobody asked for more than the role has"
    assert _unused(made) == [], "nobody may do what nobody does"
    refused = {entry["object"] for entry in redis_admin.acl_log()}
    assert refused <= LIBRARY_HABITS
    assert "hello world" in made.laxity("ui", "tasks", "show", sent.good).stdout


def _unused(made: Deployment) -> list[tuple[str, KafkaAcl]]:
    """Entries whose operation the broker was never asked for. (Who provisions has a test of its own: nothing is altered here.)"""
    asked = made.kafka.allowed()
    working = [made.role(name) for name in role_names() if name != "provisioner"]
    return [
        (r.name, acl) for r in working for acl in r.kafka if not any(_is_use(q, r.user, acl) for q in asked)
    ]


def _is_use(question: Question, user: str, acl: KafkaAcl) -> bool:
    kinds = {"topic": "Topic", "group": "Group", "transactional-id": "TransactionalId"}
    fits = question.name.startswith(acl.name) if acl.prefixed else question.name == acl.name
    asked = (question.user, question.operation.replace("_", "").lower(), question.kind)
    return fits and asked == (user, acl.operation.lower(), kinds[acl.kind])


def test_applying_again_changes_nothing_and_tells_what_is_too_much(made: Deployment) -> None:
    everything = ("security", "acls", "--apply", "--passwords", str(made.passwords), "--json")
    before = made.secrets()
    done = made.laxity(made.administrator(), *everything)
    roles = json.loads(done.stdout)["roles"]
    assert [row["role"] for row in roles] == list(role_names())
    assert all(row["created"] == 0 and row["present"] > 0 and not row["surplus"] for row in roles)
    assert made.secrets() == before
    more = made.laxity(
        made.administrator(), "security", "acls", "--role", "ui", "--user", made.role("publisher").user, "--apply", "--json"
    )  # fmt: skip
    (row,) = json.loads(more.stdout)["roles"]
    assert row["surplus"] == [f"Write topic {PREFIX}triggers."]
    assert "Nobody took it away" in more.stderr
    granted = set(made.role("ui").kafka) - set(made.role("publisher").kafka)
    rights.take_away(made, made.role("publisher").user, granted)


def test_doctor_is_content_with_secure_servers(made: Deployment) -> None:
    (made.folder / "data").mkdir(mode=0o700, exist_ok=True)
    found = {row["name"]: row for row in made.document("processor", "doctor")["findings"]}
    assert found["kafka version"]["detail"] == "4.0 or newer"
    names = ("kafka", "redis", "registry", "kafka connection", "redis connection", "private files")
    assert {name: found[name]["level"] for name in names} == dict.fromkeys(names, "ok")
    assert found["kafka connection"]["detail"] == "SASL_SSL"


# What nobody may


def consumer(made: Deployment, role: str, **more: Any) -> Any:
    base: dict[str, Any] = {
        "bootstrap.servers": made.kafka.roles,
        "group.id": f"{PREFIX}restore",
        "enable.auto.commit": False,
        "log_level": 0,
    }
    return Consumer({**base, **made.properties(role), **more})  # fmt: skip


def code_of_read(made: Deployment, role: str, topic: str) -> str:
    """Name of the error that reading gives."""
    reader = consumer(made, role)
    try:
        about = reader.list_topics(PREFIX + topic, timeout=REQUEST_S).topics[PREFIX + topic]
        if about.error is not None:  # librdkafka itself falls silent here
            return str(about.error.name())
        reader.assign([TopicPartition(PREFIX + topic, 0, 0)])
        for _ in range(50):
            message = reader.poll(1.0)
            if message is None:
                continue
            return "" if message.error() is None else str(message.error().name())
        raise AssertionError("no answer")
    finally:
        reader.close()


def code_of_write(made: Deployment, role: str, topic: str) -> str:
    """Name of the error that writing gives; empty: it was written."""
    base: dict[str, Any] = {
        "bootstrap.servers": made.kafka.roles,
        "message.timeout.ms": 10_000,
        "log_level": 0,
    }
    producer, told = Producer({**base, **made.properties(role)}), list[Any]()
    producer.produce(PREFIX + topic, b"x", partition=0, on_delivery=lambda error, _: told.append(error))
    producer.flush(20)
    return "" if told[0] is None else str(told[0].name())


READS = [
    *(("publisher", topic) for topic in ("triggers.normal", "dispatch.default", "events.normal", "dlq.normal")),
    *(("agents", topic) for topic in ("triggers.normal", "outcomes", "state", "events.normal", "dlq.normal")),
    *(("processor", topic) for topic in ("dispatch.default", "events.normal", "dlq.normal", "journal")),
    *(("ui", topic) for topic in ("triggers.normal", "outcomes", "dispatch.default", "dlq.normal", "state")),
    *(("provisioner", topic) for topic in ("triggers.normal", "events.normal", "dlq.normal")),
]  # fmt: skip
WRITES = [
    *(("publisher", topic) for topic in ("dispatch.default", "outcomes", "control", "events.normal", "contracts")),
    *(("agents", topic) for topic in ("triggers.normal", "dispatch.default", "control", "events.normal", "state")),
    *(("processor", topic) for topic in ("triggers.normal", "outcomes", "control", "contracts")),
    *(("ui", topic) for topic in ("triggers.normal", "control", "events.normal")),
    *(("operator", topic) for topic in ("outcomes", "dispatch.default", "events.normal", "state", "contracts")),
    *(("provisioner", topic) for topic in ("triggers.normal", "control", "state")),
]  # fmt: skip


@pytest.mark.parametrize("role", role_names())
def test_a_role_reads_and_writes_nothing_else(role: str, made: Deployment) -> None:
    read = {topic: code_of_read(made, role, topic) for name, topic in READS if name == role}
    written = {topic: code_of_write(made, role, topic) for name, topic in WRITES if name == role}
    assert set((read | written).values()) == {"TOPIC_AUTHORIZATION_FAILED"}, read | written


def test_groups_transactions_and_topics_of_others_are_refused(made: Deployment) -> None:
    member = consumer(made, "agents", **{"group.id": f"{PREFIX}scheduler"})
    member.subscribe([f"{PREFIX}dispatch.{FLEET}"])
    message = until("an answer", lambda: member.poll(1.0), 30)
    assert message.error().name() == "GROUP_AUTHORIZATION_FAILED"
    member.close()
    base: dict[str, Any] = {"bootstrap.servers": made.kafka.roles, "log_level": 0}
    for role, name in (("agents", f"{PREFIX}scheduler.0"), ("processor", "other.scheduler.0")):
        producer = Producer({**base, **made.properties(role), "transactional.id": name})
        with pytest.raises(KafkaException) as raised:
            producer.init_transactions(20)
        assert raised.value.args[0].name() == "TRANSACTIONAL_ID_AUTHORIZATION_FAILED"
    admin = AdminClient({**base, **made.properties("provisioner")})
    for refused in (
        admin.create_topics([NewTopic("other.topic", 1, 1)]),
        admin.delete_topics([f"{PREFIX}state"]),
    ):
        with pytest.raises(KafkaException) as raised:
            next(iter(refused.values())).result(REQUEST_S)
        assert raised.value.args[0].name() == "TOPIC_AUTHORIZATION_FAILED"


FORBIDDEN = [
    ("FLUSHALL",), ("FLUSHDB",), ("KEYS", "*"), ("SCAN", "0"), ("CONFIG", "GET", "*"), ("CONFIG", "SET", "requirepass", ""),
    ("ACL", "LIST"), ("ACL", "SETUSER", "x"), ("CLIENT", "LIST"), ("SHUTDOWN",), ("MONITOR",), ("BGSAVE",),
    ("REPLICAOF", "NO", "ONE"), ("SCRIPT", "FLUSH"), ("EVAL", "return 1", "0"), ("GET", "foreign"), ("SET", "foreign", "x"),
    ("HGET", "foreign", "x"), ("HSET", "other.{ledger}:used", "a", "1"), ("PUBLISH", "foreign", "x"), ("DEL", f"{PREFIX}{{ledger}}:used"),
]  # fmt: skip


@pytest.mark.parametrize("role", ["processor", "agents"])
def test_redis_refuses_everything_else(role: str, made: Deployment, redis_admin: Any) -> None:
    redis_admin.hset("foreign-hash", "x", "1")
    client: Any = redis.Redis.from_url(made.redis.url(made.role(role).user, made.password(role)))
    acts_of_agents = [
        ("HSET", f"{PREFIX}{{ledger}}:owners", "0", "99"), ("ZADD", f"{PREFIX}{{ledger}}:held", "0", "x"),
        ("ZREM", f"{PREFIX}{{ledger}}:reaped", "x"), ("ZADD", f"{PREFIX}{{ledger}}:tombstones", "0", "x"),
        ("HSET", f"{PREFIX}scheduler.live", "x", "1"), ("HGETALL", f"{PREFIX}scheduler.live"), ("SUBSCRIBE", f"{PREFIX}woken"),
    ]  # fmt: skip
    with client:
        for words in FORBIDDEN + (acts_of_agents if role == "agents" else []):
            with pytest.raises(redis.exceptions.NoPermissionError):
                client.execute_command(*words)
        for text in (
            "flushall",
            "keys', '*",
            "config', 'get', '*",
            "hget', 'foreign-hash', 'x",
            "get', 'foreign",
        ):
            sha = client.script_load(f"return redis.call('{text}')")
            with pytest.raises(
                redis.exceptions.ResponseError, match=r"(?i)permission|ACL failure|not allowed from script"
            ):
                client.evalsha(sha, 0)
    redis_admin.delete("foreign-hash")


def test_who_is_nobody_gets_nowhere(made: Deployment, tmp_path: Path) -> None:
    foreign = Authority(tmp_path / "foreign", "another authority")
    stranger = foreign.issue("administrator")
    good = made.properties("publisher")
    for properties in (
        good | {"sasl.password": "wrong"},
        good | {"sasl.username": f"{PREFIX}nobody"},
        good | {"security.protocol": "PLAINTEXT"},
        good | {"security.protocol": "SASL_PLAINTEXT"},
        good | {"ssl.ca.location": str(foreign.ca)},
    ):
        assert not _gets_in(made.kafka.roles, properties)
    assert _gets_in(made.kafka.roles, good)
    certified = {"ssl.certificate.location": str(stranger.certificate), "ssl.key.location": str(stranger.key)}
    without = {"security.protocol": "SSL", "ssl.ca.location": str(made.kafka.ca)}
    for properties in (without, without | certified):
        assert not _gets_in(made.kafka.trusted, properties)
    assert _gets_in(made.kafka.trusted, dict(made.kafka.administrator))


def _gets_in(bootstrap: str, properties: dict[str, str]) -> bool:
    """By what the client is told first: metadata, or an error."""
    errors: list[Any] = []
    base: dict[str, Any] = {"bootstrap.servers": bootstrap, "log_level": 0, "error_cb": errors.append}
    admin = AdminClient(base | properties)

    def told() -> str:
        with suppress(KafkaException):
            return "in" if admin.list_topics(timeout=0.5).brokers else ""
        admin.poll(0)
        return "out" if errors else ""

    return until("an answer", told, 20) == "in"


def test_redis_lets_in_nobody_without_certificate_and_password(made: Deployment, tmp_path: Path) -> None:
    user, password = made.role("processor").user, made.password("processor")
    urls = (
        made.redis.url(user, "wrong"), made.redis.url(), made.redis.url(made.role("ui").user, made.password("ui")),
        made.redis.url("default", "wrong"), made.redis.url(user, password, certificate=False),
        made.redis.url(user, password).replace(str(made.redis.ca), str(Authority(tmp_path, "another").ca)),
        made.redis.url(user, password).replace("rediss://", "redis://"),
    )  # fmt: skip
    for url in urls:
        with (
            redis.Redis.from_url(
                url.split("?")[0] if url.startswith("redis://") else url, socket_timeout=3
            ) as client,
            pytest.raises((redis.RedisError, OSError)),
        ):
            client.info("server")
    with redis.Redis.from_url(made.redis.url(user, password), socket_timeout=3) as client:
        assert client.info("server")
    with socket.create_connection(_place(made), 3) as plain, pytest.raises(ssl.SSLCertVerificationError):
        ssl.create_default_context().wrap_socket(plain, server_hostname="127.0.0.1")


def _place(made: Deployment) -> tuple[str, int]:
    host, _, port = made.redis.host.partition(":")
    return host, int(port)


# Redis, entry by entry


@pytest.mark.parametrize("role", [pytest.param("processor", marks=pytest.mark.slow), "agents"])
def test_each_entry_of_a_redis_user_is_needed(role: str, made: Deployment, redis_admin: Any) -> None:
    found = made.role(role)
    assert found.redis is not None
    user, act = f"{PREFIX}trial", ledger.ACTS[role]

    def works(rules: RedisRules) -> str:
        redis_admin.delete(*redis_admin.keys(f"{PREFIX}{{ledger}}:*") or ["none"])
        redis_admin.script_flush()
        redis_admin.execute_command("ACL", "SETUSER", user, "reset", *rules.words(), ">trial-password")
        return act(made.redis.url(user, "trial-password"), redis_admin)

    assert works(found.redis) == "", "with all of them it works"
    needless = [entry for entry, rules in _each_removed(found.redis) if not works(rules)]
    assert needless == []
    redis_admin.acl_deluser(user)


def _each_removed(rules: RedisRules) -> Iterator[tuple[str, RedisRules]]:
    def without(items: Sequence[str], item: str) -> list[str]:
        return [other for other in items if other != item]

    for key in rules.keys:
        yield (
            f"~{key}",
            RedisRules(keys=without(rules.keys, key), channels=rules.channels, commands=rules.commands),
        )
    for channel in rules.channels:
        yield f"&{channel}", RedisRules(keys=rules.keys, channels=[], commands=rules.commands)
    for command in rules.commands:
        yield (
            f"+{command}",
            RedisRules(keys=rules.keys, channels=rules.channels, commands=without(rules.commands, command)),
        )


# Kafka, entry by entry


@pytest.mark.slow
@pytest.mark.timeout(3_000)
@pytest.mark.parametrize("role", role_names())
def test_each_entry_of_a_role_in_kafka_is_needed(role: str, made: Deployment) -> None:
    """Taken away alone it makes the broker refuse something and the role fail; with all of them it works."""
    act = trials.ACTS[role](made)
    with act.running():
        assert act.works("all"), "with all of them it works"
        needless = []
        for number, acl in enumerate(made.role(role).kafka):
            with act.without(acl):
                if act.works(f"{role}-{number}"):
                    needless.append(acl)
    assert needless == []


# What is seen


def test_no_secret_is_seen_anywhere(made: Deployment) -> None:
    """After all of the above, and after everything that goes wrong with a secret in hand."""
    password, wrong = made.password("processor"), {"LAXITY_KAFKA__SASL__PASSWORD": "wrong-canary-Kj29"}
    in_url = {"LAXITY_REDIS_URL": f"rediss://u:{ADMINISTRATOR_PASSWORD}/x@127.0.0.1:1"}
    trouble: list[tuple[dict[str, str], tuple[str, ...]]] = [
        (wrong, ("tail", "events.normal", "--limit", "1")),
        (in_url, ("topics", "plan")),
        ({"LAXITY_REDIS_URL": made.redis.administrator.replace("rediss", "redi")}, ("topics", "plan")),
        ({"LAXITY_KAFKA__SSL__KEY__PEM": password}, ("topics", "plan")),
        ({"LAXITY_KAFKA__SASL__MECHANISM": password}, ("topics", "plan")),
        ({"LAXITY_REGISTRY_URL": made.registry.replace("http://", "http://x").replace("/apis", "1/apis")}, ("topics", "plan")),
        ({"LAXITY_REDIS_PASSWORD_FILE": "", "LAXITY_REDIS_URL": made.redis.administrator}, ("doctor", "--json")),
        ({"LAXITY_REDIS_URL": made.redis.url(made.role("processor").user, password + "x")}, ("doctor",)),
        ({"LAXITY_PREFIX": password + "!"}, ("topics", "ls")),
        ({"LAXITY_KAFKA": f"{password}:1"}, ("tail", "events.normal")),
        ({}, ("status", "--json")),
        ({}, ("security", "acls", "--json")),
    ]  # fmt: skip
    with ThreadPoolExecutor(4) as several:
        list(several.map(lambda one: made.laxity("processor", *one[1], more=one[0]), trouble))
    noisy = (
        made.scheduler({"LAXITY_KAFKA__DEBUG": "all"}),
        made.runner({"LAXITY_KAFKA__DEBUG": "all"}),
        made.runner(wrong),
    )
    for process in noisy[:2]:
        until(f"{process.log.name} is ready", process.ready)
    until("the runner is refused", lambda: "uthentication" in noisy[2].log.read_text())
    for process in noisy:
        process.stop()
    secrets = [*made.secrets(), wrong["LAXITY_KAFKA__SASL__PASSWORD"]]
    seen = {str(n): text for n, text in enumerate(made.written)} | {
        str(p.log): p.log.read_text() for p in made.processes
    }
    assert len(seen) > 20
    leaks = [(where, secret) for where, text in seen.items() for secret in secrets if secret in text]
    assert leaks == []
    assert any("***" in text for text in seen.values()), "there was something to mask"
