"""The document of `laxity status --json`."""

from typing import Any

from laxity.infra.local.data_dir import DataDir, read_record
from laxity.infra.local.endpoints import supervisor_of
from laxity.schemas.masking import masked


def describe(data: DataDir) -> tuple[bool, dict[str, Any]]:
    """Whether a supervisor runs in the data directory, and what its record says. Passwords in addresses are masked."""
    record = read_record(data)
    if record is None or supervisor_of(record) is None:
        nowhere = dict.fromkeys(("kafka", "registry", "redis", "provider"))
        return False, {
            "data_dir": str(data.root),
            "ready": False,
            "endpoints": nowhere,
            "processes": [],
            "provider_ledger": None,
        }
    return True, {
        "data_dir": str(data.root),
        "ready": record["ready"],
        "endpoints": {name: masked(address) or None for name, address in record["endpoints"].items()},
        "processes": [{key: row[key] for key in row if key != "id"} for row in record["processes"]],
        "provider_ledger": record["provider_ledger"],
    }
