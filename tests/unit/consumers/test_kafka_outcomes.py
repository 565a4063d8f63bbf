"""What the writer of outcomes does with what is no outcome."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from laxity.consumers.errors import Fail, NotWritten, Retry
from laxity.consumers.kafka_outcomes import KafkaOutcomes
from laxity.schemas.records import Outcome
from laxity.schemas.serde import Codec


class FakeProducer:
    """A topic with one partition; it must not be asked to write."""

    def list_topics(self, topic: str, **_: Any) -> Any:
        return SimpleNamespace(topics={topic: SimpleNamespace(error=None, partitions={0: None})})

    def poll(self, _timeout_s: float) -> None: ...

    def flush(self, _timeout_s: float) -> None: ...

    def produce(self, *_: Any, **__: Any) -> None:
        raise AssertionError("written")


@pytest.mark.parametrize(
    "wrong",
    [{"checkpoint": "text"}, {"usage": {"tokens_in": 2**70}}, {"code": 7}, {"code": "\ud800"}],
)
async def test_an_outcome_that_cannot_be_encoded_is_refused_for_good(wrong: dict[str, Any]) -> None:
    producer: Any = FakeProducer()
    loop = asyncio.get_running_loop()
    sink = KafkaOutcomes(producer, codec=Codec.local(), topic="outcomes", loop=loop, on_fatal=pytest.fail)
    sound: dict[str, Any] = {"kind": "yielded", "task_id": "t", "generation": 0, "dispatch_no": 1}
    try:
        with pytest.raises(NotWritten, match="no outcome") as refused:
            await sink.write(0, b"t", Outcome(**sound, attempt=1, runner="r", at_ms=1, **wrong))
        assert refused.value.permanent
    finally:
        sink.close()


@pytest.mark.parametrize("ending", [Retry, Fail])
@pytest.mark.parametrize("code", ["", 503, None])
def test_the_code_of_a_failure_is_a_word(ending: Any, code: Any) -> None:
    with pytest.raises(ValueError, match="code is"):
        ending(code)
