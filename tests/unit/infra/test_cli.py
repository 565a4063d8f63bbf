"""What all commands share: exit codes, one document, one line. As a user runs them, in a process of their own."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from laxity.infra.cli.output import CommandError, ExitCode, errors_on_one_line, print_table
from laxity.infra.local.data_dir import RECORD_FORMAT, DataDir, held
from laxity.infra.local.errors import ConfigurationError, NotRunningError, StackError
from laxity.infra.local.pids import identify


def laxity(*arguments: str, data_dir: Path) -> "subprocess.CompletedProcess[str]":
    unset = {"LAXITY_KAFKA", "LAXITY_REGISTRY_URL", "LAXITY_REDIS_URL"}
    environment = {key: value for key, value in os.environ.items() if key not in unset}
    return subprocess.run(
        [sys.executable, "-m", "laxity.infra.cli", *arguments],
        env={**environment, "LAXITY_DATA_DIR": str(data_dir)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (CommandError("no", code=ExitCode.USAGE), 2),
        (StackError("port 1 for kafka is taken"), 1),
        (NotRunningError("nothing runs"), 3),
        (ConfigurationError("--only x"), 2),
        (KeyboardInterrupt(), 130),
    ],
)
def test_exit_codes(error: BaseException, code: int) -> None:
    with pytest.raises(SystemExit) as left, errors_on_one_line():
        raise error
    assert left.value.code == code


def test_an_error_is_one_line_with_a_next_step(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit), errors_on_one_line():
        raise StackError("kafka does not get ready", "it ended:\n  address in use", "see kafka.log")
    printed = capsys.readouterr()
    assert printed.err == "laxity: kafka does not get ready (it ended: address in use). Try: see kafka.log\n"
    assert not printed.out


def test_a_bug_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError), errors_on_one_line():
        raise ZeroDivisionError


def test_tables_align(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("name", "pid"), [("kafka", 1234), ("redis", None)])
    assert capsys.readouterr().out == "name   pid\nkafka  1234\nredis  -\n"


def test_status_of_nothing(tmp_path: Path) -> None:
    answer = laxity("status", "--json", data_dir=tmp_path)
    assert answer.returncode == ExitCode.NOT_RUNNING
    document = json.loads(answer.stdout)
    assert document["data_dir"] == str(tmp_path.resolve())
    assert document["ready"] is False
    assert document["processes"] == []
    assert set(document["endpoints"]) == {"kafka", "registry", "redis", "provider"}


def test_status_names_the_servers_for_other_programs(tmp_path: Path) -> None:
    here = identify(os.getpid())
    assert here is not None
    addresses = {
        "kafka": "127.0.0.1:1",
        "registry": "http://127.0.0.1:2/apis",
        "redis": "redis://:p@127.0.0.1:3/0",
        "provider": "",
    }
    record = {"format": RECORD_FORMAT, "supervisor": asdict(here), "endpoints": addresses}
    rest = {"ready": True, "processes": [], "provider_ledger": None}
    DataDir.at(tmp_path).record_file.write_text(json.dumps(record | rest))
    answer = laxity("status", "--env", data_dir=tmp_path)
    assert answer.returncode == 0
    assert dict(line.split("=", 1) for line in answer.stdout.splitlines()) == {
        "LAXITY_KAFKA": addresses["kafka"],
        "LAXITY_REGISTRY_URL": addresses["registry"],
        "LAXITY_REDIS_URL": addresses["redis"],
    }


def test_down_of_nothing_is_no_failure(tmp_path: Path) -> None:
    assert laxity("down", data_dir=tmp_path / "absent").returncode == 0
    assert not (tmp_path / "absent").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("up", "--detach", "--only", "kafka,zookeeper"), 2, "zookeeper"),
        (("up", "--detach", "--port", "kafka=0"), 2, "NAME=PORT"),
        (("up", "--json"), 2, "--detach"),
        (("up", "--no-such-flag"), 2, "No such option"),
        (("stop", "kafka"), 3, "laxity up"),
        (("status", "--env"), 3, "laxity up"),
        (("kafka", "topics", "--list"), 3, "LAXITY_KAFKA"),
        (("kafka", "topcis"), 2, "tools are"),
    ],
)
def test_failures(arguments: tuple[str, ...], code: int, said: str, tmp_path: Path) -> None:
    answer = laxity(*arguments, data_dir=tmp_path)
    assert answer.returncode == code
    assert said in answer.stderr
    assert "Traceback" not in answer.stderr
    assert not answer.stdout


@pytest.fixture
def busy(tmp_path: Path) -> Iterator[Path]:
    with held(DataDir.at(tmp_path)) as free:
        assert free
        yield tmp_path


def test_down_waits_for_nobody_that_it_does_not_know(busy: Path) -> None:
    answer = laxity("down", data_dir=busy)
    assert answer.returncode == 1
    assert "in use" in answer.stderr


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from laxity.infra.cli import build\n"
        "build()\n"
        "heavy = {'confluent_kafka', 'structlog', 'redis', 'rocksdict', 'fastavro', 'starlette', 'uvicorn'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert answer.stdout.strip() == "[]"
