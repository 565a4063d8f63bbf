"""The real servers behind the integration tests: given ones, else containers, else the local stack. Never a skip."""

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import NoReturn

import pytest

from laxity.infra.local import Endpoints
from laxity.infra.local.containers import engine_answers, running_containers
from laxity.infra.local.launch import start_detached, stop
from laxity.infra.local.plan import SERVERS, StackPlan, make_plan
from laxity.infra.local.provisioning import check_existing
from laxity.infra.local.settings import StackSettings
from laxity.infra.local.software import prepare

GIVEN = ("LAXITY_KAFKA", "LAXITY_REGISTRY_URL", "LAXITY_REDIS_URL")


def pytest_configure() -> None:
    """SIGTERM ends a run as Ctrl-C does: else its servers would stay behind."""

    def interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Fetch what the local stack needs now: 215 MB on a slow line must not count as a test's time."""
    if (
        any(item.get_closest_marker("integration") for item in session.items)
        and not session.config.option.collectonly
    ):
        settings = StackSettings(kafka="", registry_url="", redis_url="")
        prepare(make_plan(settings, only=",".join(SERVERS)))


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoints]:
    """Kafka, registry and Redis for the whole session; LAXITY_TEST_STACK=local passes over a container engine."""
    given = any(os.environ.get(name) for name in GIVEN)
    forced_local = os.environ.get("LAXITY_TEST_STACK") == "local"
    if not given and not forced_local and engine_answers():
        with running_containers() as found:
            yield found
        return
    plan = _plan(tmp_path_factory.mktemp("stack"))
    if not plan.roles:
        asyncio.run(check_existing(plan))
        yield Endpoints(kafka=plan.existing_kafka, registry=plan.existing_registry, redis=plan.existing_redis)
        return
    try:
        yield start_detached(plan)
    finally:
        stop(plan.data)


def _plan(data_dir: Path) -> StackPlan:
    """Those of the three servers that were not given."""
    settings = StackSettings().model_copy(update={"data_dir": data_dir})
    return make_plan(settings, only=",".join(SERVERS))
