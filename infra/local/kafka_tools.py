"""Stock Kafka tools from the locked jars, for `laxity kafka TOOL ARGS…`."""

import os
from collections.abc import Mapping, Sequence

from laxity.infra.local.artifacts import load_lock
from laxity.infra.local.broker import class_path, tool_argv
from laxity.infra.local.errors import ConfigurationError
from laxity.infra.local.fetch import fetch
from laxity.infra.local.java import find_java
from laxity.infra.local.settings import StackSettings

TOOLS: Mapping[str, str] = {
    "acls": "org.apache.kafka.tools.AclCommand",
    "broker-api-versions": "org.apache.kafka.tools.BrokerApiVersionsCommand",
    "cluster": "org.apache.kafka.tools.ClusterTool",
    "configs": "kafka.admin.ConfigCommand",
    "console-consumer": "org.apache.kafka.tools.consumer.ConsoleConsumer",
    "console-producer": "org.apache.kafka.tools.ConsoleProducer",
    "consumer-groups": "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand",
    "consumer-perf-test": "org.apache.kafka.tools.ConsumerPerformance",
    "delete-records": "org.apache.kafka.tools.DeleteRecordsCommand",
    "dump-log": "org.apache.kafka.tools.DumpLogSegments",
    "features": "org.apache.kafka.tools.FeatureCommand",
    "get-offsets": "org.apache.kafka.tools.GetOffsetShell",
    "groups": "org.apache.kafka.tools.GroupsCommand",
    "leader-election": "org.apache.kafka.tools.LeaderElectionCommand",
    "log-dirs": "org.apache.kafka.tools.LogDirsCommand",
    "metadata-quorum": "org.apache.kafka.tools.MetadataQuorumCommand",
    "producer-perf-test": "org.apache.kafka.tools.ProducerPerformance",
    "share-groups": "org.apache.kafka.tools.consumer.group.ShareGroupCommand",
    "topics": "org.apache.kafka.tools.TopicCommand",
    "transactions": "org.apache.kafka.tools.TransactionsCommand",
}
OFFLINE = frozenset({"dump-log"})  # these read files, not a broker
BOOTSTRAP_FLAGS = frozenset(
    {"--bootstrap-server", "--bootstrap-controller", "--broker-list", "--command-property"}
)


def main_class(tool: str) -> str:
    """Class of a tool, also under its script's name (kafka-topics.sh)."""
    name = tool.removeprefix("kafka-").removesuffix(".sh")
    if name not in TOOLS:
        raise ConfigurationError(f"no Kafka tool {tool!r}", f"tools are {', '.join(sorted(TOOLS))}")
    return TOOLS[name]


def with_bootstrap(tool: str, arguments: Sequence[str], bootstrap: str) -> list[str]:
    """Fill in the running stack's address unless the caller names one."""
    given = {argument.partition("=")[0] for argument in arguments}
    if not bootstrap or tool in OFFLINE or given & BOOTSTRAP_FLAGS:
        return list(arguments)
    return ["--bootstrap-server", bootstrap, *arguments]


def replace_by_tool(settings: StackSettings, tool: str, arguments: Sequence[str], bootstrap: str) -> None:
    """Become the tool: its output, its exit code, its Ctrl-C. Does not return."""
    chosen = main_class(tool)
    jars = fetch(settings.cache_dir.expanduser().resolve(), settings.maven_url, load_lock().kafka)
    argv = tool_argv(find_java(), chosen, *with_bootstrap(tool, arguments, bootstrap))
    os.execve(argv[0], argv, {**os.environ, "CLASSPATH": class_path(jars)})  # noqa: S606
