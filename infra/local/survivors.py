"""Processes that outlived their supervisor and even the leash: ended before anything new starts."""

from laxity.infra.local.data_dir import DataDir, read_record
from laxity.infra.local.pids import ProcessId, end_all

GRACE_MS = 6_000  # as the leash


def recorded(data: DataDir) -> list[ProcessId]:
    """Children in the last record, alive or not."""
    record = read_record(data) or {"processes": []}
    return [ProcessId(**row["id"]) for row in record["processes"] if row["id"]]


def end_survivors(data: DataDir) -> int:
    """End recorded children that still run, by pid and start time, and drop the record; returns how many."""
    count = end_all(recorded(data), grace_ms=GRACE_MS)
    data.record_file.unlink(missing_ok=True)
    return count
