"""The same inputs, the same effects: a shard's journal and inputs give the same bytes on an empty store."""

from __future__ import annotations

from random import Random  # noqa: TID251 - the seed is the argument
from typing import Any

import pytest
from builders import CODEC, CONFIG, Bench, config, driver, journal, silent, trigger

from laxity.schemas.records import Command, Dispatch, Journal
from laxity.schemas.topics import TIERS
from laxity.streams import journal as journals
from laxity.streams.effects import BatchInput, Effects
from laxity.streams.scheduler import Scheduler
from laxity.streams.simulator.host import ShardHost
from laxity.streams.state import keys
from laxity.streams.state.memory import MemoryStore
from laxity.streams.testing import TopologyTestDriver


def busy(seed: int) -> TopologyTestDriver:
    """A history with all that a journal has to answer for: refusals, silence, aborts, restarts, lapses, bounces, cancels."""
    random = Random(seed)

    def verdict(dispatch: Dispatch) -> tuple[str, str, bool]:
        pick = random.random()
        return ("succeeded", "", False) if pick < 0.6 else ("failed", "e", pick < 0.9)

    d = driver(slots=3, verdict=verdict)
    for i in range(60):
        fields: dict[str, Any] = {
            "demands": random.choice([{}, {"browser": 1}, {"account:a": 1}, {"llm": 500}])
        }
        if random.random() < 0.3:
            fields |= {"firm": True, "deadline_ms": d.clock.now_ms() + random.randrange(3_000)}
        d.pipe(random.choice(TIERS), trigger(f"k{random.randrange(50)}", **fields))
        d.ledger.available = random.random() < 0.8
        shard = d.shards[0]
        if random.random() < 0.1:
            shard.abort_next()
        for _ in range(random.randrange(3)):
            d.runners[0].tick()
        if random.random() < 0.05:
            d.send(
                "control", Command(kind="cancel", command_id="c", task_id=next(iter(d.table("task")), "x"))
            )
        if random.random() < 0.05:
            d.shards[0] = ShardHost(d.world, 0, d.disks[0], d.ledger)
            d.shards[0].start()
        d.advance(random.choice([1, 50, 400, 17_000 if i % 20 == 9 else 3]))
    d.ledger.available = True
    for _ in range(30):
        d.work()
        d.advance(1_000)
    assert d.table("task") == {}
    return d


def replay(d: TopologyTestDriver) -> tuple[int, MemoryStore, MemoryStore]:
    """Every batch again from the journal and the inputs; returns how many hashes agreed."""
    store, key_store = MemoryStore(), MemoryStore()
    core: Scheduler | None = None
    epoch = count = 0
    for entry in d.read("journal"):
        if core is None or entry.owner_epoch != epoch:
            core = Scheduler(shard=0, shards=1, config=d.config, codec=CODEC, store=store, keys=key_store)
        effects = again(core, d, entry, took_over=entry.owner_epoch != epoch)
        epoch = entry.owner_epoch
        assert journal(effects).effects_hash == entry.effects_hash, f"batch {entry.batch}"
        store.write([*(keys.state_write(c) for c in effects.state), *effects.local])
        key_store.write([keys.key_write(c) for c in effects.keys])
        core.applied()
        count += 1
    return count, store, key_store


def again(core: Scheduler, d: TopologyTestDriver, entry: Journal, *, took_over: bool) -> Effects:
    if took_over:
        return core.take_over(entry.now_ms)
    records = [
        r
        for span in entry.inputs
        for r in d.log.read(span.topic, span.partition, span.first)
        if r.offset < span.next
    ]
    batch = BatchInput(
        records=records, ranges=entry.inputs, now_ms=entry.now_ms, held=entry.held, lapsed=entry.reaped, woken=entry.woken
    )  # fmt: skip
    core.nominate(batch)
    return core.conclude(journals.answer_of(entry), outcomes_end=entry.outcomes_end)


@pytest.mark.parametrize("seed", [1, 2, 3, 9])
def test_a_journal_answers_everything(seed: int) -> None:
    d = busy(seed)
    entries = d.read("journal")
    count, store, key_store = replay(d)
    assert count == len(entries) > 100
    for what in ("held", "refusals", "grants", "verdicts", "settled", "woken"):
        assert any(getattr(e, what) for e in entries), f"a history without {what} proves little"
    assert any(not e.answered for e in entries)
    assert len({e.owner_epoch for e in entries}) > 2
    for lived, replayed in ((d.disks[0].state, store), (d.disks[0].keys, key_store)):
        rows = [{k: v for k, v in s.scan(b"", b"\xff" * 50) if k[:1] in b"tpshk"} for s in (lived, replayed)]
        assert rows[0] == rows[1]


def test_an_abort_leaves_no_trace_in_what_follows() -> None:
    found = []
    for aborts in (0, 3):
        b = Bench()
        for n in range(6):
            records = [
                b.trigger(f"k{n}-{i}", TIERS[i % 5], demands={"account:a": 1} if i % 2 else {})
                for i in range(9)
            ]
            for _ in range(aborts):
                b.step(*records, commit=False)
            found.append((aborts, b.step(*records)))
    plain = [e for aborts, e in found if not aborts]
    redone = [e for aborts, e in found if aborts]
    assert [e.state for e in plain] == [e.state for e in redone]
    assert [e.outputs for e in plain] == [e.outputs for e in redone]


def test_the_journal_names_configuration_epoch_and_time() -> None:
    b = Bench()
    b.now_ms -= 5_000
    effects = b.step(b.trigger(), skipped=("t:0:9",), woken=("llm",), say=silent)
    entry = journal(effects)
    assert entry.config_id == config(CONFIG).fingerprint()
    assert (entry.owner_epoch, entry.batch, entry.answered) == (1, 2, False)
    assert entry.now_ms == b.now_ms + 5_000, "time never goes back"
    assert (list(entry.skipped), list(entry.woken)) == (["t:0:9"], ["llm"])
