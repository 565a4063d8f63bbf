"""laxity.toml: what it may say, what is said when it says something else, and which file counts."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from laxity.schemas import config
from laxity.schemas.config import ConfigError, Keyed, Rate, Slots, TaskType, load, parse
from laxity.schemas.topics import TIERS

FULL = """
policy = "strict"
[resources.llm]
kind = "rate"
requests_per_minute = 600
tokens_per_minute = 90_000
[resources.calls]
kind = "rate"
requests_per_minute = 3
[resources.exact]
kind = "rate"
tokens_per_minute = 60
burst_tokens = 60
[resources.browser]
kind = "slots"
capacity = 2
[resources.account]
kind = "keyed"
[fleets.gpu]
partitions = 3
[types."invoice.check"]
fleet = "gpu"
estimate_ms = 1000
max_attempts = 2
on_unknown = "retry"
backoff_ms = 5
backoff_ms_max = 6
demands = { llm = 90_000, "account:main" = 1 }
[tiers.critical]
deadline_ms = 1
floor = 0.301
[prices]
tokens_in = 3
tokens_out = 15
requests = 7
"""


def refusal(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(text, "f.toml")
    return str(caught.value)


def test_everything_that_can_be_said() -> None:
    found = parse(FULL)
    assert found.policy == "strict"
    assert found.resources["llm"] == Rate(
        name="llm", requests_per_minute=600, tokens_per_minute=90_000, burst_requests=100, burst_tokens=15_000
    )
    assert found.resources["calls"] == Rate(
        name="calls", requests_per_minute=3, tokens_per_minute=0, burst_requests=1, burst_tokens=0
    ), "a burst of less than one call would never let one through"
    assert found.resources["exact"].burst_tokens == 60  # type: ignore[union-attr]
    assert found.resources["browser"] == Slots(name="browser", capacity=2)
    assert found.resources["account"] == Keyed(name="account", capacity=1)
    assert found.resource_of("account:acme") is found.resources["account"]
    assert found.resource_of("nobody") is None
    assert found.fleets["gpu"].partitions == 3
    assert found.fleets["default"].partitions == 16, "the default fleet is always there"
    assert found.type_of("invoice.check") == TaskType(
        name="invoice.check",
        fleet="gpu",
        estimate_ms=1000,
        max_attempts=2,
        on_unknown="retry",
        backoff_ms=5,
        backoff_ms_max=6,
        demands={"llm": 90_000, "account:main": 1},
    )
    assert found.tier("critical").floor_permille == 301
    assert found.tier("critical").deadline_ms == 1
    assert found.prices.cost_micros({"tokens_in": 2, "tokens_out": 1, "requests": 1, "other": 9}) == 28


def test_the_defaults_are_those_of_the_contract() -> None:
    found = parse("")
    assert found.policy == "edf"
    assert [t.name for t in found.tiers] == list(TIERS) == ["critical", "high", "normal", "low", "background"]
    assert [t.index for t in found.tiers] == [0, 1, 2, 3, 4]
    assert [t.deadline_ms for t in found.tiers] == [30_000, 120_000, 600_000, 3_600_000, 86_400_000]
    assert [t.floor_permille for t in found.tiers] == [400, 250, 200, 100, 50]
    unknown = found.type_of("never heard of")
    assert dataclasses.asdict(unknown) == {
        "name": "never heard of",
        "fleet": "default",
        "estimate_ms": 0,
        "max_attempts": 4,
        "on_unknown": "park",
        "backoff_ms": 1_000,
        "backoff_ms_max": 60_000,
        "demands": {},
    }


def test_the_packaged_file_shows_the_defaults() -> None:
    packaged, bare = parse(config.packaged_text()), parse("")
    assert packaged.tiers == bare.tiers
    assert packaged.fleets == bare.fleets
    assert packaged.policy == bare.policy


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("polcy = 'edf'", "f.toml: polcy: unknown key; did you mean 'policy'?"),
        ("policy = 'llf'", "policy: Input should be 'edf' or 'strict' (is 'llf')"),
        ("x =", "f.toml: not TOML"),
        ("[resource.x]\nkind='slots'", "resource: unknown key; did you mean 'resources'?"),
        (
            "[resources.x]\nkind='rate'\ntoken_per_minute=3",
            "token_per_minute: unknown key; did you mean 'tokens_per_minute'?",
        ),
        ("[resources.x]\nkind='rate'", "resources.x: needs requests_per_minute or tokens_per_minute above 0"),
        (
            "[resources.x]\nkind='rate'\ntokens_per_minute=6\nburst_tokens=7",
            "burst_tokens 7 is more than tokens_per_minute 6",
        ),
        (
            "[resources.x]\nkind='rate'\ntokens_per_minute=-1",
            "tokens_per_minute: Input should be greater than or equal to 0",
        ),
        (
            "[resources.x]\nkind='rate'\ntokens_per_minute=9007199254740992",
            "less than or equal to 9007199254740991",
        ),
        ("[resources.x]\nkind='rate'\ntokens_per_minute=1.5", "valid integer"),
        ("[resources.x]\nkind='rate'\ntokens_per_minute=true", "valid integer"),
        ("[resources.x]\nkind='slots'\ncapacity=0", "greater than or equal to 1 (is 0)"),
        ("[resources.x]\nkind='slots'", "resources.x.capacity: is missing"),
        ("[resources.x]\nkind='slots'\ncapacity='3'", "valid integer"),
        ("[resources.x]\nkind='spend'\nmicros=3", "resources.x: kind 'spend' comes in a later version"),
        ("[resources.x]\nkind='slotz'", "'rate', 'slots', 'keyed'"),
        ("[resources.'a b']\nkind='keyed'", "resources.a b"),
        ("[resources.'a:b']\nkind='keyed'", "resources.a:b"),
        ("[resources.'fleet.x']\nkind='keyed'", "fleets' own slots"),
        ("[fleets.A_b]", "fleets.A_b"),
        ("[fleets.x]\npartitions=0", "greater than or equal to 1"),
        ("[fleets.x]\npartition=1", "did you mean 'partitions'?"),
        ("[types.x]\nfleet='defualt'", "types.x.fleet: 'defualt' is not a fleet; did you mean 'default'?"),
        ("[types.x]\ndemands={llm=3}", "unknown resource"),
        (
            "[resources.x]\nkind='slots'\ncapacity=2\n[types.t]\ndemands={x=3}",
            "demand over capacity (limit: 2)",
        ),
        ("[types.x]\non_unknown='ignore'", "'retry', 'reconcile' or 'park'"),
        ("[types.x]\nmax_attempts=0", "greater than or equal to 1"),
        ("[types.x]\nbackoff_ms=9\nbackoff_ms_max=8", "backoff_ms 9 is more than backoff_ms_max 8"),
        ("[types.x]\nestimate_ms=43200001", "less than or equal to 43200000"),
        ("[types.'a b']", "types.a b"),
        ("[tiers.urgent]", "tiers.urgent: unknown key; known are background, critical, high, low, normal"),
        ("[tiers.critical]\nfloor=0.401", "tiers: the floors add up to 1.001, limit 1"),
        ("[tiers.critical]\nfloor=0.1234", "3 decimal places"),
        ("[tiers.critical]\nfloor=-0.1", "greater than or equal to 0"),
        ("[tiers.critical]\nfloor=nan", "tiers.critical.floor"),
        ("[tiers.critical]\ndeadline_ms=604800001", "less than or equal to 604800000"),
        ("[prices]\ntokens=3", "prices.tokens: unknown key"),
    ],
)
def test_what_is_refused_and_how(text: str, says: str) -> None:
    assert says in refusal(text)


def test_all_problems_are_told_at_once() -> None:
    assert refusal("policy = 'x'\n[fleets.x]\npartitions=0\n[tiers.low]\nfloor=2\n").count("\n") == 2


def test_the_fingerprint_is_of_the_meaning() -> None:
    reordered = "[prices]\nrequests=7\ntokens_out=15\ntokens_in=3\n# note"
    short = "[prices]\ntokens_in=3\ntokens_out=15\nrequests=7"
    assert parse(reordered, "a").fingerprint() == parse(short, "b").fingerprint()
    assert parse(reordered, "a") == parse(short, "b")
    assert parse("").fingerprint() != parse(short).fingerprint()
    assert len(parse("").fingerprint()) == 64
    changes = (
        "policy='strict'",
        "[tiers.low]\nfloor=0.09",
        "[fleets.x]",
        "[types.x]",
        "[resources.x]\nkind='keyed'",
    )
    assert len({parse(text).fingerprint() for text in ("", *changes)}) == 1 + len(changes)


def test_nothing_can_be_changed_afterwards() -> None:
    found = parse(FULL)
    with pytest.raises(TypeError):
        found.resources["x"] = found.resources["llm"]  # type: ignore[index]
    with pytest.raises(TypeError):
        found.type_of("invoice.check").demands["llm"] = 1  # type: ignore[index]
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.policy = "edf"  # type: ignore[misc]


def test_which_file_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load(env={}).source == "packaged laxity.toml"
    (tmp_path / "laxity.toml").write_text("[fleets.here]", encoding="utf-8")
    (tmp_path / "env.toml").write_text("[fleets.env]", encoding="utf-8")
    (tmp_path / "flag.toml").write_text("policy='strict'\n[fleets.flag]", encoding="utf-8")
    env = {"LAXITY_CONFIG": str(tmp_path / "env.toml")}
    assert set(load(env={}).fleets) == {"default", "here"}
    assert set(load(env={"LAXITY_CONFIG": ""}).fleets) == {"default", "here"}
    assert set(load(env=env).fleets) == {"default", "env"}
    assert set(load(tmp_path / "flag.toml", env=env).fleets) == {"default", "flag"}
    assert load(tmp_path / "flag.toml", env={"LAXITY_POLICY": "edf"}).policy == "edf"
    with pytest.raises(ConfigError, match="policy: Input should be 'edf' or 'strict'"):
        load(env={"LAXITY_POLICY": "fifo"})


def test_a_named_file_is_never_replaced_by_another(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml: cannot be read"):
        load(tmp_path / "nowhere.toml", env={})
    with pytest.raises(ConfigError, match="cannot be read"):
        load(env={"LAXITY_CONFIG": str(tmp_path)})
    (tmp_path / "latin.toml").write_bytes(b"# \xe9")
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path / "latin.toml", env={})
