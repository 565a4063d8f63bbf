"""Defects that a careless change could bring, each at one place, and the tests that must find it.

`tests/unit/test_defects.py` holds that every text is still where this says, so that the catalogue does not rot.
"""

from __future__ import annotations

from dataclasses import dataclass

CRASHES = "tests/simulation/test_crashes.py"
LEDGER = "tests/conformance/ledger"
TWIN = "tests/property/test_ledger_twin.py"
TOPOLOGY = "tests/topology"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """In `path`, `sound` (there exactly once) becomes `planted`."""

    path: str
    sound: str
    planted: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Defect:
    """`breaks`: what would be lost. `tests`: pytest's arguments; the first that fails has found it."""

    name: str
    breaks: str
    changes: tuple[Change, ...]
    tests: tuple[str, ...]


def _one(path: str, sound: str, planted: str) -> tuple[Change, ...]:
    return (Change(path=path, sound=sound, planted=planted),)


DEFECTS = (
    Defect(
        name="apply-before-commit",
        breaks="I17: the store holds what was never committed",
        changes=(
            Change(
                path="streams/runtime/cycle.py",
                sound="        offsets = [TopicPartition(box.prefix + r.topic, r.partition, r.next) for r in ranges]\n"
                "        ends",
                planted="        offsets = [TopicPartition(box.prefix + r.topic, r.partition, r.next) for r in ranges]\n"
                "        world.stores.apply(effects, {STATE: 0, KEYS: 0}, world.clock.now_ms())\n"
                "        ends",
            ),
        ),
        tests=(CRASHES,),
    ),
    Defect(
        name="caches-before-commit",
        breaks="I1, I16: what the shard believes was never committed",
        changes=_one(
            "streams/runtime/cycle.py",
            "        begun_ms = world.clock.monotonic_ms()\n        offsets",
            "        begun_ms = world.clock.monotonic_ms()\n        self._core.applied()\n        offsets",
        ),
        tests=(CRASHES,),
    ),
    Defect(
        name="unknown-grants-forgotten",
        breaks="I8: what the ledger granted unheard is asked again under another name",
        changes=_one(
            "streams/runtime/cycle.py",
            "        pending.held = {candidate.reservation_id for candidate in unknown}\n",
            "        pending.held = set()\n",
        ),
        tests=("tests/unit/streams/runtime/test_cycle.py", CRASHES),
    ),
    Defect(
        name="kept-after-an-abort",
        breaks="I1, I16: the next batch builds on one that never happened",
        changes=_one(
            "streams/scheduler.py",
            "        self._tables.drop()\n        self._open = None\n\n    # inside",
            "        self._open = None\n\n    # inside",
        ),
        tests=(CRASHES,),
    ),
    Defect(
        name="no-owner-epoch",
        breaks="I9, I18: a zombie shard releases what its successor holds (scripts)",
        changes=_one("streams/ledger/lua/base.lua", "  if owner_epoch < known then return false end\n", ""),
        tests=(LEDGER, TWIN),
    ),
    Defect(
        name="no-ledger-epoch",
        breaks="I7: a ledger that forgot admits before it was told what stands",
        changes=_one(
            "streams/ledger/lua/base.lua",
            "  return reported and tonumber(reported) == owner_epoch and 'ok' or 'recovering'\n",
            "  return 'ok'\n",
        ),
        tests=(LEDGER, TWIN),
    ),
    Defect(
        name="refund-on-unknown",
        breaks="I8: LLM tokens of a call that may have happened are sold again",
        changes=_one(
            "streams/ledger/lua/settle.lua",
            "if unclaimed == 1 and reservation[CLAIMED] == NO then",
            "if unclaimed == 1 or reservation[CLAIMED] == NO then",
        ),
        tests=(LEDGER, TWIN),
    ),
    Defect(
        name="renewal-of-the-dead",
        breaks="I9: a lapsed lease comes back to life while another holds its slot",
        changes=_one("streams/ledger/lua/base.lua", "  if expires <= now then return nil end\n", ""),
        tests=(LEDGER, TWIN),
    ),
    Defect(
        name="keys-forgotten-early",
        breaks="I2: a replay of retained triggers runs them again",
        changes=_one("schemas/limits.py", "    15 * 24 * 3_600_000\n", "    5 * 24 * 3_600_000\n"),
        tests=("tests/unit/schemas",),
    ),
    Defect(
        name="restore-stops-early",
        breaks="I16: a restored shard lacks what was committed last",
        changes=_one(
            "streams/state/restore.py",
            "self._derive(self._store, batch.rows) if",
            "self._derive(self._store, batch.rows[:-1]) if",
        ),
        tests=("tests/conformance/store",),
    ),
    Defect(
        name="reads-from-the-end",
        breaks="I1: what was accepted while nobody read is skipped",
        changes=_one("schemas/kafka_properties.py", 'Because("earliest",', 'Because("latest",'),
        tests=("tests/unit/schemas",),
    ),
    Defect(
        name="dead-letters-encoded-anew",
        breaks="I14: the letter is not what was sent",
        changes=_one(
            "streams/letters.py",
            "        value=record.value,\n",
            '        value=record.value and record.value.decode("utf-8", "replace").encode(),\n',
        ),
        tests=(TOPOLOGY,),
    ),
    Defect(
        name="unfenced-completion",
        breaks="I3, I9: a late outcome of an old dispatch ends the new one",
        changes=_one(
            "streams/completion.py",
            "return row.state in LEASED and fence == (row.generation, row.dispatch_no)",
            "return row.state in LEASED and fence <= (row.generation, row.dispatch_no)",
        ),
        tests=(TOPOLOGY, CRASHES),
    ),
    Defect(
        name="admits-nan",
        breaks="I7: a demand that compares with nothing is always granted",
        changes=_one(
            "streams/ledger/lua/base.lua",
            "local number = string.find(value, '^%d+$') and #value <= 16 and tonumber(value)",
            "local number = tonumber(value)",
        ),
        tests=(LEDGER, "tests/integration/test_ledger_redis.py"),
    ),
    Defect(
        name="commits-before-the-outcome",
        breaks="I1: the runner passes a dispatch whose outcome is not durable",
        changes=_one(
            "consumers/intake.py",
            "        partition.watermark.received(record.offset)\n",
            "        partition.watermark.received(record.offset)\n"
            "        partition.watermark.finished(record.offset)\n",
        ),
        tests=("tests/unit/consumers",),
    ),
    Defect(
        name="a-slow-commit-goes-on",
        breaks="I1, I16: a late end of a transaction ends the next one of the same producer",
        changes=_one(
            "streams/runtime/transactions.py",
            "        if self._clock.monotonic_ms() - begun_ms > CALL_S_MAX * 1000:\n            self._disturbed = True\n",
            "",
        ),
        tests=("tests/unit/streams/runtime/test_transactions.py",),
    ),
    Defect(
        name="the-dead-are-left-alone",
        breaks="survivors' readers stand at a dead process's open transaction until its timeout",
        changes=_one(
            "streams/runtime/liveness.py",
            "        return {name: had - living for name, had in dead.items() if watch.is_ours(name)}\n",
            "        return {name: had & living for name, had in dead.items() if watch.is_ours(name)}\n",
        ),
        tests=("tests/unit/streams/runtime/test_liveness.py",),
    ),
    Defect(
        name="runs-on-without-a-lease",
        breaks="I3, I7: a runner that slept goes on while another has its slot",
        changes=_one(
            "consumers/leases.py",
            "            if now_ms >= lease.fence_at_ms:\n",
            "            if now_ms < 0:\n",
        ),
        tests=("tests/unit/consumers",),
    ),
    Defect(
        name="copies-hold-what-was-not-committed",
        breaks="I17: a standby takes over with rows of an aborted batch",
        changes=_one(
            "schemas/kafka_properties.py", 'Because("read_committed",', 'Because("read_uncommitted",'
        ),
        tests=("tests/unit/schemas",),
    ),
)
