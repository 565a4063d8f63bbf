"""Histories of the real core, replayed from journal and inputs: the same effects, and a difference where there is one."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count

import builders
import pytest
from simulation.world import SHARDS
from simulation.world import Deployment as Simulated

from laxity.infra.inspect.errors import InspectError
from laxity.infra.inspect.replay import Deployment, ReadRange, Replayed, replay
from laxity.schemas.config import Config
from laxity.schemas.records import Command, Dispatch, InputRange, Journal, Original, Trigger
from laxity.schemas.serde import Codec
from laxity.streams.effects import Record
from laxity.streams.simulator.host import ShardHost, World
from laxity.streams.simulator.log import Log
from laxity.streams.state import index, keys
from laxity.streams.testing import TopologyTestDriver

CODEC = Codec.local()
SEEDS = range(24)
STEPS = 200


def journal(log: Log, shard: int = 0) -> list[Journal]:
    return [CODEC.decode(Journal, record.value) for record in log.read("journal", shard, 0)]


def reader(log: Log, change: Callable[[Record], Record | None] = lambda record: record) -> ReadRange:
    def read(moved: InputRange) -> Sequence[Record]:
        found = log.read(moved.topic, moved.partition, moved.first)
        kept = (change(record) for record in found if record.offset < moved.next)
        return [record for record in kept if record is not None]

    return read


def place(config: Config, shards: int = 1) -> Deployment:
    return Deployment(shards=shards, configs=[config], codec=CODEC, prefix="laxity.")


def redone(driver: TopologyTestDriver, shard: int = 0) -> Replayed:
    shards = len(driver.shards)
    return replay(shard, journal(driver.log, shard), reader(driver.log), place(driver.config, shards))


def fails_twice() -> Callable[[Dispatch], tuple[str, str, bool]]:
    calls = count()
    return lambda dispatch: (
        ("succeeded", "", False) if dispatch.key != "flaky" or next(calls) >= 2 else ("failed", "boom", True)
    )


@pytest.fixture
def driver() -> TopologyTestDriver:
    """A bit of everything: duplicates, conflicts, poison, delays, keyed slots, retries, an expiry, a cancel, a redrive."""
    d: TopologyTestDriver = builders.driver(verdict=fails_twice(), slots=2)
    now_ms = d.clock.now_ms()
    for key in ("one", "one", "flaky"):
        d.pipe("normal", Trigger(type="work", key=key, payload=b"{}"))
    d.pipe("high", Trigger(type="work", key="one", payload=b"[]"))
    d.pipe("low", b"\x00junk", key=b"k")
    for n in range(5):
        d.pipe("critical", Trigger(type="work", key=f"keyed-{n}", demands={"account:acme": 1, "llm": 500}))
    d.pipe("background", Trigger(type="work", key="later", not_before_ms=now_ms + 5_000))
    d.pipe(
        "normal",
        Trigger(type="work", key="hasty", firm=True, deadline_ms=now_ms + 10, not_before_ms=now_ms + 5),
    )
    d.work()
    d.send("control", Command(kind="cancel", command_id="c1", task_id=builders.task_id("later")), key=b"c1")
    d.send("control", Command(kind="cancel", command_id="c2", task_id="nobody"), key=b"c2")
    for _ in range(12):
        d.advance(1_000)
        d.work()
    return d


def test_the_history_holds_what_it_is_meant_to(driver: TopologyTestDriver) -> None:
    told = {event.kind for event in driver.events()} | {event.state for event in driver.events()}
    assert {"duplicate", "conflict", "rejected", "refused_command"} <= told
    assert {"SUCCEEDED", "EXPIRED", "CANCELLED", "DELAYED"} <= told
    assert any(grant.granted.get("llm") for entry in journal(driver.log) for grant in entry.grants)
    assert any(entry.refusals for entry in journal(driver.log))


def test_a_history_replays_to_the_same_effects(driver: TopologyTestDriver) -> None:
    done = redone(driver)
    assert done.difference is None
    assert done.batches == len(journal(driver.log)) > 20
    assert done.takeovers == 1
    assert done.records == sum(moved.count for entry in journal(driver.log) for moved in entry.inputs) > 20
    assert done.document()["same"] is True


def test_a_redriven_task_replays() -> None:
    driver = builders.driver(verdict=lambda _: ("failed", "boom", False))
    sent = driver.pipe("normal", builders.trigger("dead"))
    driver.work()
    original = Original(
        topic="laxity.triggers.normal", partition=0, offset=sent.offset, timestamp_ms=sent.timestamp_ms, key=sent.key, value=sent.value
    )  # fmt: skip
    command = Command(
        kind="redrive", command_id="r", task_id=builders.task_id("dead"), generation=1, original=original
    )
    driver.send("control", command, key=b"r")
    driver.work()
    assert max(event.generation for event in driver.events()) == 1
    assert redone(driver).difference is None


@pytest.mark.parametrize("seed", SEEDS)
def test_histories_with_crashes_aborts_and_lost_disks_replay(seed: int) -> None:
    world = Simulated(seed)
    for _ in range(STEPS):
        world.step()
    world.heal()
    for shard in range(SHARDS):
        entries = journal(world.log, shard)
        done = replay(shard, entries, reader(world.log), place(world.config, SHARDS))
        assert done.difference is None, f"seed {seed}, shard {shard}: {done.difference}"
        assert done.batches == len(entries)


def test_a_changed_input_shows_at_its_batch(driver: TopologyTestDriver) -> None:
    def change(record: Record) -> Record:
        if record.topic != "triggers.normal" or record.offset != 0:
            return record
        return replace(record, value=CODEC.encode(Trigger(type="work", key="one", payload=b"{ }")))

    done = replay(0, journal(driver.log), reader(driver.log, change), place(driver.config))
    entries = journal(driver.log)
    (first,) = [
        e.batch for e in entries for moved in e.inputs if (moved.topic, moved.first) == ("triggers.normal", 0)
    ]
    assert done.difference is not None
    assert done.difference.batch == first == done.batches + 1
    assert done.difference.expected == entries[first - 1].effects_hash.hex() != done.difference.found
    assert done.difference.wrote["table:task"] == 1


def test_a_changed_time_shows(driver: TopologyTestDriver) -> None:
    entries = [replace(e, now_ms=e.now_ms + 1) if e.batch == 4 else e for e in journal(driver.log)]
    done = replay(0, entries, reader(driver.log), place(driver.config))
    assert done.difference is not None
    assert done.difference.batch == 4


def test_a_grant_that_nobody_asked_for_stops_the_core(driver: TopologyTestDriver) -> None:
    entries = journal(driver.log)
    at = next(n for n, entry in enumerate(entries) if entry.grants)
    stranger = replace(entries[at].grants[0], reservation_id="stranger:0:1")
    entries[at] = replace(entries[at], grants=[stranger])
    done = replay(0, entries, reader(driver.log), place(driver.config))
    assert done.difference is not None
    assert "stranger:0:1" in done.difference.problem
    assert not done.difference.found


def test_topics_made_anew_show(driver: TopologyTestDriver) -> None:
    elsewhere = replace(place(driver.config), topic_ids={"triggers.normal": "another"})
    done = replay(0, journal(driver.log), reader(driver.log), elsewhere)
    assert done.difference is not None


def test_missing_records_are_named(driver: TopologyTestDriver) -> None:
    def lose(record: Record) -> Record | None:
        return None if record.topic == "triggers.normal" and record.offset == 1 else record

    with pytest.raises(
        InspectError, match=r"triggers\.normal/0 from 1 to 2 has 0 records, the journal counted 1"
    ):
        replay(0, journal(driver.log), reader(driver.log, lose), place(driver.config))


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        (slice(3, None), "batches 1 to 3 are missing (the topic keeps 7 days"),
        (slice(0, None, 2), "batches 2 to 2 are missing (the journal has a hole)"),
    ],
)
def test_a_journal_with_holes_is_refused(driver: TopologyTestDriver, chosen: slice, said: str) -> None:
    with pytest.raises(InspectError) as refused:
        replay(0, journal(driver.log)[chosen], reader(driver.log), place(driver.config))
    assert said in str(refused.value)


def test_another_configuration_is_refused(driver: TopologyTestDriver) -> None:
    other = builders.config(builders.CONFIG + "\n[tiers.low]\ndeadline_ms = 1\n")
    with pytest.raises(InspectError, match="was decided under configuration") as refused:
        replay(0, journal(driver.log), reader(driver.log), place(other))
    assert "--config" in refused.value.next_step


def test_each_owner_is_replayed_under_its_own_configuration(driver: TopologyTestDriver) -> None:
    before = driver.config
    later = builders.config(builders.CONFIG + "\n[tiers.low]\ndeadline_ms = 7_000\n")
    world = World(log=driver.log, clock=driver.clock, config=later, codec=CODEC, shards=1)
    driver.shards[0] = ShardHost(world, 0, driver.disks[0], driver.ledger)
    driver.shards[0].start()
    driver.pipe("low", Trigger(type="work", key="after", payload=b"{}"))
    driver.work()
    entries = journal(driver.log)
    changed = next(entry.batch for entry in entries if entry.config_id == later.fingerprint())
    for configs in ([before, later], [later, before]):
        done = replay(0, entries, reader(driver.log), replace(place(before), configs=configs))
        assert done.difference is None
        assert done.takeovers == 2
        assert done.batches == len(entries) > changed > 1
    with pytest.raises(InspectError, match=f"batch {changed} of shard 0 was decided under configuration"):
        replay(0, entries, reader(driver.log), place(before))


def test_another_shard_is_refused(driver: TopologyTestDriver) -> None:
    with pytest.raises(InspectError, match="has a batch of shard 0"):
        replay(1, journal(driver.log), reader(driver.log), place(driver.config, 2))


def test_an_empty_journal_is_no_difference() -> None:
    done = replay(0, [], lambda _: [], place(builders.config()))
    assert (done.batches, done.difference) == (0, None)


def test_a_warm_start_forgets_timers_of_keyed_slots_as_a_cold_one_does() -> None:
    """They survived a warm start alone, so that the next owner's decisions hung on whether it had lost its disk."""
    bench = builders.Bench()
    bench.step(
        bench.trigger("a", demands={"account:acme": 1}),
        bench.trigger("later", not_before_ms=bench.now_ms + 3_000),
        say=builders.refuse("account:acme", "key_busy"),
    )

    def kinds() -> list[bytes]:
        return [key[9:10] for key, _ in bench.store.scan(keys.TIMER, keys.TIMER + keys.MAX_KEY)]

    assert sorted(kinds()) == [index.RELEASE, index.KEYED]
    bench.core.load()
    assert kinds() == [index.RELEASE]
