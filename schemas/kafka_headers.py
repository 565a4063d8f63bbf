"""The headers of a record that was read, where the client can give them at all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

Headers = Sequence[tuple[str, bytes | None]]


class _Message(Protocol):
    """A record as the client hands it out."""

    def headers(self) -> object:
        """Pairs in order, or None."""
        ...


class HeadersUnreadable(Exception):  # noqa: N818 - a fact about the record
    """A header's name is no UTF-8, which Kafka does not forbid."""


def headers_of(message: _Message) -> Headers:
    """As pairs, in order. HeadersUnreadable for the whole record where one name is no UTF-8.

    The client breaks off with a SystemError then. Asked a second time it would hand out a pair without a name: so it is asked once.
    """
    try:
        found = message.headers()
    except (SystemError, UnicodeDecodeError) as error:
        raise HeadersUnreadable("a header's name is no UTF-8") from error
    return tuple(found) if isinstance(found, list) else ()
