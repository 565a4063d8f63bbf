"""The headers that say of a dispatch whose it is."""

from __future__ import annotations

import pytest

from laxity.schemas.addresses import Address, address_in, headers_of

ADDRESS = Address(shard=3, task_id="0123456789abcdef" * 2, generation=2, dispatch_no=17)


def test_what_is_written_is_what_is_read() -> None:
    assert address_in([("foreign", b"x"), *headers_of(ADDRESS, "high")]) == ADDRESS


@pytest.mark.parametrize(
    "changed",
    [
        {"laxity-shard": None},
        {"laxity-shard": b"-1"},
        {"laxity-shard": b"\xb2"},
        {"laxity-shard": b"9" * 40},
        {"laxity-reservation": b""},
        {"laxity-reservation": b"0123:0:1"},
        {"laxity-reservation": b"0123456789abcdef" * 2 + b":0:1:2"},
        {"laxity-reservation": b"0123456789abcdef" * 2 + b":0:" + b"9" * 40},
    ],
)
def test_headers_that_are_none_of_ours_say_nothing(changed: dict[str, bytes | None]) -> None:
    headers = dict(headers_of(ADDRESS, "high")) | changed
    assert address_in(headers.items()) is None


def test_a_dispatch_without_headers_says_nothing() -> None:
    assert address_in([]) is None
