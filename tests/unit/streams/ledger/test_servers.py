"""Which servers are refused, which only warned of, and by what release each hole is closed."""

from typing import Any

import pytest
from chaos.one_redis import Server, running

from laxity.schemas.settings import SettingsError
from laxity.streams.ledger import servers
from laxity.streams.ledger.servers import Version, admit, judge, unpatched, version_of

AWAY = "redis://:secret@cache.example:6379/0"
HERE = "redis://127.0.0.1:6379/0"


@pytest.mark.parametrize(
    ("flavour", "version", "tls", "has", "safe_from"),
    [
        ("redis", (6, 2, 19), False, ["CVE-2025-49844"], "6.2.20"),
        ("redis", (6, 2, 20), False, [], ""),
        ("redis", (7, 0, 15), False, ["CVE-2025-49844"], "8.2.6"),
        ("redis", (7, 2, 10), False, ["CVE-2025-49844", "CVE-2026-23479"], "7.2.14"),
        ("redis", (7, 2, 13), False, ["CVE-2026-23479"], "7.2.14"),
        ("redis", (7, 2, 14), True, [], ""),
        ("redis", (8, 0, 4), False, ["CVE-2026-23479"], "8.6.3"),
        ("redis", (8, 6, 3), False, [], ""),
        ("redis", (8, 6, 3), True, ["CVE-2026-81934"], "8.6.6"),
        ("redis", (8, 8, 0), True, ["CVE-2026-81934"], "8.8.2"),
        ("redis", (8, 12, 0), True, [], ""),
        ("valkey", (8, 1, 3), False, ["CVE-2025-49844", "CVE-2026-23479", "CVE-2025-67733"], "8.1.7"),
        ("valkey", (8, 0, 8), False, ["CVE-2026-23479"], "8.0.9"),
        ("valkey", (9, 0, 1), False, ["CVE-2026-23479", "CVE-2025-67733"], "9.0.4"),
        ("valkey", (9, 1, 0), False, [], ""),
        ("valkey", (9, 1, 0), True, ["CVE-2026-56684"], "9.1.1"),
        ("valkey", (9, 1, 2), True, [], ""),
    ],
)
def test_holes_and_the_release_that_closes_them_all(
    flavour: str, version: Version, has: list[str], safe_from: str, *, tls: bool
) -> None:
    reason = unpatched(flavour, version, tls=tls)
    assert reason == (
        f"{flavour} {'.'.join(map(str, version))} has {', '.join(has)}; take {safe_from} or newer"
        if has
        else ""
    )


def test_the_release_that_is_advised_is_safe() -> None:
    for flavour in ("redis", "valkey"):
        for hole in servers.HOLES:
            for version in hole.fixed.get(flavour, ()):
                advised = unpatched(flavour, version, tls=True).partition("take ")[2].partition(" ")[0]
                if advised:
                    numbers = tuple(int(part) for part in advised.split("."))
                    assert not unpatched(flavour, (numbers[0], numbers[1], numbers[2]), tls=True)


def test_valkey_is_judged_by_its_own_version() -> None:
    assert version_of({"redis_version": "7.2.4", "valkey_version": "9.1.2"}) == ("valkey", (9, 1, 2))


@pytest.mark.parametrize(
    ("url", "version", "trusted", "problem", "fatal"),
    [
        (HERE, "7.0.15", "", True, False),
        (AWAY, "7.0.15", "", True, True),
        (AWAY, "7.0.15", "7.0.15", False, False),
        (AWAY, "7.0.15", "7.0.14", True, True),
        (AWAY, "8.6.3", "", False, False),
        (AWAY.replace("redis:", "rediss:"), "8.6.3", "", True, True),
        (HERE, "6.0.16", "6.0.16", True, True),
    ],
)
def test_a_hole_is_fatal_where_others_reach_it(
    url: str, version: str, trusted: str, *, problem: bool, fatal: bool
) -> None:
    found = judge(url, {"redis_version": version}, trusted=trusted)
    assert (bool(found.problem), found.fatal) == (problem, fatal)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with running(tmp_path_factory.mktemp("redis")) as one:
        yield one


@pytest.mark.integration
def test_start_up_asks_the_server(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    found = admit(server.url)
    assert found is not None
    assert not found.problem, "the stack's own server has no hole that we know"
    monkeypatch.setattr(servers, "unpatched", lambda *_, **__: "a hole")
    assert admit(server.url) == servers.Judgement(shown=found.shown, problem="a hole")
    monkeypatch.setattr(servers, "is_loopback", lambda _: False)
    with pytest.raises(SettingsError, match="Redis refused: a hole"):
        admit(server.url)
    assert admit(server.url, trusted=found.shown.partition(" ")[2]) is not None


def test_a_server_that_is_away_keeps_nobody_from_starting() -> None:
    assert admit("redis://127.0.0.1:1/0") is None
