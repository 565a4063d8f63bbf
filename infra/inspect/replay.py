"""A shard's decisions once more: its journal and its inputs through the same core, batch by batch, from an empty shard.

The journal holds what each batch depended on and the hash of all its effects; equal hashes mean that the shard decided, byte for byte,
what this release decides from the same facts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from laxity.infra.inspect.errors import InspectError
from laxity.schemas.config import Config
from laxity.schemas.records import InputRange, Journal
from laxity.schemas.serde import Codec, decode_row
from laxity.streams.effects import BatchInput, Effects, Record
from laxity.streams.errors import SchedulerError
from laxity.streams.journal import answer_of
from laxity.streams.scheduler import Scheduler
from laxity.streams.state import keys
from laxity.streams.state.memory import MemoryStore

ReadRange = Callable[[InputRange], Sequence[Record]]
"""All records of a range, in order of their offsets; fewer than its count if some are gone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """What a core is made of besides its stores. `configs`: any that it may have had. `topic_ids`: by name without prefix."""

    shards: int
    configs: Sequence[Config]
    codec: Codec
    prefix: str
    topic_ids: Mapping[str, str] = field(default_factory=dict)

    def config(self, config_id: str) -> Config | None:
        """The one with this fingerprint."""
        return next((config for config in self.configs if config.fingerprint() == config_id), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """The first batch that came out otherwise. `problem` says how; hashes are hexadecimal, `found` empty if the core stopped."""

    batch: int
    problem: str
    expected: str
    found: str
    wrote: Mapping[str, int]  # records of the replayed batch by topic, rows by `table:name`

    def document(self) -> dict[str, object]:
        """For `--json`."""
        return {
            "batch": self.batch,
            "problem": self.problem,
            "expected": self.expected,
            "found": self.found,
            "wrote": dict(self.wrote),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """How far it went. `difference` None: every batch had the same effects."""

    shard: int
    batches: int
    takeovers: int
    records: int
    now_ms: int
    difference: Difference | None

    def document(self) -> dict[str, object]:
        """For `--json`."""
        return {
            "shard": self.shard,
            "same": self.difference is None,
            "batches": self.batches,
            "takeovers": self.takeovers,
            "records": self.records,
            "now_ms": self.now_ms,
            "difference": None if self.difference is None else self.difference.document(),
        }


def replay(shard: int, entries: Iterable[Journal], read: ReadRange, place: Deployment) -> Replayed:
    """Up to the end of the journal or the first difference. InspectError if the journal or an input is incomplete or of another configuration."""
    core = _Core(shard, place)
    batches = takeovers = records = now_ms = 0
    difference = None
    for entry in entries:
        _check(entry, shard, batches, place)
        inputs = [record for moved in entry.inputs for record in _complete(moved, read)]
        takeovers += core.is_takeover(entry)
        difference = core.step(entry, inputs)
        if difference is not None:
            break
        batches, records, now_ms = batches + 1, records + len(inputs), entry.now_ms
    return Replayed(
        shard=shard,
        batches=batches,
        takeovers=takeovers,
        records=records,
        now_ms=now_ms,
        difference=difference,
    )


def _check(entry: Journal, shard: int, done: int, place: Deployment) -> None:
    if entry.shard != shard:
        raise InspectError(
            f"the journal of shard {shard} has a batch of shard {entry.shard}", "not ours to replay"
        )
    if entry.batch != done + 1:
        missing = f"batches {done + 1} to {entry.batch - 1} are missing"
        why = "the topic keeps 7 days; a replay begins at batch 1" if done == 0 else "the journal has a hole"
        raise InspectError(f"the journal of shard {shard} cannot be replayed: {missing}", why)
    if place.config(entry.config_id) is None:
        known = ", ".join(sorted({config.fingerprint()[:12] for config in place.configs}))
        raise InspectError(
            f"batch {entry.batch} of shard {shard} was decided under configuration {entry.config_id[:12]}, "
            f"here is {known}",
            "decisions follow from it",
            "the same command with --config FILE, once for each that the shard had",
        )


def _complete(moved: InputRange, read: ReadRange) -> Sequence[Record]:
    records = read(moved)
    if len(records) != moved.count:
        where = f"{moved.topic}/{moved.partition} from {moved.first} to {moved.next}"
        raise InspectError(
            f"{where} has {len(records)} records, the journal counted {moved.count}",
            "retention or deletion took them; without them the decisions cannot be made again",
        )
    return records


class _Core:
    """The real core over stores in memory, with the host's order of steps. A takeover makes it anew: its owner may have another configuration."""

    def __init__(self, shard: int, place: Deployment) -> None:
        self._state, self._keys = MemoryStore(), MemoryStore()
        self._shard, self._place = shard, place
        self._config = place.configs[0]
        self._core = self._made(self._config)

    def is_takeover(self, entry: Journal) -> bool:
        """A batch that only raises the owner epoch."""
        return entry.owner_epoch > self._core.owner_epoch

    def step(self, entry: Journal, records: Sequence[Record]) -> Difference | None:
        """Decide and apply; the difference if the effects are not those of the entry."""
        try:
            effects = self._decide(entry, records)
        except (AssertionError, KeyError, SchedulerError) as error:
            return _difference(entry, f"the core stopped: {type(error).__name__}: {error}", None)
        found = journal_of(effects)
        if found.effects_hash != entry.effects_hash:
            return _difference(entry, "other effects", effects)
        self._state.write([*(keys.state_write(change) for change in effects.state), *effects.local])
        self._keys.write([keys.key_write(change) for change in effects.keys])
        self._core.applied()
        return None

    def _decide(self, entry: Journal, records: Sequence[Record]) -> Effects:
        if self.is_takeover(entry):
            self._configure(entry.config_id)
            self._core.load()
            return self._core.take_over(entry.now_ms)
        batch = BatchInput(
            records=records,
            ranges=entry.inputs,
            now_ms=entry.now_ms,
            held=entry.held,
            lapsed=entry.reaped,
            woken=entry.woken,
            skipped=entry.skipped,
        )
        self._core.nominate(batch)
        return self._core.conclude(answer_of(entry), outcomes_end=entry.outcomes_end)

    def _configure(self, config_id: str) -> None:
        config = self._place.config(config_id)
        assert config is not None, "checked for every entry"
        if config != self._config:
            self._config, self._core = config, self._made(config)

    def _made(self, config: Config) -> Scheduler:
        place = self._place
        return Scheduler(
            shard=self._shard,
            shards=place.shards,
            config=config,
            codec=place.codec,
            store=self._state,
            keys=self._keys,
            prefix=place.prefix,
            topic_ids=place.topic_ids,
        )


def journal_of(effects: Effects) -> Journal:
    """The journal's record among a batch's outputs."""
    (output,) = (output for output in effects.outputs if output.topic == "journal")
    assert output.value is not None, "a journal record has a value"
    return decode_row(Journal, output.value)


def _difference(entry: Journal, problem: str, effects: Effects | None) -> Difference:
    found, wrote = "", Counter[str]()
    if effects is not None:
        found = journal_of(effects).effects_hash.hex()
        wrote.update(output.topic for output in effects.outputs)
        wrote.update(f"table:{change.table}" for change in (*effects.state, *effects.keys))
    return Difference(
        batch=entry.batch,
        problem=problem,
        expected=entry.effects_hash.hex(),
        found=found,
        wrote=dict(sorted(wrote.items())),
    )
