"""The catalogue holds what architecture, consumers and brokers rely on."""

from __future__ import annotations

import re

import pytest

from laxity.schemas import limits
from laxity.schemas.records import Trigger
from laxity.schemas.topics import TIERS, Names, catalogue, written_records

TOPICS = {topic.name: topic for topic in catalogue({"default": 16, "gpu": 3}, shards=4)}
DAY_MS = 86_400_000


def test_the_names() -> None:
    per_tier = {f"{kind}.{tier}" for kind in ("triggers", "events", "dlq") for tier in TIERS}
    rest = {
        "outcomes",
        "control",
        "links",
        "dispatch.default",
        "dispatch.gpu",
        "usage",
        "journal",
        "state",
        "keys",
    }
    assert set(TOPICS) == per_tier | rest | {"schedules", "contracts", "dlq.internal"}
    assert len(TOPICS) == len(catalogue({"default": 16, "gpu": 3}, shards=4)), "no name twice"


def test_whatever_a_shard_owns_has_as_many_partitions_as_shards() -> None:
    others = {"dispatch.default": 16, "dispatch.gpu": 3, "schedules": 1, "contracts": 1}
    for name, topic in TOPICS.items():
        assert topic.partitions == others.get(name, 4), name


def test_how_long_things_are_kept() -> None:
    days = {name: t.retention_ms // DAY_MS for name, t in TOPICS.items() if t.cleanup == "delete"}
    assert {name for name, t in TOPICS.items() if t.cleanup == "compact"} == {
        "state",
        "schedules",
        "contracts",
    }
    assert {d for n, d in days.items() if n.startswith(("dlq", "events"))} == {30}
    assert (days["usage"], days["keys"], days["triggers.low"]) == (90, 15, 7)
    assert TOPICS["triggers.low"].retention_ms >= limits.DEADLINE_AHEAD_MS_MAX, (
        "no trigger vanishes before its deadline"
    )
    assert limits.KEYS_KEPT_MS == TOPICS["keys"].retention_ms > 2 * limits.DEADLINE_AHEAD_MS_MAX


@pytest.mark.parametrize("name", TOPICS)
def test_settings_that_everything_rests_on(name: str) -> None:
    for replicas, least in ((1, "1"), (2, "1"), (3, "2")):
        settings = TOPICS[name].settings(replicas)
        assert settings["min.insync.replicas"] == least, (
            "one broker may be away, and acknowledged means on two"
        )
        assert settings["message.timestamp.type"] == "LogAppendTime"
        assert settings["unclean.leader.election.enable"] == "false"
        assert settings["retention.bytes"] == "-1", "only time ends accepted work"
        assert int(settings["max.message.bytes"]) <= limits.RECORD_BYTES_MAX
        if TOPICS[name].cleanup == "compact":
            assert int(settings["delete.retention.ms"]) >= 7 * DAY_MS
        assert all(isinstance(value, str) for value in settings.values())


def test_sizes_leave_room_for_what_wraps_them() -> None:
    size = {name: topic.bytes_max for name, topic in TOPICS.items()}
    assert size["triggers.low"] == limits.MIB
    for wrapper in ("links", "control", "state", "dlq.low"):
        assert size[wrapper] >= size["triggers.low"] + limits.MIB
    assert size["dispatch.default"] >= limits.TRIGGER_BYTES_MAX + limits.CHECKPOINT_BYTES_MAX
    assert size["outcomes"] >= size["dispatch.default"] + limits.MIB
    assert size["dlq.internal"] >= size["outcomes"] + limits.MIB
    assert size["outcomes"] >= limits.RESULT_BYTES_MAX + limits.CHECKPOINT_BYTES_MAX


def test_nobody_can_store_a_bomb_where_our_processes_read() -> None:
    inputs = {"outcomes", "control", "links", "schedules", "contracts"}
    inputs |= {name for name in TOPICS if name.startswith(("triggers.", "dispatch."))}
    written_out = {n for n, t in TOPICS.items() if t.settings(1)["compression.type"] == "uncompressed"}
    assert written_out == inputs


def test_subjects() -> None:
    assert TOPICS["triggers.low"].subject == "triggers.low-value"
    assert TOPICS["dlq.low"].subject is None
    assert Trigger in written_records()
    assert {
        t.compatibility for n, t in TOPICS.items() if n.startswith(("triggers", "events")) or n == "usage"
    } == {"FULL_TRANSITIVE"}


def test_the_longest_names_are_legal() -> None:
    names = Names("p" * 128)
    for topic in catalogue({"f" * limits.FLEET_CHARS_MAX: 1}):
        full = names.full(topic.name)
        assert len(full) <= limits.TOPIC_CHARS_MAX
        assert re.fullmatch(r"[a-zA-Z0-9._-]+", full)


def test_prefixes() -> None:
    assert Names().full("state") == "laxity.state"
    assert Names("").full("state") == "state"
    assert Names("a.").short("a.dlq.low") == "dlq.low"
    with pytest.raises(ValueError, match="does not begin with 'laxity"):
        Names().short("other.state")
    for bad in ("a b", "^", "a/", "ü", "p" * 129):
        with pytest.raises(ValueError, match="prefix"):
            Names(bad)


def test_numbers_of_shards_have_a_limit() -> None:
    for shards in (0, 65):
        with pytest.raises(AssertionError):
            catalogue({}, shards)
