"""Kafka of the local stack: one KRaft node that is broker and controller, on loopback."""

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from laxity.infra.local.errors import StackError
from laxity.infra.local.java import Java

HEAP = ("-Xmx512m", "-XX:+UseSerialGC")
FORMAT_TIMEOUT_S = 60

# What differs from the broker's defaults, each with its reason. compose.yaml and the container of the
# tests have the same; a test compares them.
BROKER_SETTINGS: Mapping[str, str] = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "auto.create.topics.enable": "false",  # a misspelt topic is an error, not a new topic
    "log.message.timestamp.type": "LogAppendTime",  # one clock orders what several producers write
    "offsets.topic.replication.factor": "1",  # there is one broker
    "offsets.topic.num.partitions": "5",  # 50 cost seconds at the first start
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "transaction.state.log.num.partitions": "5",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "group.initial.rebalance.delay.ms": "0",  # a group of two need not wait 3 s for a third
    "group.consumer.min.session.timeout.ms": "6000",  # the default of 45 s delays every takeover
    "group.consumer.session.timeout.ms": "6000",
    "group.consumer.min.heartbeat.interval.ms": "200",
    "group.consumer.heartbeat.interval.ms": "200",  # a hand-over waits for two heartbeats: 5 s each by default
    "broker.session.timeout.ms": "3000",  # a restart after kill -9 takes 5.5 s instead of 12.8 s
    "broker.heartbeat.interval.ms": "500",
}

LOGGING = """\
status = error
appender.stdout.type = Console
appender.stdout.name = STDOUT
appender.stdout.layout.type = PatternLayout
appender.stdout.layout.pattern = [%d] %p %m (%c)%n
rootLogger.level = info
rootLogger.appenderRef.stdout.ref = STDOUT
"""


def properties(*, port: int, controller_port: int, log_dir: Path) -> str:
    """Text of server.properties."""
    local = {
        "listeners": f"PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}",
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{port}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "controller.listener.names": "CONTROLLER",
        "controller.quorum.voters": f"1@127.0.0.1:{controller_port}",
        "log.dirs": str(log_dir).replace("\\", "\\\\"),  # a backslash escapes in properties files
    }
    return "".join(f"{key}={value}\n" for key, value in {**BROKER_SETTINGS, **local}.items())


def class_path(jars: Sequence[Path]) -> str:
    """Value for CLASSPATH: 92 paths would fill the process list as an argument."""
    return ":".join(str(jar) for jar in jars)


def tool_argv(java: Java, main_class: str, *arguments: str) -> list[str]:
    """A command of the Kafka jars; CLASSPATH must be in its environment."""
    return [str(java.path), *HEAP, *java.flags(), main_class, *arguments]


def broker_argv(java: Java, folder: Path) -> list[str]:
    """The broker itself, logging to stdout."""
    logging = f"-Dlog4j2.configurationFile={folder / 'log4j2.properties'}"
    options = (*HEAP, *java.flags(), logging)
    return [str(java.path), *options, "kafka.Kafka", str(folder / "server.properties")]


def write_configuration(folder: Path, *, port: int, controller_port: int) -> None:
    """Write server.properties and the logging file, fresh at every start (ports may differ)."""
    folder.mkdir(parents=True, exist_ok=True)
    text = properties(port=port, controller_port=controller_port, log_dir=folder / "data")
    (folder / "server.properties").write_text(text, "utf-8")
    (folder / "log4j2.properties").write_text(LOGGING, "utf-8")


def format_storage(java: Java, jars: Sequence[Path], folder: Path, cluster_id: str) -> None:
    """Prepare an empty data folder; does nothing to one that is formatted."""
    if (folder / "data" / "meta.properties").exists():
        return
    # one word: an id may begin with "-", which would read as an option
    arguments = ("format", f"--cluster-id={cluster_id}", "--config", str(folder / "server.properties"))
    answer = subprocess.run(
        tool_argv(java, "kafka.tools.StorageTool", *arguments),
        env={"CLASSPATH": class_path(jars)},
        capture_output=True,
        text=True,
        timeout=FORMAT_TIMEOUT_S,
        check=False,
    )
    if answer.returncode:
        lines = (answer.stderr or answer.stdout).strip().splitlines()
        raise StackError(f"cannot format Kafka's storage in {folder}", lines[-1] if lines else "no message")
