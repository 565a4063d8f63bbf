"""Headers as the client gives them, or cannot."""

from __future__ import annotations

from typing import Any

import pytest

from laxity.schemas.kafka_headers import HeadersUnreadable, headers_of


class Read:
    """A record as the client hands it out."""

    def __init__(self, found: Any) -> None:
        self.found, self.asked = found, 0

    def headers(self) -> object:
        self.asked += 1
        if isinstance(self.found, type):
            raise self.found("returned a result with an exception set")
        return self.found


def test_pairs_in_order() -> None:
    assert headers_of(Read([("a", b"1"), ("a", None)])) == (("a", b"1"), ("a", None))
    assert headers_of(Read(None)) == ()
    assert headers_of(Read([])) == ()


@pytest.mark.parametrize("error", [SystemError])
def test_a_name_that_is_no_text_is_told_and_the_client_is_not_asked_again(error: type) -> None:
    read = Read(error)
    with pytest.raises(HeadersUnreadable):
        headers_of(read)
    assert read.asked == 1
