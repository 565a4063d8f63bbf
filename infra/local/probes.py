"""Readiness by asking: each probe returns None when the server answers as it should, else the reason."""

import asyncio
from collections.abc import Awaitable, Callable

import httpx

from laxity.schemas.masking import masked

Probe = Callable[[], Awaitable[str | None]]

ANSWER_TIMEOUT_S = 2.0  # a server under start-up load may take a second for its first answer


def http_probe(url: str) -> Probe:
    """Ready when a GET answers 200."""

    async def probe() -> str | None:
        try:
            async with httpx.AsyncClient(timeout=ANSWER_TIMEOUT_S, trust_env=False) as client:
                status = (await client.get(url)).status_code
        except httpx.HTTPError as error:
            return f"{masked(url)}: {str(error) or type(error).__name__}"
        return None if status == httpx.codes.OK else f"{masked(url)} answers {status}"

    return probe


async def _connects(address: str) -> str | None:
    host, _, port = address.split(",", maxsplit=1)[0].strip().rpartition(":")
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
    except (OSError, ValueError, TimeoutError) as error:
        return f"{address}: {str(error) or type(error).__name__}"
    writer.close()
    return None


def _kafka_answer(bootstrap: str) -> str | None:
    from confluent_kafka import KafkaException  # noqa: PLC0415  # keeps --help quick
    from confluent_kafka.admin import AdminClient  # noqa: PLC0415

    from laxity.schemas.settings import SettingsError, settings  # noqa: PLC0415

    ours: dict[str, str | int | float | bool] = {
        "bootstrap.servers": bootstrap,
        "log_level": 0,
        "client.id": "laxity-probe",
    }
    try:
        admin = AdminClient({**settings().kafka_properties(), **ours})
        admin.list_topics(timeout=ANSWER_TIMEOUT_S)
    except KafkaException as error:
        return f"{bootstrap}: {error.args[0].str()}"
    except SettingsError as error:
        return str(error)
    return None


def kafka_probe(bootstrap: str) -> Probe:
    """Ready when an admin client gets the metadata, with the caller's own properties (TLS, SASL)."""

    async def probe() -> str | None:
        return await _connects(bootstrap) or await asyncio.to_thread(_kafka_answer, bootstrap)

    return probe


def redis_probe(url: str) -> Probe:
    """Ready when PING answers (not while it loads its file). A user that may not PING has been let in, too."""

    async def probe() -> str | None:
        from redis.asyncio import Redis  # noqa: PLC0415
        from redis.exceptions import NoPermissionError, RedisError  # noqa: PLC0415

        client = Redis.from_url(url, socket_timeout=ANSWER_TIMEOUT_S, socket_connect_timeout=ANSWER_TIMEOUT_S)
        try:
            await client.ping()
        except NoPermissionError:
            return None
        except (RedisError, OSError) as error:
            return str(error) or type(error).__name__
        finally:
            await client.aclose()
        return None

    return probe


def registry_probe(health_url: str, base_url: str) -> Probe:
    """Ready when healthy and its compatibility rule is set: Apicurio's own default is NONE."""
    healthy = http_probe(health_url)

    async def probe() -> str | None:
        return await healthy() or await _ensure_compatibility(base_url)

    return probe


async def _ensure_compatibility(base_url: str) -> str | None:
    try:
        async with httpx.AsyncClient(timeout=ANSWER_TIMEOUT_S, trust_env=False) as client:
            answer = await client.get(f"{base_url}/config")
            if answer.json().get("compatibilityLevel") == "NONE":
                answer = await client.put(f"{base_url}/config", json={"compatibility": "FULL_TRANSITIVE"})
            answer.raise_for_status()
    except (httpx.HTTPError, ValueError) as error:
        return f"{masked(base_url)}/config: {str(error) or type(error).__name__}"
    return None
