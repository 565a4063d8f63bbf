"""Topics: compare the catalogue with the cluster, create, correct settings, refuse other numbers of partitions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Final, Literal

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # public by its documentation, not by __all__
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewTopic,
    ResourceType,
)

from laxity.schemas.topics import Names, Topic

REQUEST_TIMEOUT_S: Final = 30.0  # a cluster that elects leaders answers within that

Action = Literal["ok", "create", "alter", "refuse"]


class ProvisionError(Exception):
    """A change that is not made, or that the cluster refused. The text says what and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicChange:
    """What becomes of one topic. `detail`: for alter `setting: before -> after`, for refuse the reason."""

    name: str  # full
    action: Action
    partitions: int
    detail: Sequence[str] = ()

    def document(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "topic": self.name,
            "action": self.action,
            "partitions": self.partitions,
            "detail": list(self.detail),
        }


def compare(
    admin: AdminClient, wanted: Sequence[Topic], seen: Mapping[str, int], names: Names, replicas: int
) -> list[TopicChange]:
    """One entry per wanted topic. `seen`: partitions by full name. Topics of others are not looked at."""
    present = [topic for topic in wanted if names.full(topic.name) in seen]
    settings = _settings(admin, [names.full(topic.name) for topic in present])
    return [_change(topic, names.full(topic.name), seen, settings, replicas) for topic in wanted]


def refuse(changes: Iterable[TopicChange]) -> None:
    """ProvisionError if anything is refused, with the first reason."""
    refused = [change for change in changes if change.action == "refuse"]
    if refused:
        others = f" (and {len(refused) - 1} more topics)" if len(refused) > 1 else ""
        raise ProvisionError(f"{refused[0].name} {'; '.join(refused[0].detail)}{others}")


def carry_out(
    admin: AdminClient, wanted: Sequence[Topic], changes: Sequence[TopicChange], names: Names, replicas: int
) -> None:
    """Create and alter. A topic that another run made in the meantime is fine."""
    action = {change.name: change.action for change in changes}
    new = [topic for topic in wanted if action[names.full(topic.name)] == "create"]
    old = [topic for topic in wanted if action[names.full(topic.name)] == "alter"]
    if new:
        _wait(admin.create_topics([_new(t, names, replicas) for t in new], request_timeout=REQUEST_TIMEOUT_S))
    if old:
        resources = [_resource(topic, names, replicas) for topic in old]
        _wait(admin.incremental_alter_configs(resources, request_timeout=REQUEST_TIMEOUT_S))


def _change(
    topic: Topic, full: str, seen: Mapping[str, int], settings: Mapping[str, Mapping[str, str]], replicas: int
) -> TopicChange:
    found = seen.get(full)
    if found is None:
        return TopicChange(name=full, action="create", partitions=topic.partitions)
    if found != topic.partitions:
        reason = (
            f"has {found} partitions, asked for {topic.partitions}: the number is fixed for life, "
            "because the place of every run and runner follows from it"
        )
        return TopicChange(name=full, action="refuse", partitions=found, detail=(reason,))
    now = settings[full]
    detail = tuple(
        f"{key}: {now.get(key, 'unset')} -> {value}"
        for key, value in topic.settings(replicas).items()
        if now.get(key) != value
    )
    return TopicChange(name=full, action="alter" if detail else "ok", partitions=found, detail=detail)


def _settings(admin: AdminClient, topics: Sequence[str]) -> dict[str, dict[str, str]]:
    if not topics:
        return {}
    futures = admin.describe_configs(
        [ConfigResource(ResourceType.TOPIC, name) for name in topics], request_timeout=REQUEST_TIMEOUT_S
    )
    return {
        resource.name: {key: entry.value for key, entry in _result(resource.name, future).items()}
        for resource, future in futures.items()
    }


def _new(topic: Topic, names: Names, replicas: int) -> NewTopic:
    return NewTopic(
        names.full(topic.name),
        num_partitions=topic.partitions,
        replication_factor=replicas,
        config=topic.settings(replicas),
    )


def _resource(topic: Topic, names: Names, replicas: int) -> ConfigResource:
    entries = [
        ConfigEntry(key, value, incremental_operation=AlterConfigOpType.SET)
        for key, value in topic.settings(replicas).items()
    ]
    return ConfigResource(ResourceType.TOPIC, names.full(topic.name), incremental_configs=entries)


def _wait(futures: Mapping[Any, Future[Any]]) -> None:
    for key, future in futures.items():
        _result(key if isinstance(key, str) else key.name, future)


def _result(name: str, future: Future[Any]) -> Any:
    try:
        return future.result()
    except KafkaException as error:
        if error.args[0].code() == KafkaError.TOPIC_ALREADY_EXISTS:
            return None
        raise ProvisionError(f"{name}: {error.args[0].str()}") from error
