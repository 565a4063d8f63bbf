"""The Lua files as they ship."""

import re
from importlib import resources

import pytest

from laxity.streams.ledger.scripts import DECISIONS, keys, script
from laxity.streams.reasons import Reason

FILES = {f.name.removesuffix(".lua"): f.read_text("utf-8") for f in resources.files("laxity.streams.ledger.lua").iterdir() if f.name.endswith(".lua")}  # fmt: skip
PARTS = {"base", "counts", "books"}


def test_one_file_per_decision() -> None:
    assert set(FILES) == PARTS | set(DECISIONS)


@pytest.mark.parametrize("decision", DECISIONS)
def test_the_header_lists_arguments_and_returns(decision: str) -> None:
    header = FILES[decision].split("\n\n")[0]
    assert "-- ARGV " in header
    assert "-- returns {" in header


@pytest.mark.parametrize("name", sorted(FILES))
def test_no_call_walks_over_all_keys(name: str) -> None:
    assert not re.search(r"call\('(KEYS|SCAN|HSCAN|ZSCAN|SSCAN|EVAL|FLUSH\w*)'", FILES[name])


def test_keys_are_declared_and_share_a_hash_tag() -> None:
    assert all(key.startswith("laxity.{ledger}:") for key in keys("laxity."))
    assert max(int(number) for number in re.findall(r"KEYS\[(\d+)\]", FILES["base"])) == len(keys("laxity."))
    assert not any("KEYS[" in text for name, text in FILES.items() if name != "base")


def test_every_reason_of_the_ledger_is_given_by_a_script() -> None:
    """The other way round, a word that is no Reason is an error where replies are read."""
    quoted = set(re.findall(r"'([a-z_]+)'", FILES["counts"] + FILES["reserve"] + FILES["call"]))
    assert quoted >= {
        Reason.RECOVERING, Reason.GONE, Reason.CANCELLED, Reason.UNKNOWN_RESOURCE, Reason.OVER_CAPACITY,
        Reason.SLOTS_FULL, Reason.KEY_BUSY, Reason.RATE_REQUESTS, Reason.RATE_TOKENS, Reason.CALLS_FIRST,
        Reason.FLEET_FULL, Reason.NO_RUNNER,
    }  # fmt: skip


def test_a_script_is_named_by_its_text() -> None:
    shas = {script(decision).sha for decision in DECISIONS}
    assert len(shas) == len(DECISIONS)
    assert all(re.fullmatch("[0-9a-f]{40}", sha) for sha in shas)
