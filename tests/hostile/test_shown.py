"""What people and their tools are shown of hostile records: printable lines, one JSON document a line, nothing longer than it may be."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from builders import CODEC, START_MS, trigger
from hostile import corpus

from laxity.infra.cli.dlq import letter_lines
from laxity.infra.cli.output import CommandError, note, print_json, print_table
from laxity.infra.cli.tail import lines
from laxity.infra.cli.tasks import _cells, _row, story_lines
from laxity.infra.inspect.decoding import Seen
from laxity.infra.inspect.letters import letter_of
from laxity.infra.inspect.tasks import story
from laxity.infra.inspect.text import json_line
from laxity.schemas.records import Outcome, TaskEvent, Transition
from laxity.schemas.serde import Undecodable

TEXTS = [text for text, _, _ in corpus.NAMES.values()]
LINE_CHARS_MAX = 2_048
FIELD_CHARS_MAX = 2_049  # and a mark that something was cut
ENTRIES_MAX = 2_000  # of a list, a line or less for each


def seen(topic: str, kind: Any, raw: bytes | None, **fields: Any) -> Seen:
    try:
        value, problem = CODEC.decode(kind, raw), ""
    except Undecodable as error:
        value, problem = None, str(error)
    base = Seen(
        topic=topic, partition=0, offset=1, timestamp_ms=START_MS, key=b"k", raw=raw, headers=(), kind=kind.__name__, value=value,
        problem=problem,
    )  # fmt: skip
    return replace(base, **fields)


def shown() -> Iterator[Seen]:
    """Everything of the corpus, as a trigger and as a dead letter."""
    kind = type(trigger())
    for raw, _ in corpus.BYTES.values():
        yield seen("triggers.normal", kind, raw)
    for text in TEXTS:
        hostile = trigger(text, type=text, tenant=text, run_id=text, payload=text.encode(), headers={text: text}, depends_on=(text,), demands={text: 1})  # fmt: skip
        yield seen(
            "triggers.normal",
            kind,
            CODEC.encode(hostile),
            key=text.encode(),
            headers=((text, text.encode()),),
        )
        ours = [
            (f"laxity.error.{name}", text.encode())
            for name in ("reason", "message", "topic", "history", "attempts")
        ]
        yield seen("dlq.normal", kind, b"junk" + text.encode(), key=text.encode(), headers=ours)
        report = Outcome(
            kind=text,
            task_id=text,
            generation=0,
            dispatch_no=1,
            runner=text,
            code=text,
            message=text,
            used={text: 1},
        )
        yield seen("outcomes", Outcome, CODEC.encode(report))


def assert_printable(found: list[str]) -> None:
    assert found
    for line in found:
        assert line.isprintable(), ascii(line)[:300]
        assert len(line) <= LINE_CHARS_MAX


def test_tail_and_dlq_show() -> None:
    for one in shown():
        if len(one.raw or b"") < corpus.LONG:  # a line per item is as it should be, and long
            assert_printable(lines(one))
            assert_printable(letter_lines(letter_of(one)))
        for document in (one.document(), letter_of(one).document()):
            line = json_line(document)
            assert line.isascii()
            assert line.isprintable()


@pytest.mark.parametrize("text", TEXTS)
def test_tasks_ls_and_show(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    step = Transition(before=text, after=text, reason=text, at_ms=START_MS, happened_ms=START_MS)
    event = TaskEvent(
        kind="transitions", task_id=text, tenant=text, type=text, run_id=text, key=text, tier=text, shard=0, batch=1, at_ms=START_MS,
        state="READY", transitions=(step,), runner=text, code=text, message=text, detail=text, usage={text: 1}, result=text.encode(),
    )  # fmt: skip
    remark = replace(event, kind="rejected", transitions=())
    print_table(["task"] * 9, [_cells(event, START_MS)])
    note(text)
    print_json(_row(event, 0))
    assert_printable(
        [line for line in capsys.readouterr().out.splitlines() if not line.startswith((" ", "{", "}"))]
    )
    told = story(text, [event, remark], START_MS)
    for line in story_lines(told, [], START_MS):
        assert line.isprintable(), ascii(line)[:300]


@pytest.mark.parametrize("text", TEXTS)
def test_errors_and_notes_are_one_line(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert CommandError(text, text, text).line().isprintable()
    note(text)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.isprintable()


LOGS = {
    "laxity.streams.runtime.logs": "logs.configure(); logs.logger(shard=0).warning('kafka.error', error=text, deep={'a': text})",
    "laxity.consumers.logs": "logs.configure('info'); import structlog; structlog.get_logger('x').warning('agent.raised', error=text)",
}


@pytest.mark.parametrize("module", LOGS)
def test_a_log_line_is_one_line_whatever_is_in_it(module: str) -> None:
    program = f"import sys, json, importlib\nlogs = importlib.import_module({module!r})\nfor text in json.loads(sys.stdin.read()):\n    {LOGS[module]}"  # fmt: skip
    texts = [text for text in TEXTS if "\ud800" not in text] + ["y" * 100_000]
    done = subprocess.run(
        [sys.executable, "-c", program], input=json.dumps(texts), capture_output=True, text=True, check=True, timeout=60
    )  # fmt: skip
    found = done.stderr.splitlines()
    assert len(found) == len(texts)
    for line, text in zip(found, texts, strict=True):
        assert line.isascii()
        assert line.isprintable()
        document = json.loads(line)
        assert document["level"] == "warning"
        assert document["error"].rstrip("…") == text[:2_048], "escaped, not changed"
        assert len(document["error"]) <= FIELD_CHARS_MAX
