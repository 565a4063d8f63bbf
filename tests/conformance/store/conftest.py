"""Both stores, behind one fixture."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from laxity.streams.state.memory import MemoryStore
from laxity.streams.state.rocks import RocksStore
from laxity.streams.state.store import Store


@pytest.fixture(params=["memory", "rocks"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    made: Store = MemoryStore() if request.param == "memory" else RocksStore(tmp_path / "store")
    yield made
    made.close()
