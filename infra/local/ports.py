"""Ports of a data directory: chosen once, below the range that outgoing connections use, and kept."""

import hashlib
import json
import socket
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from laxity.infra.local.errors import ConfigurationError, StackError

RANGE_FIRST = 20_000  # above the well-known ports, below 32768 where Linux takes outgoing ports from
RANGE_SIZE = 12_000
PORT_MAX = 65_535
HOST = "127.0.0.1"


def is_free(port: int) -> bool:
    """Whether a server could listen there now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def _start_at(folder: Path) -> int:
    """Where to begin looking: differs by folder, so that two stacks seldom compete."""
    digest = hashlib.sha256(str(folder).encode()).digest()
    return int.from_bytes(digest[:4], "big") % RANGE_SIZE


def read_ports(path: Path) -> dict[str, int]:
    """Ports kept in the data directory; empty before the first start."""
    try:
        kept = json.loads(path.read_text("utf-8"))
        return {str(name): int(port) for name, port in kept.items()}
    except FileNotFoundError:
        return {}
    except (ValueError, AttributeError, TypeError) as error:
        raise StackError(f"{path} is not a table of ports", str(error), f"delete {path}") from error


def parse_choice(text: str) -> tuple[str, int]:
    """NAME=PORT of the command line."""
    name, sign, number = text.partition("=")
    if not sign or not number.isdecimal() or not 0 < int(number) <= PORT_MAX:
        raise ConfigurationError(f"--port {text}", f"expected NAME=PORT with a port of 1 to {PORT_MAX}")
    return name, int(number)


def _next_free(folder: Path, taken: Collection[int]) -> int:
    """The first port from the folder's own place on that nobody uses or has been promised."""
    first = _start_at(folder)
    for offset in range(RANGE_SIZE):
        port = RANGE_FIRST + (first + offset) % RANGE_SIZE
        if port not in taken and is_free(port):
            return port
    raise StackError("no free port", f"all of {RANGE_FIRST} to {RANGE_FIRST + RANGE_SIZE - 1} are taken")


def settle_ports(path: Path, names: Iterable[str], chosen: Mapping[str, int]) -> dict[str, int]:
    """A port for each name: the user's choice, else the kept one, else a free one; writes the table.

    A kept port that another program has taken meanwhile is replaced; a chosen one is an error.
    """
    ports = read_ports(path)
    names = list(names)
    for name, port in chosen.items():
        if name not in names:
            raise ConfigurationError(f"--port {name}={port}", f"names are {', '.join(names)}")
        if not is_free(port):
            raise StackError(f"port {port} for {name} is taken", "another program listens there")
    ports.update(chosen)
    usable = {name for name in names if name in chosen or (name in ports and is_free(ports[name]))}
    taken = set(ports.values())
    for name in names:
        if name not in usable:
            ports[name] = _next_free(path.parent, taken)
            taken.add(ports[name])
    path.write_text(json.dumps(ports, indent=1) + "\n", "utf-8")
    return ports
