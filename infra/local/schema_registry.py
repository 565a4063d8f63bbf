"""Apicurio Registry of the local stack, durable in a file database, with the Confluent API."""

from pathlib import Path

from laxity.infra.local.java import Java

API_PATH = "/apis/ccompat/v7"
HEAP = ("-Xmx300m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")


def argv(java: Java, *, port: int, management_port: int) -> list[str]:
    """To be run in the unpacked archive's folder."""
    return [
        str(java.path),
        *HEAP,
        *java.flags(),
        "-Dquarkus.http.host=127.0.0.1",
        f"-Dquarkus.http.port={port}",
        "-Dquarkus.management.host=127.0.0.1",
        f"-Dquarkus.management.port={management_port}",
        "-jar",
        "quarkus-run.jar",
    ]


def environment(folder: Path) -> dict[str, str]:
    """Storage settings. WRITE_DELAY=0: by default kill -9 loses acknowledged schemas and reuses their ids."""
    return {
        "APICURIO_STORAGE_KIND": "sql",
        "APICURIO_STORAGE_SQL_KIND": "h2",
        "APICURIO_DATASOURCE_URL": f"jdbc:h2:file:{folder / 'registry'};WRITE_DELAY=0",
        "APICURIO_DATASOURCE_JDBC_INITIAL_SIZE": "2",
        "APICURIO_DATASOURCE_JDBC_MIN_SIZE": "2",
        "APICURIO_DATASOURCE_JDBC_MAX_SIZE": "10",
    }


def base_url(port: int) -> str:
    """What clients get as LAXITY_REGISTRY_URL."""
    return f"http://127.0.0.1:{port}{API_PATH}"


def health_url(management_port: int) -> str:
    """Answers 200 once the registry serves."""
    return f"http://127.0.0.1:{management_port}/health/ready"
