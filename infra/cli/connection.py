"""How commands that need the servers find them: LAXITY_* variables, else the stack of the data directory; and how their failures read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from laxity.infra.cli.output import CommandError, ExitCode
from laxity.infra.cli.stack import stack_settings

ConfigOption = Annotated[
    Path | None, typer.Option("--config", help="Configuration file. [LAXITY_CONFIG, ./laxity.toml, packaged]")
]


def connect(data_dir: Path | None) -> Any:
    """Settings (laxity.schemas.settings) of what the environment names, filled up from the running stack. CommandError if there is no Kafka."""
    from laxity.infra.local import Endpoints, endpoints  # noqa: PLC0415
    from laxity.schemas.settings import settings  # noqa: PLC0415

    stack = stack_settings(data_dir)
    running = endpoints(stack.data_dir) or Endpoints()
    kafka = stack.kafka or running.kafka
    if not kafka:
        raise CommandError(
            "no Kafka to talk to",
            f"nothing runs in {stack.data_dir} and LAXITY_KAFKA is not set",
            "laxity up --detach",
            ExitCode.NOT_RUNNING,
        )
    return settings(
        kafka=kafka,
        registry_url=stack.registry_url or running.registry,
        redis_url=stack.redis_url or running.redis,
        provider_url=stack.provider_url or running.provider,
        prefix=stack.prefix,
    )


@contextmanager
def readable_errors() -> Iterator[None]:
    """Failures of the contract's parts become a CommandError: exit code 2 for what the user wrote, 1 for the world."""
    from pydantic import ValidationError  # noqa: PLC0415

    from laxity.infra.provision import ProvisionError  # noqa: PLC0415
    from laxity.schemas.config import ConfigError  # noqa: PLC0415
    from laxity.schemas.contracts import ContractError  # noqa: PLC0415
    from laxity.schemas.kafka_properties import PropertyRefused  # noqa: PLC0415
    from laxity.schemas.registry import RegistryError  # noqa: PLC0415
    from laxity.schemas.settings import SettingsError  # noqa: PLC0415

    try:
        yield
    except (ConfigError, SettingsError, PropertyRefused) as error:
        raise CommandError(str(error), code=ExitCode.USAGE) from error
    except ValidationError as error:
        first = error.errors()[0]
        name = f"LAXITY_{'_'.join(map(str, first['loc']))}".upper()
        raise CommandError(f"{name}: {first['msg']}", code=ExitCode.USAGE) from error
    except (ProvisionError, ContractError, RegistryError) as error:
        raise CommandError(str(error)) from error
