"""What a process writes holds none of its secrets, in whatever shape they turn up."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from laxity.schemas.masking import MASKED, Mask, is_secret, mask_of, masked, properties_of

CANARY = "c4n4ry/p@ss:w%rd"


def test_passwords_in_urls_are_masked_and_nothing_else() -> None:
    text = "redis://me:secret@host:1/0, rediss://:p%40ss@h and https://r/apis, a:b@c, k:9092"
    assert masked(text) == "redis://me:***@host:1/0, rediss://:***@h and https://r/apis, a:b@c, k:9092"


def test_a_secret_is_found_in_every_shape() -> None:
    mask = Mask([CANARY, 'quo"te\\d'])
    shapes = (
        CANARY,
        "c4n4ry%2Fp%40ss%3Aw%25rd",
        json.dumps({"a": 'quo"te\\d'}),
        repr('quo"te\\d'),
        'quo"te\\d',
    )
    for shape in shapes:
        told = mask(f"<{shape}>")
        assert MASKED in told
        assert not any(part in told for part in ("c4n4ry", "quo"))


def test_short_values_are_no_secrets_and_the_longer_one_goes_first() -> None:
    mask = Mask(["ab", "", "password", "password-and-more"])
    assert mask("ab password-and-more password") == f"ab {MASKED} {MASKED}"


@pytest.mark.parametrize(
    "name",
    ["LAXITY_KAFKA__SASL__PASSWORD", "sasl.password", "ssl.key.pem", "OPENAI_API_KEY", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN",
     "ssl.keystore.password", "sasl.oauthbearer.client.secret"],
)  # fmt: skip
def test_names_of_secrets(name: str) -> None:
    assert is_secret(name)


@pytest.mark.parametrize(
    "name", ["LAXITY_KAFKA", "PATH", "sasl.username", "ssl.ca.location", "key", "LAXITY_MAX_TOKENS"]
)
def test_other_names(name: str) -> None:
    assert not is_secret(name)


def test_secrets_come_from_variables_urls_and_the_files_they_name(tmp_path: Path) -> None:
    properties, password = tmp_path / "k.properties", tmp_path / "password"
    properties.write_text("# x\nsasl.username=visible\nsasl.password=in the file\n")
    password.write_text("in another file\n")
    mask = mask_of({
        "LAXITY_KAFKA__SASL__PASSWORD": "in the variable", "LAXITY_REGISTRY_URL": "https://u:in%20the%20url@r",
        "LAXITY_KAFKA_CONFIG": str(properties), "LAXITY_REDIS_PASSWORD_FILE": str(password),
    })  # fmt: skip
    secrets = ("in the variable", "in the url", "in the file", "in another file")
    assert [mask(secret) for secret in secrets] == [MASKED] * 4
    assert mask("visible") == "visible"


def test_files_that_cannot_be_read_have_nothing_to_give_away(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_text("no property\n")
    for path in (tmp_path, tmp_path / "absent", broken):
        assert mask_of({"LAXITY_KAFKA_CONFIG": str(path)})("text") == "text"


def test_properties_are_told_apart_from_other_text() -> None:
    assert properties_of("# c\n! c\n\na = b=c #d\n") == {"a": "b=c #d"}
    with pytest.raises(ValueError, match=r"^2: expected key=value"):
        properties_of("a=b\nc\n")


def test_tracebacks_of_all_threads_are_masked() -> None:
    code = (
        "import os, threading\n"
        "from laxity.schemas.masking import guard_tracebacks, mask_of\n"
        "guard_tracebacks(mask_of(os.environ))\n"
        "def fail(): raise ValueError('thread ' + os.environ['A_PASSWORD'])\n"
        "thread = threading.Thread(target=fail); thread.start(); thread.join()\n"
        "raise ValueError('process ' + os.environ['A_PASSWORD'])\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], env={"A_PASSWORD": CANARY}, capture_output=True, text=True, check=False
    )
    assert answer.returncode == 1
    assert "ValueError: thread ***" in answer.stderr
    assert "ValueError: process ***" in answer.stderr
    assert CANARY not in answer.stderr
