"""Triggers: what asks for work."""

if __name__ != "laxity.producers":
    raise ImportError("import laxity.producers: under its bare name every class would exist twice")

from laxity.producers.publisher import (
    AsyncPublisher,
    InvalidTrigger,
    Published,
    Publisher,
    PublishFailed,
    trigger_of,
)

__all__ = ["AsyncPublisher", "InvalidTrigger", "PublishFailed", "Published", "Publisher", "trigger_of"]
