"""Roles as values, commands and Redis rules: without any server."""

from __future__ import annotations

import re
import subprocess
import sys
from fnmatch import fnmatchcase
from importlib.resources import files
from pathlib import Path

import pytest

from laxity.infra.security import kafka_acls, redis_users
from laxity.infra.security.passwords import PasswordError, password_of
from laxity.infra.security.roles import KafkaAcl, role, role_names
from laxity.schemas.topics import Names, catalogue
from laxity.streams.ledger.scripts import channel, keys

SENT = {
    "info",
    "evalsha",
    "script|load",
    "multi",
    "exec",
    "subscribe",
    "ping",
    "hset",
    "hgetall",
    "hdel",
}


def test_placeholders_are_filled_and_users_belong_to_the_deployment() -> None:
    agents = role("agents", prefix="p.", fleets=["a", "b"])
    assert agents.user == "p.agents"
    assert role("agents", prefix="p.", fleets=["a"], user="me").user == "me"
    dispatch = {acl.name for acl in agents.kafka if acl.name.startswith("p.dispatch")}
    assert dispatch == {"p.dispatch.a", "p.dispatch.b"}
    assert KafkaAcl(kind="group", name="p.agents.b", prefixed=False, operation="Read") in agents.kafka
    assert agents.redis is not None
    assert set(agents.redis.keys) == set(keys("p.", "claim"))


def test_a_star_alone_is_kafkas_word_for_all() -> None:
    (acl,) = {a for a in role("operator", prefix="", fleets=[]).kafka if a.kind == "group"}
    assert (acl.name, acl.prefixed) == ("*", False)


@pytest.mark.parametrize("name", role_names())
def test_every_topic_that_is_named_is_in_the_catalogue(name: str) -> None:
    names = [Names("p.").full(topic.name) for topic in catalogue({"f": 1})]
    for acl in role(name, prefix="p.", fleets=["f"]).kafka:
        if acl.kind == "topic":
            assert any(n.startswith(acl.name) if acl.prefixed else n == acl.name for n in names), acl


def test_every_topic_has_a_role_that_writes_and_one_that_reads_it() -> None:
    """But `schedules`, which nobody of ours touches yet."""
    roles = [role(name, prefix="", fleets=["f"]) for name in role_names()]
    for operation in ("Read", "Write"):
        allowed = [a for r in roles if r.name != "operator" for a in r.kafka if a.operation == operation]
        readers = [a for a in role("operator", prefix="p.", fleets=["f"]).kafka if a.operation == operation]
        for topic in catalogue({"f": 1}):
            held = [
                a for a in allowed if topic.name.startswith(a.name) and (a.prefixed or a.name == topic.name)
            ]
            operators = [a for a in readers if f"p.{topic.name}".startswith(a.name)]
            assert held or operators or topic.name == "schedules", (operation, topic.name)


def test_a_scheduler_may_run_every_command_of_every_script_and_no_other() -> None:
    """A new command in a script must get into roles.toml: real servers refuse it otherwise."""
    folder = files("laxity.streams.ledger.lua")
    texts = [f.read_text("utf-8") for f in folder.iterdir() if f.name.endswith(".lua")]
    in_scripts = {word.lower() for text in texts for word in re.findall(r"redis\.call\('(\w+)'", text)}
    assert len(in_scripts) > 10
    processor, agents = (role(name, prefix="p.", fleets=["f"]).redis for name in ("processor", "agents"))
    assert processor is not None
    assert agents is not None
    assert set(processor.commands) == in_scripts | SENT
    assert set(agents.commands) < set(processor.commands)


def test_keys_and_channels_are_those_of_the_ledger() -> None:
    for name in ("processor", "agents"):
        rules = role(name, prefix="p.", fleets=["f"]).redis
        assert rules is not None
        assert all(any(fnmatchcase(key, pattern) for pattern in rules.keys) for key in keys("p.", "claim"))
        assert rules.channels == [channel("p.")]


def test_commands_for_people() -> None:
    publisher = role("publisher", prefix="p.", fleets=[])
    assert kafka_acls.commands(publisher)[0] == (
        "acls --add --allow-principal User:p.publisher --operation Write --topic p.triggers. --resource-pattern-type prefixed"
    )
    assert redis_users.command(publisher) == ""
    line = redis_users.command(role("agents", prefix="p.", fleets=["f"]))
    assert line.startswith("ACL SETUSER p.agents on resetkeys resetchannels -@all '~p.{ledger}:epoch' ")


def test_passwords_are_made_once_and_kept_private(tmp_path: Path) -> None:
    folder = tmp_path / "passwords"
    first = password_of(folder, "a")
    assert len(first) > 40
    assert password_of(folder, "a") == first
    assert password_of(folder, "b") != first
    assert (folder.stat().st_mode & 0o777, (folder / "a").stat().st_mode & 0o777) == (0o700, 0o600)
    (folder / "a").chmod(0o644)
    with pytest.raises(PasswordError, match="chmod"):
        password_of(folder, "a")
    (folder / "b").write_text("\n")
    with pytest.raises(PasswordError, match="empty"):
        password_of(folder, "b")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--role", "king"), "publisher, processor"),
        (("--user", "me"), "--user needs --role"),
        (("--passwords", "x"), "--passwords needs --apply"),
    ],
)
def test_words_that_make_no_sense(words: tuple[str, ...], said: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "laxity.infra.cli", "security", "acls", *words]
    answer = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert answer.returncode == 2
    assert said in answer.stderr
