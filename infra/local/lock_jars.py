"""`make lock`: resolve the Java artifacts once and write their lock (a development task, needs jgo).

The version of every transitive jar is decided here and never at run time: joined endpoints act as bills
of material for each other, and log4j's would pull kafka-clients back to 3.9 under a 4.3 broker.
"""

import hashlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

KAFKA_VERSION = "4.3.0"
REGISTRY_VERSION = "3.3.3"
LOG4J_VERSION = "2.25.4"
ENDPOINTS = (
    f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}",
    f"org.apache.kafka:kafka-tools:{KAFKA_VERSION}",
)
LOGGING = f"org.apache.logging.log4j:log4j-slf4j-impl:{LOG4J_VERSION}"
REGISTRY = ("io.apicurio", "apicurio-registry-app", REGISTRY_VERSION, "all", "tar.gz")
LOCK_FILE = Path(__file__).with_name("jars.json")
TIMEOUT_S = 300  # the registry's archive has 159 MB


def _entry(artifact: Any) -> dict[str, str | int]:
    path: Path = artifact.resolve()
    return {
        "group": artifact.groupId,
        "name": artifact.artifactId,
        "version": artifact.version,
        "classifier": artifact.classifier,
        "extension": artifact.packaging,
        "size": path.stat().st_size,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }


def _kafka(context: Any) -> list[dict[str, str | int]]:
    dependencies = [context.create_dependency(coordinate) for coordinate in ENDPOINTS]
    logging = context.create_dependency(LOGGING)
    logging.raw = True  # its versions must not rule the others'
    inputs, transitive = context.resolver.resolve([*dependencies, logging])
    kept = [each for each in (*inputs, *transitive) if each.scope not in {"test", "provided"}]
    return [_entry(each.artifact) for each in sorted(kept, key=str)]


def resolve() -> dict[str, Any]:
    """Download everything into an empty repository and describe it."""
    from jgo.maven import MavenContext, PythonResolver  # noqa: PLC0415  # only in the dev extra

    with tempfile.TemporaryDirectory() as folder:
        context = MavenContext(resolver=PythonResolver(), repo_cache=Path(folder), timeout=TIMEOUT_S)
        group, name, version, classifier, extension = REGISTRY
        archive = context.project(group, name).at_version(version).artifact(classifier, extension)
        return {"kafka": _kafka(context), "registry": _entry(archive)}


def main() -> None:
    """Write jars.json beside this file."""
    document = resolve()
    LOCK_FILE.write_text(json.dumps(document, indent=1) + "\n", "utf-8")
    sys.stderr.write(f"{LOCK_FILE.name}: {len(document['kafka'])} jars and the registry\n")


if __name__ == "__main__":
    main()
