"""Error codes of the client that its public names leave out, and how to get at the error inside an exception."""

from __future__ import annotations

from confluent_kafka import KafkaError, KafkaException

PARTITION_EOF: int = KafkaError._PARTITION_EOF  # noqa: SLF001 - the client's own codes begin with an underscore
AUTO_OFFSET_RESET: int = KafkaError._AUTO_OFFSET_RESET  # noqa: SLF001
OUT_OF_RANGE = frozenset({AUTO_OFFSET_RESET, int(KafkaError.OFFSET_OUT_OF_RANGE)})
FENCED = frozenset({
    int(KafkaError._FENCED),  # noqa: SLF001
    int(KafkaError.INVALID_PRODUCER_EPOCH),
    90,  # PRODUCER_FENCED, which the client has no name for
})  # fmt: skip
DISOWNED = frozenset({
    int(KafkaError.UNKNOWN_MEMBER_ID),
    int(KafkaError.ILLEGAL_GENERATION),
    int(KafkaError.REBALANCE_IN_PROGRESS),
    110,  # FENCED_MEMBER_EPOCH
    113,  # STALE_MEMBER_EPOCH
})  # fmt: skip


def error_of(raised: KafkaException) -> KafkaError:
    """The error that the exception carries."""
    error: KafkaError = raised.args[0]
    return error
