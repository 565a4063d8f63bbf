"""Each request as the scripts it runs and the reading of their replies; `redis.py` sends them, tests pipeline them.

Arguments and replies are those in the headers of `lua/*.lua`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from laxity.streams.ledger.admission import ordered, rank_of
from laxity.streams.ledger.limits import FLEET_PREFIX, Limit, Limits, RateLimit, SlotLimit
from laxity.streams.ledger.protocol import (
    Answer,
    Call,
    Candidate,
    Claim,
    Exchange,
    Grant,
    Live,
    Reconciled,
    Refusal,
    Report,
)
from laxity.streams.reasons import Reason

Result = TypeVar("Result")
Argument = str | int
Reply = Sequence[Any]  # status, epoch, sequence, now_ms, woken, then the decision's own
_KINDS = "uksr"  # by rank: unknown, keyed, slots, rate


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision(Generic[Result]):
    """Scripts to run as one transaction, each with its own arguments (after the common ones), and what their replies mean."""

    steps: Sequence[tuple[str, Sequence[Argument]]]
    read: Callable[[Sequence[Reply]], Result]


def exchange(request: Exchange, limits: Limits) -> Decision[Answer]:
    """What is asked for only, in the order of the fields; the reaping always, so that lapsed leases are told."""
    owner: tuple[Argument, ...] = (request.shard, request.owner_epoch)
    steps: list[tuple[str, Sequence[Argument]]] = []
    if request.acknowledged:
        steps.append(("acknowledge", (*owner, len(request.acknowledged), *request.acknowledged)))
    if request.settles:
        settles = [
            a
            for s in request.settles
            for a in (s.reservation_id, int(s.unclaimed), *_amounts(s.used.items()))
        ]
        steps.append(("settle", (*owner, len(request.settles), *settles)))
    if request.revokes:
        steps.append(("revoke", (*owner, len(request.revokes), *request.revokes)))
    if request.cancels:
        steps.append(("cancel", (*owner, len(request.cancels), *request.cancels)))
    if request.candidates:
        steps.append(("reserve", (*owner, *_candidates(request.candidates, limits))))
    steps.append(("reap", owner))
    names = [name for name, _ in steps]
    return Decision(
        steps=steps, read=lambda replies: _answer(request, dict(zip(names, replies, strict=True)))
    )


def report(page: Report, limits: Limits, *, new_key: str) -> Decision[Reconciled]:
    """`new_key`: random; the name of the epoch if this page begins one."""
    reported = [a for one in page.live for a in _live(one, limits)]
    place = (page.within, page.after, page.upto)
    arguments = (page.shard, page.owner_epoch, page.seen_epoch, new_key, *place, len(page.live), *reported)

    def read(replies: Sequence[Reply]) -> Reconciled:
        status, epoch, *rest = replies[0]
        if status != "ok":
            return Reconciled(status=status, epoch=epoch)
        lapsed, dropped, restored, more = rest[3:]
        return Reconciled(
            status=status,
            epoch=epoch,
            lapsed=tuple(lapsed),
            dropped=dropped,
            restored=restored,
            more=more == 1,
        )

    return Decision(steps=[("reconcile", arguments)], read=read)


def register(*, runner: str, fleet: str, partition: int, credit: int, ttl_ms: int) -> Decision[str]:
    """The epoch, or "" while recovering."""
    return Decision(
        steps=[("register", (runner, fleet, partition, credit, ttl_ms))],
        read=lambda replies: str(replies[0][1]) if replies[0][0] == "ok" else "",
    )


def deregister(*, runner: str, fleet: str) -> Decision[None]:
    """Nothing to read."""
    return Decision(steps=[("deregister", (runner, fleet))], read=lambda _: None)


def claim(*, reservation_id: str, runner: str) -> Decision[Claim]:
    """The status is the verdict."""

    def read(replies: Sequence[Reply]) -> Claim:
        verdict, _, _, _, _, *rest = replies[0]
        if verdict != "claimed":
            return Claim(verdict=verdict)
        expires_ms, fleet, slots, rates = rest
        return Claim(verdict=verdict, expires_ms=expires_ms, granted=_vector(fleet, slots, rates))

    return Decision(steps=[("claim", (reservation_id, runner))], read=read)


def renew(*, runner: str, reservation_ids: Sequence[str]) -> Decision[Mapping[str, str]]:
    """Verdicts by id."""
    return Decision(
        steps=[("renew", (runner, len(reservation_ids), *reservation_ids))],
        read=lambda replies: dict(zip(reservation_ids, replies[0][5], strict=True)),
    )


def call(*, reservation_id: str, runner: str, resource: str, amount: int, limit: RateLimit) -> Decision[Call]:
    """Granted, or when to ask again."""

    def read(replies: Sequence[Reply]) -> Call:
        granted, retry_ms, reason = replies[0][5:]
        return Call(granted=granted == 1, retry_ms=retry_ms, reason=reason and Reason(reason))

    return Decision(steps=[("call", (reservation_id, runner, resource, amount, *_bounds(limit)))], read=read)


def release(*, reservation_id: str, runner: str, used: Mapping[str, int]) -> Decision[bool]:
    """Whether this call did it."""
    return Decision(
        steps=[("release", (reservation_id, runner, *_amounts(used.items())))],
        read=lambda replies: replies[0][0] == "ok" and replies[0][5] == 1,
    )


def together(parts: Sequence[Decision[Result]]) -> Decision[list[Result]]:
    """Decisions in one transaction, one after the other, as if each had been asked alone."""
    steps = [step for part in parts for step in part.steps]

    def read(replies: Sequence[Reply]) -> list[Result]:
        left = iter(replies)
        return [part.read([next(left) for _ in part.steps]) for part in parts]

    return Decision(steps=steps, read=read)


# Arguments


def _candidates(candidates: Sequence[Candidate], limits: Limits) -> list[Argument]:
    numbers: dict[str, int] = {}
    resources: list[Argument] = []
    asked: list[Argument] = []
    for candidate in candidates:
        demands = ordered(candidate, limits)
        asked += [candidate.fleet, len(demands)]
        for name, amount, limit in demands:
            if name not in numbers:
                numbers[name] = len(numbers) + 1
                resources += [name, _KINDS[rank_of(limit)], *_bounds(limit)]
            asked += [numbers[name], amount]
    ids = [candidate.reservation_id for candidate in candidates]
    return [len(numbers), *resources, len(ids), *ids, *asked]


def _bounds(limit: Limit | None) -> tuple[int, int, int, int, int]:
    match limit:
        case RateLimit():
            return (
                limit.requests_per_minute,
                limit.tokens_per_minute,
                limit.burst_requests,
                limit.burst_tokens,
                int(limit.refund),
            )
        case SlotLimit():
            return (limit.capacity, 0, 0, 0, 0)
        case None:
            return (0, 0, 0, 0, 0)


def _live(one: Live, limits: Limits) -> list[Argument]:
    fleets = [name.removeprefix(FLEET_PREFIX) for name in one.granted if name.startswith(FLEET_PREFIX)]
    held = [(name, amount) for name, amount in one.granted.items() if not name.startswith(FLEET_PREFIX)]
    rates = [(name, amount) for name, amount in held if isinstance(limits.of_demand(name), RateLimit)]
    slots = [entry for entry in held if entry not in rates]
    fleet = fleets[0] if fleets else ""
    return [
        one.reservation_id,
        int(one.active),
        fleet,
        one.runner,
        one.partition,
        *_amounts(slots),
        *_amounts(rates),
    ]


def _amounts(amounts: Iterable[tuple[str, int]]) -> list[Argument]:
    listed = list(amounts)
    return [len(listed), *(argument for entry in listed for argument in entry)]


# Replies


def _answer(request: Exchange, replies: Mapping[str, Reply]) -> Answer:
    status, epoch, sequence, now_ms, _, *rest = replies["reap"]
    if status != "ok":
        return Answer(status=status, epoch=epoch, sequence=sequence, now_ms=now_ms)
    verdicts = _verdicts(request.revokes, replies.get("revoke")) | _verdicts(
        request.cancels, replies.get("cancel")
    )
    grants, repeats, refusals = replies["reserve"][5:] if "reserve" in replies else ((), (), ())
    return Answer(
        status=status,
        epoch=epoch,
        sequence=sequence,
        now_ms=now_ms,
        grants=_grants(request.candidates, grants, repeats, replies["reserve"][3] if grants else now_ms),
        refusals=tuple(_refusal(request.candidates, refusal) for refusal in _rows(refusals, 5)),
        verdicts=verdicts,
        settled=tuple(settle.reservation_id for settle in request.settles),
        reaped=tuple(rest[0]),
        woken=tuple(dict.fromkeys(name for reply in replies.values() for name in reply[4])),
    )


def _verdicts(ids: Sequence[str], reply: Reply | None) -> dict[str, str]:
    return dict(zip(ids, reply[5], strict=True)) if reply is not None else {}


def _rows(flat: Sequence[Any], width: int) -> list[Sequence[Any]]:
    return [flat[at : at + width] for at in range(0, len(flat), width)]


def _grants(
    candidates: Sequence[Candidate], grants: Sequence[Any], repeats: Sequence[Sequence[Any]], now_ms: int
) -> tuple[Grant, ...]:
    """New ones hold what was asked, repeated ones what they held; both in the order of the candidates."""
    found: list[tuple[int, Grant]] = []
    for number, runner, partition in _rows(grants, 3):
        asked = candidates[number - 1]
        held = {**asked.demands, FLEET_PREFIX + asked.fleet: 1}
        found.append((number, _grant(asked, runner, partition, held, now_ms)))
    for number, runner, partition, granted_ms, *vector in repeats:
        found.append(
            (number, _grant(candidates[number - 1], runner, partition, _vector(*vector), granted_ms))
        )
    return tuple(grant for _, grant in sorted(found, key=lambda entry: entry[0]))


def _grant(asked: Candidate, runner: str, partition: int, held: Mapping[str, int], granted_ms: int) -> Grant:
    return Grant(
        reservation_id=asked.reservation_id,
        runner=runner,
        partition=partition,
        granted=held,
        granted_ms=granted_ms,
    )


def _refusal(candidates: Sequence[Candidate], refusal: Sequence[Any]) -> Refusal:
    number, reason, resource, retry_ms, rival = refusal
    return Refusal(
        reservation_id=candidates[number - 1].reservation_id,
        reason=Reason(reason),
        resource=resource,
        retry_ms=retry_ms,
        rival=rival,
    )


def _vector(fleet: str, slots: Sequence[Any], rates: Sequence[Any]) -> dict[str, int]:
    flat = [*slots, *rates]
    granted: dict[str, int] = dict(zip(flat[::2], flat[1::2], strict=True))
    return granted | {FLEET_PREFIX + fleet: 1} if fleet else granted
