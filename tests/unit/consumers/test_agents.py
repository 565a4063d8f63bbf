"""Declaring and loading agents: what is wrong is said at import time, with the agent's name."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from laxity.consumers import AgentContext, AgentDefinitionError, agent
from laxity.consumers.errors import AgentLoadError, RunnerConfigError
from laxity.consumers.loading import check_against, load_agents, of_fleet
from laxity.consumers.payloads import JSON
from laxity.schemas import config as configuration


async def no_context() -> None: ...
async def three(ctx: AgentContext, a: int, b: int) -> None: ...
async def keyword(ctx: AgentContext, *, a: int) -> None: ...
async def wrong_context(ctx: int, a: int) -> None: ...
async def no_result(ctx: AgentContext):  # type: ignore[no-untyped-def]  # noqa: ANN201 - that is the point
    ...


async def unknown_name(ctx: AgentContext, a: Nowhere) -> None: ...  # type: ignore[name-defined]  # noqa: F821
async def not_a_type(ctx: AgentContext, a: object()) -> None: ...  # type: ignore[valid-type]
async def generator(ctx: AgentContext) -> AsyncIterator[int]:
    yield 1


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (no_context, "takes nothing; it must take (ctx) or (ctx, payload)"),
        (three, "takes ctx, a, b"),
        (keyword, "takes ctx, a"),
        (wrong_context, "the first parameter is the AgentContext"),
        (no_result, "no return annotation"),
        (unknown_name, "Nowhere"),
        (not_a_type, "payload a"),
        (generator, "generator"),
        (AgentContext, "decorate a function"),
    ],
)
def test_a_wrong_declaration_is_an_error_that_names_the_agent(
    function: Callable[..., Any], words: str
) -> None:
    with pytest.raises(AgentDefinitionError) as caught:
        agent("my.type")(function)
    assert "agent 'my.type'" in str(caught.value)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"type": "a b"}, "type is 'a b'"),
        ({"type": ""}, "type is ''"),
        ({"type": "x" * 129}, "at most 128"),
        ({"type": "t", "fleet": "GPU"}, "fleet is 'GPU'"),
        ({"type": "t", "on_unknown": "hope"}, "on_unknown is 'hope', one of retry, reconcile, park"),
    ],
)
def test_names_are_vetted(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(AgentDefinitionError, match="agent") as caught:
        agent(**arguments)
    assert words in str(caught.value)


def test_the_decorator_without_a_type_says_what_to_write() -> None:
    with pytest.raises(AgentDefinitionError, match=r'write @agent\("three"\)'):
        agent(three)  # type: ignore[arg-type]


def test_defaults_beyond_the_payload_are_allowed_and_the_function_stays_callable() -> None:
    @agent("sum")
    def add(ctx: AgentContext, a: int, b: int = 2) -> int:
        return a + b

    assert add.takes_payload
    assert add(None, 1) == 3  # type: ignore[arg-type]
    assert add.decode(b"41", JSON) == 41


def test_one_reconcile_function_with_the_agents_parameters() -> None:
    @agent("pay")
    async def pay(ctx: AgentContext, amount: int) -> int:
        return amount

    with pytest.raises(AgentDefinitionError, match="must take the parameters of the agent"):

        @pay.reconcile
        async def wrong(ctx: AgentContext) -> int:
            return 0

    @pay.reconcile
    async def ask(ctx: AgentContext, amount: int) -> int:
        return amount

    with pytest.raises(AgentDefinitionError, match="two reconcile functions"):
        pay.reconcile(ask)


HEAD = "from laxity.consumers import AgentContext, agent\n"


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Writes a module and returns its name."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(text: str) -> str:
        name = f"made_{len(list(tmp_path.iterdir()))}_{tmp_path.name.replace('-', '_')}"
        (tmp_path / f"{name}.py").write_text(HEAD + textwrap.dedent(text))
        monkeypatch.delitem(sys.modules, name, raising=False)
        return name

    return write


TWO = """
@agent("a")
async def first(ctx: AgentContext) -> None: ...

@agent("b", fleet="gpu")
async def second(ctx: AgentContext) -> None: ...

again = first
both = [first, second]
number = 7
"""


def test_a_module_offers_all_it_holds_or_the_named_ones(module: Callable[[str], str]) -> None:
    name = module(TWO)
    assert set(load_agents(name)) == {"a", "b"}
    assert set(load_agents(f"{name}:second")) == {"b"}
    assert set(load_agents(f"{name}:both")) == {"a", "b"}


@pytest.mark.parametrize(
    ("text", "suffix", "words"),
    [
        ("x = 1", "", "no agent there"),
        (TWO, ":third", "no such name"),
        (TWO, ":number", "is a int, no agent"),
        ("import nowhere_at_all", "", "no module 'nowhere_at_all'"),
        ("1 / 0", "", "ZeroDivisionError"),
    ],
)
def test_what_cannot_be_loaded_is_named(
    module: Callable[[str], str], text: str, suffix: str, words: str
) -> None:
    name = module(text) + suffix
    with pytest.raises(AgentLoadError) as caught:
        load_agents(name)
    assert name.partition(":")[0] in str(caught.value)
    assert words.replace("no module", "importing it failed: No module named") in str(caught.value)


def test_a_module_that_is_not_there() -> None:
    with pytest.raises(AgentLoadError, match="there is no module 'not_there'"):
        load_agents("not_there")
    with pytest.raises(AgentLoadError, match="write MODULE"):
        load_agents(":x")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            '@agent("a")\nasync def one(ctx: AgentContext) -> None: ...\n@agent("a")\nasync def two(ctx: AgentContext) -> None: ...',
            "declared twice",
        ),
        ('@agent("a", on_unknown="reconcile")\nasync def one(ctx: AgentContext) -> None: ...', "@one.reconcile"),
    ],
)  # fmt: skip
def test_what_is_wrong_only_together(module: Callable[[str], str], text: str, words: str) -> None:
    name = module(text)
    with pytest.raises(AgentDefinitionError, match="agent 'a'") as caught:
        load_agents(name)
    assert words in str(caught.value)


def test_one_process_serves_one_fleet(module: Callable[[str], str]) -> None:
    agents = load_agents(module(TWO))
    with pytest.raises(RunnerConfigError, match="default, gpu: choose one with --fleet"):
        of_fleet(agents, None)
    assert of_fleet(agents, "gpu")[0] == "gpu"
    assert set(of_fleet(agents, "gpu")[1]) == {"b"}
    with pytest.raises(RunnerConfigError, match="'cpu' has no agent here"):
        of_fleet(agents, "cpu")


@agent("pay", on_unknown="retry", fleet="gpu")
async def pay(ctx: AgentContext) -> None: ...


@pytest.mark.parametrize(
    ("toml", "words"),
    [
        ("", "fleet 'gpu' is not in"),
        ("[fleets.gpu]", "says 'default': write [types.pay] fleet = \"gpu\""),
        ('[fleets.gpu]\n[types.pay]\nfleet = "gpu"', 'write [types.pay] on_unknown = "retry"'),
        ('[fleets.gpu]\n[types.pay]\nfleet = "gpu"\non_unknown = "retry"', ""),
    ],
)
def test_agents_must_be_what_the_configuration_says(toml: str, words: str) -> None:
    config = configuration.parse(toml)
    if not words:
        check_against(config, "gpu", {"pay": pay})
        return
    with pytest.raises(RunnerConfigError) as caught:
        check_against(config, "gpu", {"pay": pay})
    assert words in str(caught.value)


def test_a_configured_reconcile_needs_its_function() -> None:
    @agent("ask")
    async def ask(ctx: AgentContext) -> None: ...

    config = configuration.parse('[types.ask]\non_unknown = "reconcile"')
    with pytest.raises(RunnerConfigError, match="no reconcile function"):
        check_against(config, "default", {"ask": ask})
