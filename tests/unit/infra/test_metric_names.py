"""The metrics of all processes read as one catalogue: names, units, labels."""

import re
from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry

from laxity.consumers.metrics import RunnerMetrics
from laxity.infra.demo.provider.metrics import Metrics as ProviderMetrics
from laxity.streams.runtime.metrics import Metrics as SchedulerMetrics

UNBOUNDED = {"task", "task_id", "run", "run_id", "key", "tenant", "message", "reservation"}
BASE_UNITS = re.compile(r"_(ms|millis|milliseconds|minutes|micros|kb|mb|kib|mib|percent)(_|$)")


def registries() -> dict[str, CollectorRegistry]:
    return {
        "scheduler": SchedulerMetrics().registry,
        "runner": RunnerMetrics().registry,
        "provider": ProviderMetrics()._registry,
    }


def families() -> Iterator[tuple[str, str, str, str]]:
    """Process, name, type, help text."""
    for process, registry in registries().items():
        for family in registry.collect():
            yield process, family.name, family.type, family.documentation


def labels() -> Iterator[tuple[str, str]]:
    for process, registry in registries().items():
        for collector in registry._collector_to_names:
            for label in getattr(collector, "_labelnames", ()):
                yield process, label


@pytest.mark.parametrize(("process", "name", "kind", "text"), list(families()))
def test_a_metric_is_named_as_all_are(process: str, name: str, kind: str, text: str) -> None:
    assert re.fullmatch(r"laxity_[a-z][a-z0-9]*(_[a-z0-9]+)*", name), process
    assert not BASE_UNITS.search(name), "base units: seconds, bytes, ratios"
    assert kind != "histogram" or name.endswith(("_seconds", "_bytes")), "a histogram names its unit"
    assert text.endswith("."), "a sentence for whoever reads /metrics"


def test_no_name_means_two_things() -> None:
    names = [name for _, name, _, _ in families()]
    assert len(names) == len(set(names))


def test_no_label_is_unbounded() -> None:
    assert not [(process, label) for process, label in labels() if label in UNBOUNDED]


def test_what_was_asked_for_is_there() -> None:
    names = {name for process, name, _, _ in families() if process == "scheduler"}
    wanted = {"deadline_missed", "queue_depth", "oldest_wait_seconds", "resource_reserved", "resource_used"}
    assert {f"laxity_{name}" for name in wanted} <= names
