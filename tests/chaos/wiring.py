"""A world whose processes reach their servers through a proxy: an edge per process and server, so that each can be disturbed alone."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit, urlunsplit

from chaos.brokers import Brokers
from chaos.proxy import CLEAR, Edge, Proxy, Weather

from laxity.infra.local.endpoints import Endpoints

KAFKA, REDIS, PROVIDER = "kafka", "redis", "provider"


@dataclass(slots=True, kw_only=True)
class Wiring:
    """`route` is what a Plan wants. `through`: the processes with edges of their own; all others go past the proxy."""

    proxy: Proxy
    brokers: Brokers
    through: Sequence[str]
    servers: Sequence[str] = (KAFKA, REDIS, PROVIDER)  # those that are reached through the proxy
    _made: dict[tuple[str, str], Edge] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def route(self, name: str, servers: Endpoints) -> Endpoints:
        """Addresses of one process. Called at each of its starts, from any thread."""
        if name not in self.through:
            return servers
        return Endpoints(
            kafka=self.brokers.bootstrap(name) if KAFKA in self.servers else servers.kafka,
            registry=servers.registry,
            redis=self._url(name, REDIS, servers.redis),
            provider=self._url(name, PROVIDER, servers.provider),
        )

    def edges(self, name: str, server: str) -> list[Edge]:
        """From a process to a server: one edge per broker, or the only one; none before its first start."""
        if server == KAFKA:
            return self.brokers.edges(name)
        with self._lock:
            found = self._made.get((name, server))
        return [] if found is None else [found]

    def connections(self, name: str, server: str) -> int:
        """Open between them now."""
        return sum(edge.connections() for edge in self.edges(name, server))

    def turn(self, name: str, server: str, weather: Weather) -> None:
        """Change the weather between them."""
        for edge in self.edges(name, server):
            edge.turn(weather)

    def strand(self, name: str, server: str) -> int:
        """Leave their connections of now half-open; how many there were."""
        return sum(edge.strand() for edge in self.edges(name, server))

    def heal(self) -> None:
        """Clear weather everywhere, and no trap left."""
        for edge in list(self.proxy.edges.values()):
            edge.turn(CLEAR)
            edge.disarm()

    def counts(self) -> Mapping[str, int]:
        """Sums over all edges, for a report."""
        every = [edge.counts() for edge in list(self.proxy.edges.values())]
        names = ("accepted", "refused", "unreachable", "reset", "stranded")
        return {name: sum(getattr(counts, name) for counts in every) for name in names}

    def _url(self, name: str, server: str, url: str) -> str:
        """The same with the proxy's address in it."""
        if server not in self.servers:
            return url
        parts = urlsplit(url)
        assert parts.hostname is not None
        assert parts.port is not None
        with self._lock:
            if (name, server) not in self._made:
                upstream = (parts.hostname, parts.port)
                self._made[name, server] = self.proxy.edge(f"{name} to {server}", upstream)
            address = self._made[name, server].address
        user, at, _ = parts.netloc.rpartition("@")
        return urlunsplit(parts._replace(netloc=f"{user}{at}{address}"))
