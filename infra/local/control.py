"""Talking to a running supervisor: one JSON line there, one back, on loopback, with a secret."""

import asyncio
import hmac
import json
import socket
from collections.abc import Awaitable, Callable
from typing import Any

from laxity.infra.local.data_dir import DataDir, read_record
from laxity.infra.local.endpoints import supervisor_of
from laxity.infra.local.errors import NotRunningError, StackError

HOST = "127.0.0.1"
LINE_BYTES_MAX = 1 << 16
ANSWER_TIMEOUT_S = 120.0  # longer than a start may take

Handler = Callable[[str, str], Awaitable[list[str]]]


async def serve(secret: str, handler: Handler) -> tuple[asyncio.Server, int]:
    """Listen on a free port; `handler(command, role)` returns the names it acted on or raises StackError."""

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = json.loads(await reader.readline())
            if not hmac.compare_digest(str(request.get("secret")), secret):
                answer: dict[str, Any] = {"error": ["not allowed", "the secret is another supervisor's", ""]}
            else:
                answer = {"names": await handler(str(request["command"]), str(request["role"]))}
        except StackError as error:
            answer = {"error": [error.what, error.why, error.next_step]}
        except (ValueError, KeyError, AttributeError) as error:
            answer = {"error": ["not a request", str(error), ""]}
        writer.write(json.dumps(answer).encode() + b"\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(connection, HOST, 0, limit=LINE_BYTES_MAX)
    return server, server.sockets[0].getsockname()[1]


def ask(data: DataDir, command: str, role: str) -> list[str]:
    """Send a command to the supervisor of the data directory; returns the names it acted on. Blocks."""
    record = read_record(data)
    if record is None or supervisor_of(record) is None:
        raise NotRunningError(f"nothing runs in {data.root}", "", "laxity up --detach")
    control = record["control"]
    request = {"secret": control["secret"], "command": command, "role": role}
    with socket.create_connection((HOST, control["port"]), timeout=ANSWER_TIMEOUT_S) as connection:
        connection.sendall(json.dumps(request).encode() + b"\n")
        with connection.makefile("r", encoding="utf-8") as lines:
            answer = json.loads(lines.readline())
    if "error" in answer:
        raise StackError(*answer["error"])
    return list(answer["names"])
