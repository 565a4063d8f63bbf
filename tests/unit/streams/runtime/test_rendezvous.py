"""Who copies which shard."""

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from laxity.streams.runtime.rendezvous import SETTLE_MS, Processes, Wishes, standbys

SHARDS = 12


def deployment(names: list[str]) -> dict[str, set[int]]:
    return {name: set(range(at, SHARDS, len(names))) for at, name in enumerate(names)}


NAMES = st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=6, unique=True)


@settings(deadline=None)
@given(names=NAMES, count=st.integers(0, 3))
def test_as_many_as_wanted_or_as_there_are_and_never_the_owner(names: list[str], count: int) -> None:
    processes = deployment(names)
    for shard in range(SHARDS):
        chosen = standbys(shard, processes, count)
        assert len(chosen) == len(set(chosen)) == min(count, len(names) - 1)
        assert all(shard not in processes[name] for name in chosen)
        assert chosen == standbys(shard, dict(reversed(processes.items())), count), (
            "everyone computes the same"
        )


@settings(deadline=None)
@given(names=NAMES.filter(lambda found: len(found) > 2))
def test_who_goes_moves_only_copies_of_its_own(names: list[str]) -> None:
    processes = deployment(names)
    fewer: Processes = {name: runs for name, runs in processes.items() if name != names[0]}
    for shard in range(SHARDS):
        before = standbys(shard, processes, 1)
        if before != [names[0]]:
            assert standbys(shard, fewer, 1) == before


def test_copies_are_spread() -> None:
    processes: Processes = {f"process-{n}": () for n in range(4)}
    found = Counter(name for shard in range(400) for name in standbys(shard, processes, 1))
    assert min(found.values()) > 60, found


def test_a_wish_must_last() -> None:
    wishes = Wishes("me", shards=2, count=1)
    alone: Processes = {"me": (), "other": {0, 1}}
    owner: Processes = {"me": {0}, "other": {1}}
    assert wishes.settled(alone, 0) == frozenset()
    assert wishes.settled(alone, SETTLE_MS - 1) == frozenset()
    assert wishes.settled(alone, SETTLE_MS) == {0, 1}
    assert wishes.settled(owner, SETTLE_MS + 1) == {0, 1}, "a name on the board for a moment"
    assert wishes.settled(alone, SETTLE_MS + 100) == {0, 1}
    assert wishes.settled(owner, 2 * SETTLE_MS) == {0, 1}
    assert wishes.settled(owner, 3 * SETTLE_MS) == {1}


def test_none_where_none_are_wanted() -> None:
    wishes = Wishes("me", shards=2, count=0)
    for now_ms in range(0, 5 * SETTLE_MS, SETTLE_MS):
        assert wishes.settled({"me": (), "other": {0, 1}}, now_ms) == frozenset()
