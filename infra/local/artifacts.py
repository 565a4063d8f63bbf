"""The committed lock of Java artifacts: coordinates, size and SHA-256 of every file the stack runs."""

import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """One file of a Maven repository; `sha256` is hex, `size` is in bytes."""

    group: str
    name: str
    version: str
    classifier: str
    extension: str
    size: int
    sha256: str

    @property
    def file_name(self) -> str:
        """For example kafka_2.13-4.3.0.jar."""
        tail = f"-{self.classifier}" if self.classifier else ""
        return f"{self.name}-{self.version}{tail}.{self.extension}"

    @property
    def path(self) -> str:
        """Path below a repository's root, with forward slashes."""
        return "/".join((*self.group.split("."), self.name, self.version, self.file_name))

    @property
    def coordinate(self) -> str:
        """Colon form: group:name:version, then the classifier if there is one."""
        return ":".join(part for part in (self.group, self.name, self.version, self.classifier) if part)


@dataclass(frozen=True, slots=True, kw_only=True)
class JarLock:
    """What Kafka's class path consists of, and the registry's archive."""

    kafka: tuple[Artifact, ...]
    registry: Artifact

    def version_of(self, name: str) -> str:
        """Version of Kafka's artifact called `name`; KeyError if the lock has none."""
        for artifact in self.kafka:
            if artifact.name == name:
                return artifact.version
        raise KeyError(name)


def parse_lock(text: str) -> JarLock:
    """Read the lock's JSON; TypeError or KeyError mean that the file was edited by hand."""
    document = json.loads(text)
    return JarLock(
        kafka=tuple(Artifact(**entry) for entry in document["kafka"]),
        registry=Artifact(**document["registry"]),
    )


def load_lock() -> JarLock:
    """The lock that this distribution was built with."""
    return parse_lock(resources.files("laxity.infra.local").joinpath("jars.json").read_text("utf-8"))


def cached_path(cache_dir: Path, artifact: Artifact) -> Path:
    """Where the artifact lies in our cache, fetched or not."""
    return cache_dir / "maven" / artifact.path
