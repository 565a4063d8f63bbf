"""The headers of a record that was read, where the client can give them at all."""

from __future__ import annotations

from collections.abc import Sequence
from operator import methodcaller
from typing import Protocol

_checked = methodcaller("headers")
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

    The client breaks off with an error set and a list returned. Python notices that only where a call is checked: a plain method call that
    has run often is not, and the error would come up anywhere later. Asked a second time the client hands out a pair without a name: so it
    is asked once.
    """
    try:
        found = _checked(message)
    except (SystemError, UnicodeDecodeError) as error:
        raise HeadersUnreadable("a header's name is no UTF-8") from error
    return tuple(found) if isinstance(found, list) else ()
