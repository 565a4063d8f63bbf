"""Effects as Kafka records: changelog rows first, then outputs, all on their way through one transaction."""

from __future__ import annotations

from dataclasses import dataclass

from laxity.schemas.serde import Codec
from laxity.streams.effects import Effects
from laxity.streams.runtime.transactions import Message
from laxity.streams.state.changelog import KEYS, STATE, keys_row, state_row


@dataclass(frozen=True, slots=True, kw_only=True)
class Outbox:
    """Names, framing and partition of one shard."""

    prefix: str
    shard: int
    codec: Codec

    @property
    def state_topic(self) -> str:
        """Full name of the changelog of the tables."""
        return self.prefix + STATE

    @property
    def keys_topic(self) -> str:
        """Full name of the changelog of the idempotency keys."""
        return self.prefix + KEYS

    def messages(self, effects: Effects) -> list[Message]:
        """All records of a batch, in order."""
        codec, prefix, shard = self.codec, self.prefix, self.shard
        found = [Message(self.state_topic, shard, *state_row(change, codec)) for change in effects.state]
        found += [Message(self.keys_topic, shard, *keys_row(change, codec)) for change in effects.keys]
        for out in effects.outputs:
            framed = (
                out.value if out.schema is None or out.value is None else codec.frame(out.schema, out.value)
            )
            found.append(Message(prefix + out.topic, out.partition, out.key, framed, out.headers))
        return found
