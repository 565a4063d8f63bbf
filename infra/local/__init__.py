"""The local stack: Kafka, registry, Redis and our own processes on one machine, without Docker or root."""

from laxity.infra.local.endpoints import Endpoints, endpoints

__all__ = ["Endpoints", "endpoints"]
