"""Hashes of stopped stores, and ranges of inputs read on from where they were."""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from laxity.infra.inspect.errors import InspectError
from laxity.infra.inspect.hashes import hashes_under
from laxity.infra.inspect.inputs import ShardInputs
from laxity.infra.inspect.reading import Reader, Span
from laxity.schemas.records import InputRange, Trigger
from laxity.schemas.topics import Names
from laxity.streams.state import keys
from laxity.streams.state.restore import Position, position_writes
from laxity.streams.state.rocks import RocksStore
from laxity.streams.state.store import Write
from laxity.streams.testing import TopologyTestDriver

NOW_MS = 1_700_000_000_000


def rows() -> list[Write]:
    """Of a real shard, changelogged and derived."""
    driver = TopologyTestDriver()
    for n in range(5):
        driver.pipe("low", Trigger(type="work", key=f"k{n}", not_before_ms=NOW_MS + 60_000))
    return list(driver.disks[0].state.scan(b"", keys.MAX_KEY))


def put(folder: Path, writes: Sequence[Write], offset: int = 7) -> None:
    store = RocksStore(folder)
    for write in writes:
        store.write([write])
    store.write(position_writes(Position(topic_id="topic", next=offset), NOW_MS))
    store.close()


def test_equal_rows_have_equal_hashes_whatever_else_the_stores_hold(tmp_path: Path) -> None:
    written = [write for write in rows() if not write[0].startswith(keys.HOST)]
    changelogged = [write for write in written if keys.is_changelogged(write[0])]
    assert len(changelogged) < len(written)
    put(tmp_path / "0" / "shard-3" / "state", written)
    put(
        tmp_path / "1" / "shard-3" / "state",
        [*reversed(changelogged), (keys.state_key("task", b"gone"), b"x")],
    )
    put(
        tmp_path / "1" / "shard-3" / "state",
        [(keys.state_key("task", b"gone"), None), (b"~mine", b"x")],
        offset=9,
    )
    one, two = hashes_under(tmp_path)
    assert (one.shard, one.state.offset, two.state.offset) == (3, 7, 9)
    assert one.state.rows == two.state.rows == len(changelogged)
    assert one.state.sha256 == two.state.sha256
    assert one.document()["state"]["topic_id"] == "topic"


@pytest.mark.parametrize(
    "change", [(keys.state_key("task", b"more"), b""), (keys.state_key("shard", keys.SHARD_KEY), b"x")]
)
def test_any_other_row_has_another_hash(tmp_path: Path, change: Write) -> None:
    put(tmp_path / "shard-0" / "state", rows())
    (before,) = hashes_under(tmp_path)
    put(tmp_path / "shard-0" / "state", [change])
    (after,) = hashes_under(tmp_path)
    assert before.state.sha256 != after.state.sha256


def test_a_shard_without_a_key_store_is_shown_and_not_made(tmp_path: Path) -> None:
    put(tmp_path / "shard-0" / "state", rows())
    (found,) = hashes_under(tmp_path)
    assert (found.keys.offset, found.keys.rows) == (None, 0)
    assert not (tmp_path / "shard-0" / "keys").exists()


def test_a_store_in_use_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "shard-0" / "state"
    code = (
        "import sys; from pathlib import Path; from laxity.streams.state.rocks import RocksStore\n"
        f"store = RocksStore(Path({str(folder)!r})); store.write([(b't', b'')]); print('open', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdin is not None
        assert holder.stdout.readline() == "open\n"
        with pytest.raises(InspectError, match="is in use") as refused:
            hashes_under(tmp_path)
        assert refused.value.next_step == "laxity stop scheduler"
        holder.stdin.close()


def test_no_store_is_told(tmp_path: Path) -> None:
    (tmp_path / "shard-0").mkdir()
    (tmp_path / "shard-x" / "state").mkdir(parents=True)
    with pytest.raises(InspectError, match="no shard has its state"):
        hashes_under(tmp_path)
    assert not (tmp_path / "shard-0" / "state").exists()


# inputs


class Message:
    def __init__(self, offset: int) -> None:
        self._offset = offset

    def offset(self) -> int:
        return self._offset

    def partition(self) -> int:
        return 1

    def timestamp(self) -> tuple[int, int]:
        return 2, NOW_MS

    def key(self) -> bytes:
        return b"k"

    def value(self) -> bytes:
        return str(self._offset).encode()

    def headers(self) -> None:
        return None


class FakeReader:
    """A partition with gaps, as markers leave them."""

    def __init__(self, offsets: Sequence[int]) -> None:
        self._offsets, self.reads, self.closed = offsets, 0, False

    def whole(self, topics: Sequence[str], partition: int | None) -> list[Span]:
        assert partition is not None
        return [Span(topic=topics[0], partition=partition, start=2, end=max(self._offsets) + 2)]

    def read(self, spans: Sequence[Span]) -> Iterator[Any]:
        self.reads += 1
        return (Message(o) for o in self._offsets if spans[0].start <= o < spans[0].end)

    def close(self) -> None:
        self.closed = True


def moved(first: int, end: int, topic: str = "outcomes") -> InputRange:
    return InputRange(topic=topic, partition=1, first=first, next=end, count=0)


def test_ranges_are_read_on_and_back() -> None:
    made: list[FakeReader] = []

    def make() -> Reader:
        made.append(FakeReader([2, 3, 5, 8, 9]))
        return cast("Reader", made[-1])

    inputs = ShardInputs(make, Names())

    def offsets(first: int, end: int) -> list[int]:
        return [record.offset for record in inputs.read(moved(first, end))]

    assert offsets(0, 3) == [2]
    assert offsets(3, 5) == [3]
    assert offsets(5, 5) == []
    assert offsets(5, 9) == [5, 8]
    assert made[0].reads == 1, "each record is read once"
    assert offsets(9, 12) == [9]
    assert offsets(12, 15) == []
    assert offsets(3, 9) == [3, 5, 8], "an operator's reset reads again"
    assert made[0].reads == 2
    (record,) = inputs.read(moved(2, 3, "links"))
    assert (record.topic, record.partition, record.value, record.headers) == ("links", 1, b"2", ())
    assert len(made) == 2, "one reader per topic"
    inputs.close()
    assert all(reader.closed for reader in made)
