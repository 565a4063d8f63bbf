"""A rolling upgrade: two schedulers of an earlier revision are replaced, one after the other, by this one's while work comes in.

    python -m chaos.rolling [--from REV]

Both revisions are installed from wheels of their own, into folders of their own, over the same libraries. The default is the last commit
but one that changed anything under schemas/ or streams/ (with changes that are not committed yet: the last one). A replaced process
leaves its state directory to its successor. Checked: nothing is lost or doubled, both revisions ran shards side by side, no shard was
refused or started over. The journal need not replay: what the earlier revision decided, this one may decide otherwise.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from integration.deployment import SHARDS, Process, World, deployed, wait_for
from integration.trickle import TIER, Trickle

from laxity.infra.local import Endpoints
from laxity.infra.local.launch import start_detached, stop
from laxity.infra.local.plan import SERVERS, make_plan
from laxity.infra.local.settings import StackSettings
from laxity.infra.local.software import prepare
from laxity.schemas.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
WATCHED = ("schemas", "streams")
LINES_TOLD = 20  # of each process's log, where something did not hold
TASKS_EACH = 100  # ended between two steps, so that each mixture of revisions has worked


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0: all held; an assertion says what did not."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--from", dest="revision", default="", help="of the schedulers that are replaced")
    revision = parser.parse_args(arguments).revision or _earlier()
    with tempfile.TemporaryDirectory(prefix="laxity-rolling-") as folder:
        root = Path(folder)
        old, new = _installed(revision, root / "old"), _installed(_here(), root / "new")
        with _servers(root / "stack") as stack:
            (root / "world").mkdir()
            with deployed(stack, stack.redis, root / "world", lambda found: _provision(old, found)) as world:
                _provision(new, world.found)
                try:
                    _replace_one_by_one(world, str(old), str(new), revision)
                except AssertionError:
                    _tell(world)
                    raise
    return 0


def _replace_one_by_one(world: World, old: str, new: str, revision: str) -> None:
    names = ("first", "second")
    olds = [world.start(name=name, packages=old) for name in names]
    _all_run(olds)
    trickle = Trickle(world)
    trickle.start()
    running, news = list(olds), list[Process]()
    for name, leaves in zip(names, olds, strict=True):
        _work(world)
        leaves.popen.send_signal(signal.SIGTERM)
        assert leaves.popen.wait(30) == 0, "the old one ends in order"
        running.remove(leaves)
        news.append(world.start(name=name, packages=new))
        running.append(news[-1])
        _all_run(running)
        _say(f"{name} replaced; shards run by {[sorted(process.holds()) for process in running]}")
    _work(world)
    sent = trickle.stop()
    world.check_keys(sent, TIER)
    for process in (*olds, *news):
        assert process.said("shard.running"), "each of the four had shards"
        for event in ("shard.refused", "shard.starts_over", "shard.fenced", "scheduler.failed"):
            assert not process.said(event), (event, process.said(event))
    _say(f"held: {len(sent)} tasks ended once; from {revision} to this work tree")


def _all_run(processes: Sequence[Process]) -> None:
    def balanced() -> bool:
        held = [process.holds() for process in processes]
        return all(held) and sum(len(shards) for shards in held) == SHARDS

    wait_for(balanced, "each process runs shards, and every shard runs")


def _work(world: World) -> None:
    before = len(world.ended(TIER))
    wait_for(lambda: len(world.ended(TIER)) >= before + TASKS_EACH, "work goes on")


def _tell(world: World) -> None:
    for process in world.processes:
        _say(f"{process.log.name}: {process.popen.args!r}, exit code {process.popen.poll()}")
        _say("".join(process.log.read_text("utf-8").splitlines(keepends=True)[-LINES_TOLD:]))


# what is installed


def _earlier() -> str:
    commits = _git("log", "--format=%H", "-n", "2", "--", *WATCHED).split()
    dirty = _git("status", "--porcelain", "--", *WATCHED)
    return commits[0] if dirty else commits[1]


def _here() -> str:
    """The work tree as a commit that nothing points to; files that git does not know are not part of it."""
    return _git("stash", "create") or "HEAD"


def _installed(revision: str, folder: Path) -> Path:
    """A wheel of the revision, unpacked into a folder of its own."""
    source = folder / "source"
    source.mkdir(parents=True)
    archive = subprocess.run(["git", "archive", revision], cwd=ROOT, check=True, capture_output=True)
    subprocess.run(["tar", "x", "-C", str(source)], input=archive.stdout, check=True)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    wheel = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(source)]
    subprocess.run([*pip, *wheel], check=True, cwd=folder)
    (built,) = folder.glob("*.whl")
    packages = folder / "packages"
    subprocess.run([*pip, "install", "--no-deps", "--target", str(packages), str(built)], check=True)
    where = [sys.executable, "-c", "from laxity.streams import runtime; print(runtime.__file__)"]
    env = os.environ | {"PYTHONPATH": str(packages)}
    found = subprocess.run(where, env=env, cwd=folder, check=True, capture_output=True, text=True).stdout
    assert found.startswith(str(packages)), f"{found} is not of the wheel"
    _say(f"installed {revision}")
    return packages


def _provision(packages: Path, found: Settings) -> None:
    """With the revision's own command: an upgrade begins with it."""
    env = os.environ | {
        "PYTHONPATH": str(packages),
        "LAXITY_KAFKA": found.kafka,
        "LAXITY_REGISTRY_URL": found.registry_url,
        "LAXITY_REDIS_URL": found.redis_url,
        "LAXITY_PREFIX": found.prefix,
    }
    apply = [sys.executable, "-m", "laxity.infra.cli", "topics", "apply", "--shards", str(SHARDS)]
    subprocess.run(apply, env=env, check=True, cwd=packages, stdout=subprocess.DEVNULL)


@contextmanager
def _servers(data_dir: Path) -> Iterator[Endpoints]:
    """Those of LAXITY_KAFKA, LAXITY_REGISTRY_URL, LAXITY_REDIS_URL, else a stack of our own."""
    plan = make_plan(StackSettings().model_copy(update={"data_dir": data_dir}), only=",".join(SERVERS))
    if not plan.roles:
        yield Endpoints(kafka=plan.existing_kafka, registry=plan.existing_registry, redis=plan.existing_redis)
        return
    prepare(plan)
    try:
        yield start_detached(plan)
    finally:
        stop(plan.data)


def _git(*words: str) -> str:
    return subprocess.run(
        ["git", *words], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.strip()


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
