"""Who counts as dead, on the observer's own clock."""

from laxity.schemas.timing import ManualClock
from laxity.streams.runtime.liveness import (
    DEAD_AFTER_MS,
    LEFT,
    NOBODY,
    BoardUnavailable,
    Liveness,
    Predecessor,
    Watch,
    entry,
    parse,
)

STEP_MS = 300


def watched(watch: Watch, clock: ManualClock, fields: dict[str, str], ms: int) -> None:
    for _ in range(0, ms, STEP_MS):
        clock.advance(STEP_MS)
        watch.read(fields, clock.monotonic_ms())


def test_a_counter_that_stands_still_for_two_seconds_is_death_a_rising_one_is_life() -> None:
    watch, clock = Watch("me"), ManualClock()
    watched(watch, clock, {"a": entry(1, [0, 1])}, DEAD_AFTER_MS)
    assert watch.dead() == {}
    watched(watch, clock, {"a": entry(1, [0, 1])}, 2 * STEP_MS)
    assert watch.dead() == {"a": frozenset({0, 1})}
    watch.read({"a": entry(2, [1])}, clock.monotonic_ms())
    assert watch.dead() == {}
    assert watch.named() == {1}


def test_a_flush_is_no_death_and_a_death_in_a_flush_is_noticed() -> None:
    watch, clock = Watch("me"), ManualClock()
    watched(watch, clock, {"a": entry(1, [0]), "b": entry(1, [1])}, STEP_MS)
    watched(watch, clock, {}, STEP_MS)
    assert watch.dead() == {}
    watched(watch, clock, {"a": entry(2, [0])}, STEP_MS)
    for count in range(3, 13):
        watched(watch, clock, {"a": entry(count, [0])}, STEP_MS)
    assert watch.dead() == {"b": frozenset({1})}


def test_time_without_answers_does_not_count() -> None:
    watch, clock = Watch("me"), ManualClock()
    watched(watch, clock, {"a": entry(1, [0])}, STEP_MS)
    for _ in range(5):
        clock.advance(60_000)
        watch.read({"a": entry(1, [0])}, clock.monotonic_ms())
    assert watch.dead() == {}


def test_only_the_first_survivor_rescues() -> None:
    clock = ManualClock()
    for me, first in (("b", True), ("z", False)):
        watch = Watch(me)
        for count in range(1, 13):
            fields = {"a": entry(1, [0]), "b": entry(count, [1]), "c": entry(count, [2])}
            watched(watch, clock, fields, STEP_MS)
        assert list(watch.dead()) == ["a"]
        assert watch.is_ours("a") is first


def test_a_field_that_is_none_of_ours_never_crashes_and_never_rises() -> None:
    for text in ("", "{}", "[1]", "null", '{"count": "x", "shards": []}', '{"count": 1, "shards": 3}'):
        assert parse(text) == (-1, frozenset())
    assert parse(entry(7, {3, 1})) == (7, frozenset({1, 3}))


BEFORE = Predecessor(process="old", shards=frozenset({0}))


def test_ones_predecessor_is_dead_at_once_with_all_that_it_named_or_noted() -> None:
    watch, clock = Watch("me", BEFORE), ManualClock()
    watched(watch, clock, {"old": entry(5, [1]), "other": entry(8, [1])}, STEP_MS)
    assert watch.dead() == {"old": frozenset({0, 1})}
    assert watch.named() == {1}
    assert watch.is_ours("old")
    watch.forget("old")
    watched(watch, clock, {"other": entry(9, [1])}, STEP_MS)
    assert watch.dead() == {}


def test_after_a_flush_the_living_get_the_usual_time_to_name_what_they_have() -> None:
    watch, clock = Watch("me", BEFORE), ManualClock()
    watched(watch, clock, {}, DEAD_AFTER_MS)
    assert watch.dead() == {}
    watched(watch, clock, {"other": entry(8, [0])}, STEP_MS)
    assert watch.dead() == {"old": frozenset({0})}
    assert watch.named() == {0}


class Board:
    """A board in memory that can be taken away."""

    def __init__(self) -> None:
        self.fields: dict[str, str] = {}
        self.away = False

    def _answer(self) -> None:
        if self.away:
            raise BoardUnavailable("away")

    def put(self, process: str, text: str) -> None:
        self._answer()
        self.fields[process] = text

    def read(self) -> dict[str, str]:
        self._answer()
        return dict(self.fields)

    def remove(self, process: str) -> None:
        self._answer()
        self.fields.pop(process, None)


class StepClock(ManualClock):
    """Each look at it takes a while."""

    def monotonic_ms(self) -> int:
        self.advance(STEP_MS)
        return super().monotonic_ms()


Rescued = list[tuple[str, frozenset[int]]]


def survivor(board: Board, rescued: Rescued, before: Predecessor = NOBODY) -> Liveness:
    def rescue(process: str, shards: frozenset[int]) -> None:
        rescued.append((process, shards))

    return Liveness(me="b", board=board, clock=StepClock(), rescue=rescue, before=before)


def look(mine: Liveness) -> None:
    for process, shards in mine._look().items():
        mine._see_to(process, shards)


def test_a_dead_ones_shards_that_nobody_names_are_rescued_once() -> None:
    board, rescued = Board(), Rescued()
    mine = survivor(board, rescued)
    assert mine.hold(2)
    board.put("a", entry(1, [0, 1, 2]))
    for count in range(1, 13):
        board.put("c", entry(count, [1]))
        look(mine)
    assert rescued == [("a", frozenset({0}))]
    assert set(board.fields) == {"b", "c"}
    assert mine.named_by_others() == {1}


def test_where_the_board_is_away_nobody_dies_and_nothing_fails() -> None:
    board, rescued = Board(), Rescued()
    board.fields = {"a": entry(1, [0])}
    mine = survivor(board, rescued)
    look(mine)
    board.away = True
    mine.hold(1)
    for _ in range(20):
        look(mine)
    assert rescued == []
    board.away = False
    mine.drop(7)
    assert parse(board.fields["b"])[1] == {1}
    mine.stop()
    assert parse(board.fields["b"]) == (LEFT, frozenset())


def test_one_that_left_in_order_names_nothing_from_that_moment_on_and_is_taken_off() -> None:
    """Its last list of shards may never have been seen: a look comes once in a while."""
    board, rescued = Board(), Rescued()
    leaves, stays = survivor(board, rescued), Liveness(me="s", board=board, clock=StepClock(), rescue=fail)
    assert leaves.hold(0)
    look(stays)
    assert not stays.hold(0)
    leaves.drop(0)
    leaves.stop()
    assert stays.hold(0)
    look(stays)
    assert set(board.fields) == {"s"}


def fail(process: str, shards: frozenset[int]) -> None:
    raise AssertionError((process, shards))


def test_names_on_a_board_that_went_away_keep_nobody_from_a_takeover() -> None:
    board, clock = Board(), ManualClock()
    mine = Liveness(me="b", board=board, clock=clock, rescue=lambda *_: None)
    board.fields = {"a": entry(1, [0])}
    look(mine)
    board.away = True
    clock.advance(DEAD_AFTER_MS)
    assert mine.named_by_others() == {0}
    clock.advance(1)
    assert mine.named_by_others() == frozenset()
    board.away = False
    look(mine)
    assert mine.named_by_others() == {0}


def test_one_who_is_not_the_first_forgets_whom_the_first_has_seen_to() -> None:
    board, rescued = Board(), Rescued()
    board.fields = {"z": entry(1, [0])}
    mine = survivor(board, rescued)
    for count in range(1, 13):
        board.put("a", entry(count, [1]))
        look(mine)
    assert "z" in mine._watch.dead()
    board.remove("z")
    board.put("a", entry(13, [1]))
    look(mine)
    assert mine._watch.dead() == {}
    for _ in range(12):  # the first one dies, too
        look(mine)
    assert rescued == [("a", frozenset({1}))]


def test_a_shard_is_held_by_one_only() -> None:
    board = Board()
    mine = Liveness(me="b", board=board, clock=ManualClock(), rescue=lambda *_: None)
    board.fields = {"a": entry(1, [0])}
    assert [mine.hold(shard) for shard in (0, 1, 1, 2)] == [False, True, False, True]
    assert parse(board.fields["b"])[1] == {1, 2}
    board.fields["a"] = entry(2, [])
    mine.drop(1)
    assert [mine.hold(shard) for shard in (0, 1)] == [True, True], "each try asks the board"


def test_a_restart_ends_what_its_crash_left_at_once_and_takes_the_dead_name_off() -> None:
    board, rescued = Board(), Rescued()
    board.fields = {"old": entry(7, [0, 1, 2]), "a": entry(3, [1])}
    mine = survivor(board, rescued, BEFORE)
    assert mine.hold(2), "the dead keep nobody out"
    look(mine)
    assert rescued == [("old", frozenset({0}))], "the first by name or not: the others cannot know yet"
    assert set(board.fields) == {"a", "b"}
    for count in range(4, 16):
        board.put("a", entry(count, [1]))
        look(mine)
    assert len(rescued) == 1


def test_a_second_crash_leaves_the_first_name_to_whoever_comes_next() -> None:
    """It died before it saw to its predecessor: both fields stand, and neither rises."""
    board, rescued = Board(), Rescued()
    board.fields = {"old": entry(7, [0]), "older": entry(9, [0, 1])}
    mine = survivor(board, rescued, BEFORE)
    look(mine)
    for _ in range(12):
        look(mine)
    assert rescued == [("older", frozenset({0, 1}))]
    assert board.fields == {}


def test_a_restart_without_a_board_fences_nobody() -> None:
    board, rescued = Board(), Rescued()
    board.away = True
    mine = survivor(board, rescued, BEFORE)
    for _ in range(12):
        look(mine)
    assert rescued == []
