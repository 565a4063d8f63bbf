"""What a plan needs on disk before it can start: a Java runtime, the locked jars, a Redis binary."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from laxity.infra.local.artifacts import Artifact, JarLock, cached_path, load_lock
from laxity.infra.local.fetch import fetch, missing, unpack, unpacked_path
from laxity.infra.local.java import Java, find_java
from laxity.infra.local.plan import StackPlan
from laxity.infra.local.redis_server import RedisServer, find_redis_server


@dataclass(frozen=True, slots=True, kw_only=True)
class Software:
    """Found and fetched; None or empty where the plan has no use for it."""

    java: Java | None = None
    kafka_jars: tuple[Path, ...] = ()
    registry_folder: Path | None = None
    redis: RedisServer | None = None


def wanted_artifacts(plan: StackPlan, lock: JarLock) -> list[Artifact]:
    """What must be in the cache; an unpacked registry needs no archive."""
    wanted = list(lock.kafka) if "kafka" in plan.roles else []
    if "registry" in plan.roles and not unpacked_path(plan.cache_dir, lock.registry).exists():
        wanted.append(lock.registry)
    return wanted


@contextmanager
def _progress(total_bytes: int) -> Iterator[Callable[[int], None]]:
    from rich.console import Console  # noqa: PLC0415  # keeps --help quick
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn  # noqa: PLC0415

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("Kafka and registry, once", total=total_bytes)
        yield lambda count: progress.update(task, advance=count)


def prepare(plan: StackPlan) -> Software:
    """Find and fetch everything, with a progress bar on stderr if something has to be fetched."""
    lock = load_lock()
    artifacts = wanted_artifacts(plan, lock)
    needs_java = bool(plan.roles & {"kafka", "registry"})
    java = find_java() if needs_java else None
    redis = find_redis_server() if "redis" in plan.roles else None
    absent = missing(plan.cache_dir, artifacts)
    if absent:
        with _progress(sum(artifact.size for artifact in absent)) as on_bytes:
            fetch(plan.cache_dir, plan.maven_url, artifacts, on_bytes)
    return located(plan, lock, java, redis)


def located(plan: StackPlan, lock: JarLock, java: Java | None, redis: RedisServer | None) -> Software:
    """Paths of what is in the cache; unpacks the registry if its folder is absent."""
    jars = [cached_path(plan.cache_dir, each) for each in lock.kafka] if "kafka" in plan.roles else []
    folder = unpack(plan.cache_dir, lock.registry) if "registry" in plan.roles else None
    return Software(java=java, kafka_jars=tuple(jars), registry_folder=folder, redis=redis)
