"""Addresses of a stack, and how any command finds those of a running one."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from laxity.infra.local.data_dir import DataDir, read_record
from laxity.infra.local.pids import ProcessId, is_alive


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoints:
    """Where the servers are; an empty text means that the stack has none of that kind."""

    kafka: str = ""  # bootstrap servers
    registry: str = ""  # base URL with its path
    redis: str = ""  # URL with its password
    provider: str = ""

    def environment(self) -> dict[str, str]:
        """As LAXITY_ variables, for processes that shall use this stack."""
        named = {
            "LAXITY_KAFKA": self.kafka,
            "LAXITY_REGISTRY_URL": self.registry,
            "LAXITY_REDIS_URL": self.redis,
            "LAXITY_PROVIDER_URL": self.provider,
        }
        return {name: value for name, value in named.items() if value}


def supervisor_of(record: dict[str, Any] | None) -> ProcessId | None:
    """The supervisor that wrote the record, if it lives."""
    if record is None:
        return None
    process = ProcessId(**record["supervisor"])
    return process if is_alive(process) else None


def endpoints(data_dir: Path) -> Endpoints | None:
    """Addresses of the stack that runs in the data directory; None if none does. Quick: reads one file."""
    record = read_record(DataDir.at(data_dir))
    if record is None or supervisor_of(record) is None:
        return None
    return Endpoints(**record["endpoints"])
