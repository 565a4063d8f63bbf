"""Every store lost, full, frozen, stale or rotten while a load runs: Redis, the shards' state directories, the broker's log.

    python -m chaos.stores --tasks 5000 --seed 1 [--no-dedupe] [--json FILE]

Lane one: Redis killed, flushed, frozen (once for longer than a lease), paused, out of memory, read-only; the broker's disk full.
Lane two: state directories lost, put back from an old copy, rotten in five ways, on a full disk. Kafka rolls and compacts its segments
all the while. Then the checks of every suite, the return of admission after each loss, and a deployment that is wiped and run again.

The full disks are small tmpfs mounts in a mount namespace of our own, which ends with us; without root it is one of our own user, too.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from random import Random  # noqa: TID251 - the seed is the argument
from typing import Final

import redis
from chaos.history import History
from chaos.load import jobs
from chaos.nemesis import KILL, Fault, Injury, Nemesis, Strike
from chaos.suite import Storm, conclude, finish, opened, parse, say
from chaos.world import World
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ResourceType,
)

from laxity.infra.inspect.reading import Reader

EVENTUALLY: Final = 10  # times the tasks that are wanted: the load goes on for as long as the faults do, on a busy machine, too
OWN_MOUNTS: Final = "LAXITY_CHAOS_OWN_MOUNTS"  # set once this process has a mount namespace of its own
FULL_SCHEDULER: Final = "scheduler-1"  # its state directory is the small one
STATE_MIB: Final = 64
BROKER_MIB: Final = 768
BALLAST: Final = "ballast"
CHUNK: Final = bytes(1 << 20)
NOWHERE: Final = ("127.0.0.1", "9")  # nobody listens at discard
ADMIT_MS: Final = 5_000  # after a loss, all shards being alive
ADMIT_MS_MAX: Final = 20_000  # with one dead: the longest lease, and a takeover
COMPACTED_LEAST: Final = 0.3  # of the changelog's records must be gone at the end, else nothing was compacted


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0: everything held; 1: something did not, printed."""
    _own_mounts()
    options = parse(arguments, __doc__, name="stores")
    load = jobs(
        seed=options.seed,
        count=EVENTUALLY * options.tasks,
        span_ms=round(EVENTUALLY * options.span_s * 1_000),
        deduplicates=options.deduplicates,
    )
    with opened(options, before=_small_disks) as world:
        roll_and_compact(world)
        plan = faults(options.seed, scale=options.scale)
        storm = Storm(world, options, load, [plan], injuries=INJURIES)
        storm.rage()

        def more(history: History) -> Mapping[str, Sequence[str]]:
            returns = list(admission_returns(history, storm.nemesis.strikes))
            return {"admission_returns": returns, "changelogs_were_compacted": list(compacted(world))}

        report = conclude(
            storm,
            more=more,
            after=lambda a: (
                a.i8_nothing_reserved,
                a.journals_replay,
                a.i15_offsets_reset,
                a.i16_state_restored,
                a.i15_all_wiped,
            ),
        )
    return finish(report, options)


# disks of our own


def _own_mounts() -> None:
    """Start over in a mount namespace of our own: what we mount there nobody else sees, and the kernel clears it away."""
    if os.environ.get(OWN_MOUNTS):
        return
    user = [] if os.geteuid() == 0 else ["--map-root-user"]
    command = ["unshare", "--mount", *user, sys.executable, "-m", "chaos.stores", *sys.argv[1:]]
    os.execvpe(command[0], command, {**os.environ, OWN_MOUNTS: "1"})


@contextmanager
def _small_disks(root: Path) -> Iterator[None]:
    """A small disk under one scheduler's state and under the broker's log."""
    places = {root / "state" / FULL_SCHEDULER: STATE_MIB, root / "kafka" / "data": BROKER_MIB}
    with ExitStack() as mounted:
        for place, size_mib in places.items():
            place.mkdir(parents=True, exist_ok=True)
            subprocess.run(
                ["mount", "-t", "tmpfs", "-o", f"size={size_mib}m,mode=700", "tmpfs", str(place)], check=True
            )
            mounted.callback(subprocess.run, ["umount", "--lazy", str(place)], check=True)
        yield


# the plan


def faults(seed: int, *, scale: float) -> list[Fault]:
    """Two lanes. Every kind comes at least once, however short the run."""
    random = Random(f"stores {seed}")

    def times(count: int) -> int:
        return max(1, round(count * scale))

    servers = [
        *[_fault("servers", KILL, "redis")] * times(5),
        *[_fault("servers", "flushall", "redis")] * times(10),
        *[_fault("servers", "freeze", "redis", random.randint(1_000, 6_000)) for _ in range(times(3))],
        _fault("servers", "freeze", "redis", 20_000),  # leases lapse meanwhile
        *[_fault("servers", "pause_clients", "redis", random.randint(1_000, 6_000)) for _ in range(times(3))],
        *[_fault("servers", "out_of_memory", "redis", random.randint(1_000, 6_000)) for _ in range(times(3))],
        *[_fault("servers", "read_only", "redis", random.randint(1_000, 6_000)) for _ in range(times(3))],
        *[_fault("servers", "full_disk", "kafka", random.randint(3_000, 6_000)) for _ in range(times(2))],
    ]
    state = [
        *[_fault("state", "lose_state", f"scheduler-{n % 2}") for n in range(times(5))],
        *[_fault("state", "stale_copy", f"scheduler-{n % 2}", 15_000) for n in range(times(2))],
        *[
            _fault("state", "rot", f"scheduler-{n % 2}", text=how)
            for n, how in enumerate(ROTS)
            if scale >= 1 or n == 0
        ],
        *[
            _fault("state", "full_disk", FULL_SCHEDULER, random.randint(3_000, 6_000))
            for _ in range(times(2))
        ],
    ]
    random.shuffle(servers)
    random.shuffle(state)
    return [
        *(_paused(f, random.randint(4_000, 10_000)) for f in servers),
        *(_paused(f, random.randint(10_000, 20_000)) for f in state),
    ]


def _fault(lane: str, kind: str, victim: str, duration_ms: int = 0, text: str = "") -> Fault:
    return Fault(number=0, lane=lane, kind=kind, victim=victim, duration_ms=duration_ms, text=text)


def _paused(fault: Fault, pause_ms: int) -> Fault:
    return replace(fault, pause_ms=pause_ms)


# Redis


def _redis(world: World) -> redis.Redis:
    return redis.Redis.from_url(world.settings.redis_url, socket_timeout=3.0)


def flushall(nemesis: Nemesis, _fault: Fault) -> bool:
    """All that it knew is gone, the server lives."""
    try:
        with closing(_redis(nemesis.world)) as client:
            return bool(client.flushall())
    except redis.RedisError:
        return False


def freeze(nemesis: Nemesis, fault: Fault) -> bool:
    """It neither answers nor closes connections."""
    member = nemesis.world[fault.victim]
    if not member.freeze():
        return False
    nemesis.last(fault.duration_ms)
    return member.thaw()


def pause_clients(nemesis: Nemesis, fault: Fault) -> bool:
    """Connections are taken, commands wait."""
    try:
        with closing(_redis(nemesis.world)) as client:
            client.client_pause(fault.duration_ms, all=True)
    except redis.RedisError:
        return False
    nemesis.last(fault.duration_ms)
    return True


def out_of_memory(nemesis: Nemesis, fault: Fault) -> bool:
    """Reads are answered, writes refused; landed if one was."""
    with closing(_redis(nemesis.world)) as client:
        try:
            client.config_set("maxmemory", "1")
            refused = _refuses(client)
            nemesis.last(fault.duration_ms)
        finally:
            client.config_set("maxmemory", "0")
    return refused


def read_only(nemesis: Nemesis, fault: Fault) -> bool:
    """It takes itself for the replica of a master that is not there: its data stay, writes are refused."""
    with closing(_redis(nemesis.world)) as client:
        try:
            client.replicaof(*NOWHERE)
            refused = _refuses(client)
            nemesis.last(fault.duration_ms)
        finally:
            client.replicaof("NO", "ONE")
    return refused


def _refuses(client: redis.Redis) -> bool:
    try:
        client.set("chaos-probe", "1")
    except redis.ResponseError:
        return True
    return False


# state directories


def lose_state(nemesis: Nemesis, fault: Fault) -> bool:
    """Killed, and its directory gone."""
    return _changed_while_dead(nemesis, fault, lambda _: nemesis.world.lose_state(fault.victim) > 0)


def stale_copy(nemesis: Nemesis, fault: Fault) -> bool:
    """Killed, and its directory put back as it was `duration_ms` ago."""
    copy = nemesis.world.plan.root / "copies" / str(fault.number)

    def save(folder: Path) -> bool:
        shutil.copytree(folder, copy, ignore=shutil.ignore_patterns(BALLAST))
        return True

    def put_back(folder: Path) -> bool:
        nemesis.world.lose_state(fault.victim)
        shutil.copytree(copy, folder, dirs_exist_ok=True)
        return True

    if not _changed_while_dead(nemesis, fault, save):
        return False
    nemesis.world.await_ready(fault.victim)
    nemesis.last(fault.duration_ms)
    return _changed_while_dead(nemesis, fault, put_back)


def rot(nemesis: Nemesis, fault: Fault) -> bool:
    """Killed, and files of its stores damaged in the way that the fault names. Opened once before: so the logs of its last life become tables."""
    damage = ROTS[fault.text]
    if not _changed_while_dead(nemesis, fault, lambda _: True):
        return False
    nemesis.world.await_ready(fault.victim)
    return _changed_while_dead(nemesis, fault, lambda folder: _each(damage, folder))


def _each(damage: Callable[[Path], bool], folder: Path) -> bool:
    """To all stores; whether one had what it damages."""
    return [damage(store) for store in _stores(folder)].count(True) > 0


def _changed_while_dead(nemesis: Nemesis, fault: Fault, change: Callable[[Path], bool]) -> bool:
    member = nemesis.world[fault.victim]
    if not nemesis.until(lambda: member.life is not None, 30_000):
        return False
    killed = member.kill(stay_dead=True) is not None
    try:
        return change(nemesis.world.state_dir(fault.victim)) and killed
    finally:
        member.start()


def _stores(folder: Path) -> list[Path]:
    """Directories of RocksDB."""
    return [path.parent for path in folder.rglob("CURRENT")]


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


def _flip_all(pattern: str) -> Callable[[Path], bool]:
    def damage(store: Path) -> bool:
        found = [path for path in store.glob(pattern) if path.stat().st_size]
        for path in found:
            _flip(path)
        return bool(found)

    return damage


def _delete_tables(store: Path) -> bool:
    found = list(store.glob("*.sst"))
    for path in found:
        path.unlink()
    return bool(found)


def _empty_current(store: Path) -> bool:
    (store / "CURRENT").write_bytes(b"")
    return True


def _rot_log(store: Path) -> bool:
    """The second half of the write-ahead log is noise."""
    found = [path for path in store.glob("*.log") if path.stat().st_size]
    for path in found:
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2] + b"\xa5" * (len(data) - len(data) // 2))
    return bool(found)


ROTS: Final[Mapping[str, Callable[[Path], bool]]] = {
    "a byte of each table": _flip_all("*.sst"),
    "tables deleted": _delete_tables,
    "a byte of the manifest": _flip_all("MANIFEST-*"),
    "CURRENT emptied": _empty_current,
    "noise in the write-ahead log": _rot_log,
}


# disks


def full_disk(nemesis: Nemesis, fault: Fault) -> bool:
    """No byte is left where it writes; after a while there is room again. Landed if the disk was full."""
    world = nemesis.world
    place = world.state_dir(fault.victim) if fault.victim != "kafka" else world.plan.root / "kafka" / "data"
    ballast = place / BALLAST
    try:
        full = _fill(ballast)
        nemesis.last(fault.duration_ms)
        _fill(ballast)  # what it gave back meanwhile
        nemesis.last(fault.duration_ms)
    finally:
        ballast.unlink(missing_ok=True)
    return full


def _fill(path: Path) -> bool:
    with path.open("ab", buffering=0) as file:
        for chunk in (CHUNK, CHUNK[:4096]):
            try:
                while True:
                    file.write(chunk)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
    return True


INJURIES: Final[Mapping[str, Injury]] = {
    "flushall": flushall,
    "freeze": freeze,
    "pause_clients": pause_clients,
    "out_of_memory": out_of_memory,
    "read_only": read_only,
    "lose_state": lose_state,
    "stale_copy": stale_copy,
    "rot": rot,
    "full_disk": full_disk,
}


# Kafka's own housekeeping


def roll_and_compact(world: World) -> None:
    """Segments of all topics close after seconds; the changelog is compacted as soon as one has."""
    admin = world.clients().admin()
    prefix = world.plan.prefix
    resources = []
    for name in admin.list_topics(timeout=10).topics:
        if name.startswith(prefix):
            changelog = name == f"{prefix}state"
            wanted = {"segment.ms": "3000" if changelog else "30000"}
            if changelog:
                wanted |= {"min.cleanable.dirty.ratio": "0.01", "max.compaction.lag.ms": "3000"}
            resources.append(_resource(ResourceType.TOPIC, name, wanted))
    often = {"log.cleaner.backoff.ms": "1000"}
    brokers = admin.list_topics(timeout=10).brokers
    resources += [_resource(ResourceType.BROKER, str(broker), often) for broker in brokers]
    for done in admin.incremental_alter_configs(resources, request_timeout=30).values():
        done.result()
    say("segments roll and are compacted")


def _resource(kind: ResourceType, name: str, wanted: Mapping[str, str]) -> ConfigResource:
    entries = [
        ConfigEntry(key, value, incremental_operation=AlterConfigOpType.SET) for key, value in wanted.items()
    ]
    return ConfigResource(kind, name, incremental_configs=entries)


def compacted(world: World) -> Iterator[str]:
    """The changelog has lost what it may lose: else nobody restored from a compacted one."""
    with Reader(world.clients(), world.clock) as reader:
        spans = reader.whole([f"{world.plan.prefix}state"])
        written = sum(span.end for span in spans)
        left = sum(1 for _ in reader.read(spans))
    say(f"changelog: {left} records are left of {written} offsets")
    if left > (1 - COMPACTED_LEAST) * written:
        yield f"{left} records are left of {written} offsets: hardly anything was compacted"


# what only this suite can see


def admission_returns(history: History, strikes: Sequence[Strike]) -> Iterator[str]:
    """After Redis came back, something is granted within ADMIT_MS; where others were away meanwhile, within ADMIT_MS_MAX of their return."""
    grants = sorted(booked.appended_ms for booked in history.booked if booked.entry.grants)
    others = sorted((s for s in strikes if s.victim != "redis"), key=lambda s: s.at_ms)
    for strike in (s for s in strikes if s.victim == "redis" and s.landed):
        well_ms, limit_ms = strike.over_ms, ADMIT_MS
        for other in others:
            if other.at_ms <= well_ms + limit_ms and strike.at_ms <= other.over_ms + ADMIT_MS_MAX:
                well_ms, limit_ms = max(well_ms, other.over_ms), ADMIT_MS_MAX
        after = [at for at in grants if at >= strike.over_ms]
        took_ms = after[0] - well_ms if after else 0
        if took_ms > limit_ms:
            yield f"nothing was granted for {took_ms} ms after fault {strike.number} ({strike.what}); {limit_ms} allowed"


if __name__ == "__main__":
    sys.exit(main())
