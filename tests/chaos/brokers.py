"""A Kafka cluster of several nodes on loopback, each broker and controller, that tests kill, freeze and ask who leads what.

    with Proxy(seed=1) as proxy, Brokers(folder, proxy=proxy, edges=("scheduler-1", "runner-1")) as cluster:
        cluster.bootstrap()                # direct, for tools and checks
        cluster.bootstrap("scheduler-1")   # every node through a listener of the proxy, advertised as such
        cluster.kill(cluster.leader("laxity.state", 0))

Jars and Java are those of the local stack. Three copies of everything, two of them in sync, wherever there are three nodes.
"""

from __future__ import annotations

import base64
import re
import secrets
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from chaos.proxy import Edge, Proxy
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from laxity.infra.local import broker
from laxity.infra.local.artifacts import load_lock
from laxity.infra.local.data_dir import DataDir, cluster_id
from laxity.infra.local.fetch import fetch
from laxity.infra.local.java import Java, find_java
from laxity.infra.local.kafka_tools import main_class
from laxity.infra.local.pids import ProcessId, identify, send
from laxity.infra.local.ports import HOST, settle_ports
from laxity.infra.local.settings import StackSettings
from laxity.schemas.kafka import quiet_logger
from laxity.schemas.timing import Clock, SystemClock

READY_MS = 180_000  # all of them, on a machine that is busy with other things; 15 s on an idle one
STOP_S = 20.0  # a controlled shutdown moves the leaders away first
ASK_S = 5.0
POLL_S = 0.1
TOOL_S = 60.0
COORDINATOR_PARTITIONS = int(broker.BROKER_SETTINGS["transaction.state.log.num.partitions"])
DIRECT = "PLAINTEXT"  # the listener without a proxy, also between the brokers


class ClusterError(Exception):
    """The cluster is not what a test needs it to be."""


def java_hash(text: str) -> int:
    """String.hashCode() of Java, made positive as Kafka does it to find a coordinator's partition."""
    value = 0
    for char in text:
        value = (31 * value + ord(char)) & 0xFFFFFFFF
    signed = value - (1 << 32) if value >= 1 << 31 else value
    return 0 if signed == -(1 << 31) else abs(signed)


@dataclass(slots=True, kw_only=True)
class Node:
    """One process. `edges`: its listeners behind the proxy, by name."""

    number: int
    folder: Path
    port: int
    edges: Mapping[str, Edge] = field(default_factory=dict)
    popen: subprocess.Popen[bytes] | None = None
    frozen: bool = False

    def process(self) -> ProcessId | None:
        """Its identity while it lives."""
        return None if self.popen is None or self.popen.poll() is not None else identify(self.popen.pid)


class Brokers:
    """Context manager: ready inside, gone after. Nodes are numbered from 1. One thread at a time calls its methods."""

    def __init__(
        self,
        folder: Path,
        *,
        count: int = 3,
        proxy: Proxy | None = None,
        edges: Sequence[str] = (),
        clock: Clock | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        """`settings`: broker properties over ours."""
        assert not edges or proxy is not None, "edges need a proxy"
        self._data = DataDir.at(folder)
        self._data.create()
        self._clock: Clock = clock or SystemClock()
        self._settings = dict(settings or {})
        self._java: Java = find_java()
        stack = StackSettings()
        self._jars = fetch(stack.cache_dir.expanduser().resolve(), stack.maven_url, load_lock().kafka)
        self._ports = settle_ports(self._data.ports_file, _port_names(count, edges), {})
        self.nodes = {number: self._node(number, proxy, edges) for number in range(1, count + 1)}

    def __enter__(self) -> Self:
        try:
            self._format()
            for number in self.nodes:
                self.start(number)
            self.until_ready()
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    # addresses

    def bootstrap(self, edge: str = "") -> str:
        """Of all nodes: direct, or by way of an edge."""
        if not edge:
            return ",".join(f"{HOST}:{node.port}" for node in self.nodes.values())
        return ",".join(node.edges[edge].address for node in self.nodes.values())

    def edges(self, name: str = "") -> list[Edge]:
        """One per node; all if no name is given."""
        return [e for node in self.nodes.values() for known, e in node.edges.items() if name in {"", known}]

    # processes

    def start(self, number: int) -> None:
        """Begin to run a node that does not; `until_ready` says when it serves."""
        node = self.nodes[number]
        assert node.process() is None, f"node {number} runs"
        with (self._data.logs / f"node-{number}.log").open("ab") as log:
            node.popen = subprocess.Popen(
                broker.broker_argv(self._java, node.folder),
                env={"CLASSPATH": broker.class_path(self._jars)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        node.frozen = False

    def kill(self, number: int) -> bool:
        """SIGKILL; False if it was not running."""
        return self._signal(number, signal.SIGKILL)

    def stop(self, number: int) -> bool:
        """A controlled shutdown, then SIGKILL; False if it was not running."""
        if self.nodes[number].frozen:
            self.thaw(number)
        return self._signal(number, signal.SIGTERM)

    def freeze(self, number: int) -> bool:
        """SIGSTOP."""
        process = self.nodes[number].process()
        self.nodes[number].frozen = process is not None and send(process, signal.SIGSTOP)
        return self.nodes[number].frozen

    def thaw(self, number: int) -> bool:
        """SIGCONT."""
        process = self.nodes[number].process()
        self.nodes[number].frozen = False
        return process is not None and send(process, signal.SIGCONT)

    def running(self) -> list[int]:
        """Nodes whose process lives and is not frozen."""
        return [n for n, node in self.nodes.items() if node.process() is not None and not node.frozen]

    def end(self) -> None:
        """All of them, at once: nobody needs what they hold any more."""
        for number in self.nodes:
            self.kill(number)

    # what the cluster says of itself

    def until_ready(self, limit_ms: int = READY_MS) -> None:
        """Every node that runs is a broker that the others know, and every partition has all its copies there in sync. ClusterError if not in time."""
        self._until(self._why_not_ready, limit_ms)

    def until_in_sync(self, limit_ms: int = READY_MS) -> None:
        """Every node serves and every partition has all its copies in sync: the next broker may go."""
        assert len(self.running()) == len(self.nodes), "a node is away"
        self.until_ready(limit_ms)

    def leader(self, topic: str, partition: int) -> int:
        """Number of the node that leads a partition (full topic name). ClusterError if none does."""
        about = self._ask(topic).topics[topic]
        found = about.partitions.get(partition)
        if found is None or found.leader < 0:
            raise ClusterError(f"{topic}/{partition} has no leader: {about.error or found}")
        return int(found.leader)

    def transaction_coordinator(self, transactional_id: str) -> int:
        """Node that coordinates the transactions of an id."""
        return self.leader("__transaction_state", java_hash(transactional_id) % COORDINATOR_PARTITIONS)

    def group_coordinator(self, group: str) -> int:
        """Node that coordinates a consumer group."""
        return self.leader("__consumer_offsets", java_hash(group) % COORDINATOR_PARTITIONS)

    def controller(self) -> int:
        """Node that leads the metadata quorum (clients are told of any broker instead). Takes a few seconds."""
        living = ",".join(f"{HOST}:{self.nodes[number].port}" for number in self.running())
        arguments = ("--bootstrap-server", living, "describe", "--status")
        answer = subprocess.run(
            broker.tool_argv(self._java, main_class("metadata-quorum"), *arguments),
            env={"CLASSPATH": broker.class_path(self._jars)},
            capture_output=True,
            text=True,
            timeout=TOOL_S,
            check=False,
        )
        found = re.search(r"LeaderId:\s*(\d+)", answer.stdout)
        if found is None:
            raise ClusterError(f"nobody knows the controller: {answer.stdout} {answer.stderr}")
        return int(found[1])

    def log(self, number: int) -> str:
        """What a node has written."""
        return (self._data.logs / f"node-{number}.log").read_text("utf-8", errors="replace")

    # inside

    def _node(self, number: int, proxy: Proxy | None, edges: Sequence[str]) -> Node:
        made = {}
        for edge in edges:
            assert proxy is not None
            upstream = (HOST, self._ports[f"{edge}-{number}"])
            made[edge] = proxy.edge(f"{edge} to broker {number}", upstream, kafka=True)
        folder = self._data.folder(f"node-{number}")
        return Node(number=number, folder=folder, port=self._ports[f"broker-{number}"], edges=made)

    def _format(self) -> None:
        """One node by Kafka's tool, the others as copies of it with numbers of their own: a JVM less for each."""
        for node in self.nodes.values():
            settings = self._properties(node)
            text = "".join(f"{key}={value}\n" for key, value in settings.items())
            (node.folder / "server.properties").write_text(text, "utf-8")
            (node.folder / "log4j2.properties").write_text(broker.LOGGING, "utf-8")
        first, *others = self.nodes.values()
        broker.format_storage(self._java, self._jars, first.folder, cluster_id(self._data))
        for node in others:
            if not (node.folder / "data").exists():
                shutil.copytree(first.folder / "data", node.folder / "data")
                _renumber(node.folder / "data" / "meta.properties", node.number)

    def _properties(self, node: Node) -> dict[str, str]:
        count = len(self.nodes)
        voters = (f"{n}@{HOST}:{self._ports[f'controller-{n}']}" for n in self.nodes)
        listeners = {DIRECT: (node.port, node.port)}
        for at, (edge, made) in enumerate(node.edges.items()):
            listeners[f"EDGE{at}"] = (self._ports[f"{edge}-{node.number}"], made.port)
        controller = f"CONTROLLER://{HOST}:{self._ports[f'controller-{node.number}']}"
        return {
            **broker.BROKER_SETTINGS,
            **_copies(count),
            "node.id": str(node.number),
            "controller.quorum.voters": ",".join(voters),
            "controller.listener.names": "CONTROLLER",
            "inter.broker.listener.name": DIRECT,
            "listeners": ",".join(
                [*(f"{name}://{HOST}:{own}" for name, (own, _) in listeners.items()), controller]
            ),
            "advertised.listeners": ",".join(
                f"{name}://{HOST}:{told}" for name, (_, told) in listeners.items()
            ),
            "listener.security.protocol.map": ",".join(
                f"{name}:PLAINTEXT" for name in (*listeners, "CONTROLLER")
            ),
            "log.dirs": str(node.folder / "data"),
            **self._settings,
        }

    def _signal(self, number: int, how: signal.Signals) -> bool:
        node = self.nodes[number]
        process = node.process()
        if process is None or node.popen is None:
            return False
        send(process, how)
        try:
            node.popen.wait(STOP_S)
        except subprocess.TimeoutExpired:
            send(process, signal.SIGKILL)
            node.popen.wait(STOP_S)
        node.frozen = False
        return True

    def _ask(self, topic: str = "") -> Any:
        living = ",".join(f"{HOST}:{self.nodes[number].port}" for number in self.running())
        admin = AdminClient({"bootstrap.servers": living, "log_level": 0}, logger=quiet_logger())
        try:
            return admin.list_topics(topic or None, timeout=ASK_S)
        except KafkaException as error:
            raise ClusterError(error.args[0].str()) from error

    def _why_not_ready(self) -> str:
        running = self.running()
        for number in set(self.nodes) - set(running):
            popen = self.nodes[number].popen
            if popen is not None and popen.returncode not in {None, 0, -signal.SIGKILL, 143}:
                raise ClusterError(
                    f"node {number} ended with {popen.returncode}: {self.log(number)[-2_000:]}"
                )
        try:
            found = self._ask()
        except ClusterError as error:
            return str(error)
        if absent := set(running) - set(found.brokers):
            return f"nodes {sorted(absent)} do not serve"
        late = [
            f"{name}/{number}"
            for name, topic in found.topics.items()
            for number, partition in topic.partitions.items()
            if set(partition.replicas) & set(running) != set(partition.isrs) & set(running)
            or partition.leader not in running
        ]
        return f"{len(late)} partitions are behind, such as {late[0]}" if late else ""

    def _until(self, why_not: Callable[[], str], limit_ms: int) -> None:
        until_ms, pause = self._clock.monotonic_ms() + limit_ms, threading.Event()
        while why := why_not():
            if self._clock.monotonic_ms() > until_ms:
                raise ClusterError(f"not within {limit_ms} ms: {why}")
            pause.wait(POLL_S)


def _renumber(meta: Path, number: int) -> None:
    """Another node's, and another directory's: its id is 16 bytes in URL-safe base64, never with a dash in front."""
    made = base64.urlsafe_b64encode(b"\0" + secrets.token_bytes(15)).rstrip(b"=").decode()
    own = {"node.id": str(number), "directory.id": made}
    lines = [line.partition("=") for line in meta.read_text("utf-8").splitlines()]
    meta.write_text("".join(f"{key}{sign}{own.get(key, value)}\n" for key, sign, value in lines), "utf-8")


def _port_names(count: int, edges: Sequence[str]) -> list[str]:
    numbers = range(1, count + 1)
    return [f"{kind}-{number}" for number in numbers for kind in ("broker", "controller", *edges)]


def _copies(count: int) -> dict[str, str]:
    """As many copies as there are nodes, three at most; two in sync where there are three."""
    copies, in_sync = str(min(3, count)), "2" if count > 2 else "1"
    return {
        "default.replication.factor": copies,
        "min.insync.replicas": in_sync,
        "offsets.topic.replication.factor": copies,
        "transaction.state.log.replication.factor": copies,
        "transaction.state.log.min.isr": in_sync,
        "share.coordinator.state.topic.replication.factor": copies,
        "share.coordinator.state.topic.min.isr": in_sync,
    }
