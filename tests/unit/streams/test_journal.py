"""What the journal keeps of an answer is all that a replay needs, and the hash covers every effect."""

from __future__ import annotations

from dataclasses import replace

from builders import Bench, answer, outputs
from hypothesis import given, settings
from hypothesis import strategies as st

from laxity.schemas.records import Journal, ShardRow
from laxity.schemas.serde import decode_row, encode_row
from laxity.streams import journal
from laxity.streams.effects import BatchInput, Change, Output
from laxity.streams.ledger.protocol import Grant, Refusal

TEXT = st.text(max_size=8)
NUMBER = st.integers(0, 2**53)
GRANT = st.builds(
    Grant,
    reservation_id=TEXT,
    runner=TEXT,
    partition=st.integers(0, 99),
    granted=st.dictionaries(TEXT, NUMBER, max_size=3),
    granted_ms=NUMBER,
)
REFUSAL = st.builds(Refusal, reservation_id=TEXT, reason=TEXT, resource=TEXT, retry_ms=NUMBER, rival=TEXT)
PLACE = Bench().core._place
NOTHING = BatchInput(records=(), ranges=(), now_ms=4)
ROW = ShardRow(
    state_version=1, owner_epoch=2, batch=3, now_ms=4, seq=5, usage_seq=6, ledger_epoch="", waiting=[0] * 5
)


@settings(deadline=None)
@given(
    st.lists(GRANT, max_size=4),
    st.lists(REFUSAL, max_size=4),
    st.dictionaries(TEXT, st.sampled_from(["revoked", "claimed", "gone"]), max_size=4),
    st.lists(TEXT, max_size=4),
    NUMBER,
)
def test_an_answer_comes_back_as_it_was(
    grants: list[Grant], refusals: list[Refusal], said: dict[str, str], settled: list[str], number: int
) -> None:
    whole = answer(grants=grants, refusals=refusals, verdicts=said, settled=tuple(settled), sequence=number)
    entry = journal.entry(PLACE, ROW, config_id="c", batch=NOTHING, answer=whole)
    again = journal.answer_of(decode_row(Journal, encode_row(entry)))
    assert again is not None
    assert list(again.verdicts.items()) == list(said.items()), "verdicts are carried out in their order"
    assert replace(again, verdicts={}) == replace(whole, verdicts={})


def test_silence_is_recorded_as_silence() -> None:
    entry = journal.entry(PLACE, ROW, config_id="c", batch=NOTHING)
    assert journal.answer_of(entry) is None
    assert entry.outcomes_end == -1


def test_the_hash_tells_every_part_of_every_effect() -> None:
    change = Change(table="task", key=b"k", value=b"v")
    output = Output(topic="t", partition=1, key=b"k", value=b"v", schema=None, headers=(("h", b"x"),))
    cases: list[tuple[list[Change], list[Change], list[Output]]] = [
        ([], [], []),
        ([change], [], []),
        ([replace(change, value=None)], [], []),
        ([replace(change, value=b"")], [], []),
        ([replace(change, key=b"kv", value=b"")], [], []),
        ([replace(change, table="taskk", key=b"")], [], []),
        ([change, change], [], []),
        ([], [], [output]),
        ([], [], [replace(output, partition=None)]),
        ([], [], [replace(output, partition=2)]),
        ([], [], [replace(output, key=None)]),
        ([], [], [replace(output, value=None)]),
        ([], [], [replace(output, headers=())]),
        ([], [], [replace(output, headers=(("h", None),))]),
        ([], [], [replace(output, headers=(("h", b"x"), ("h", b"x")))]),
    ]
    seen = {journal.effects_hash(*case) for case in cases}
    assert len(seen) == 15


def test_the_journal_is_the_last_record_and_hashes_all_before_it() -> None:
    bench = Bench()
    effects = bench.step(bench.trigger(), bench.trigger("other", deadline_ms=-1))
    entry = outputs(effects, "journal", Journal)[0]
    assert effects.outputs[-1].topic == "journal"
    assert entry.effects_hash == journal.effects_hash(effects.state, effects.keys, effects.outputs[:-1])
    assert [(r.topic, r.first, r.next) for r in entry.inputs] == [("triggers.normal", 0, 2)]
