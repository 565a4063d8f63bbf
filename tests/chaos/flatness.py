"""Whether a killed scheduler was noticed by the shards that it did not have: in their journals, by readers of events, in their latency."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from math import ceil
from typing import Final

from chaos.history import History
from chaos.load import MODEL
from chaos.nemesis import Strike

from laxity.streams.lifecycle import State

GAP_MS_MAX: Final = 3_000
AFTER_MS: Final = 15_000  # of a kill: by then a killed process's shards run elsewhere
NOTICED_MS: Final = 3_000  # after a kill latency may rise
SLOWER_MAX: Final = 3.0
SLOWER_MS: Final = 50  # a p99 of a few ms is noise
JUDGED_LEAST: Final = 100  # latencies below which a p99 says nothing
PERCENT: Final = 99


def flatness(
    history: History, heard: Mapping[int, Sequence[int]], strikes: Sequence[Strike]
) -> dict[str, list[str]]:
    """Violations by check; empty lists where the kills were not noticed, or there were none."""
    kills = [strike for strike in strikes if strike.landed]
    journal = defaultdict(list)
    for booked in history.booked:
        journal[booked.place.partition].append(booked.appended_ms)
    return {
        "others_write_on": list(_gaps("journal", journal, kills)),
        "readers_read_on": list(_gaps("events, read_committed", heard, kills)),
        "latency_stays_flat": list(_slow(history, kills)),
    }


def _gaps(what: str, moments: Mapping[int, Sequence[int]], kills: Sequence[Strike]) -> Iterator[str]:
    for strike in kills:
        for shard, times in sorted(moments.items()):
            if shard in strike.held:
                continue
            worst = max(spans(times, strike.at_ms, strike.at_ms + AFTER_MS), default=0)
            if worst > GAP_MS_MAX:
                yield f"{what}: shard {shard} was silent for {worst} ms after fault {strike.number} ({strike.victim})"


def spans(times: Sequence[int], start_ms: int, end_ms: int) -> list[int]:
    """Lengths of the silences that begin or end between the two; `times` ascend."""
    first = max(bisect_left(times, start_ms) - 1, 0)
    last = bisect_left(times, end_ms) + 1
    return [after - before for before, after in pairwise(times[first:last])]


def latencies(history: History) -> list[tuple[int, int, int]]:
    """(appended, shard, ms from there to the record of the first dispatch) of every task that asks for nothing but the rate: nobody's slot delays it."""
    plain = {
        sent.task_id
        for sent in history.sent
        if sent.trigger is not None and all(name == MODEL for name in sent.trigger.demands)
    }
    found: dict[str, tuple[int, int, int]] = {}
    for told in history.told:
        event = told.event
        if event.task_id in plain and any(step.after == State.DISPATCHED for step in event.transitions):
            took_ms = told.appended_ms - event.accepted_ms
            found.setdefault(event.task_id, (event.accepted_ms, told.place.partition, took_ms))
    return list(found.values())


def _slow(history: History, kills: Sequence[Strike]) -> Iterator[str]:
    if not kills:
        return
    quiet, beside = sorted_out(latencies(history), kills)
    if min(len(quiet), len(beside)) < JUDGED_LEAST:
        yield f"too few latencies to judge: {len(quiet)} quiet, {len(beside)} beside kills"
        return
    calm_ms, hit_ms = percentile(quiet), percentile(beside)
    if hit_ms > max(SLOWER_MAX * calm_ms, SLOWER_MS):
        yield f"p99 from trigger to dispatch is {hit_ms} ms beside kills, {calm_ms} ms in quiet"


def sorted_out(found: Sequence[tuple[int, int, int]], kills: Sequence[Strike]) -> tuple[list[int], list[int]]:
    """Latencies far from any kill, and those of shards that a kill left alone, from NOTICED_MS after it on."""
    begin_ms = min(kill.at_ms for kill in kills) - AFTER_MS
    end_ms = max(kill.at_ms for kill in kills) + AFTER_MS
    quiet, beside = [], []
    for at_ms, shard, took_ms in found:
        met = [kill for kill in kills if at_ms - AFTER_MS <= kill.at_ms <= at_ms + took_ms]
        if begin_ms <= at_ms <= end_ms and not met:
            quiet.append(took_ms)
        elif met and all(kill.at_ms + NOTICED_MS < at_ms and shard not in kill.held for kill in met):
            beside.append(took_ms)
    return quiet, beside


def percentile(values: Sequence[int]) -> int:
    """p99 by nearest rank."""
    ordered = sorted(values)
    return ordered[ceil(PERCENT / 100 * len(ordered)) - 1]
