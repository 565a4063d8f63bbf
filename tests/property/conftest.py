"""Redis for the property tests: the one given for quick runs by hand, else that of the stack."""

import os

import pytest


@pytest.fixture(scope="session")
def redis_url(request: pytest.FixtureRequest) -> str:
    given = os.environ.get("LAXITY_TEST_REDIS_URL")
    return given or str(request.getfixturevalue("stack").redis)
