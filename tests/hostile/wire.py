"""Record batches made by hand and sent over a bare socket: what no client library would send.

Kafka's own format (magic 2): a header with a CRC-32C over all that follows it, then the records, compressed as one piece.
"""

from __future__ import annotations

import socket
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

NO_CODEC, GZIP, SNAPPY, LZ4, ZSTD = range(5)
CODECS = {"gzip": GZIP, "snappy": SNAPPY, "lz4": LZ4, "zstd": ZSTD}

PRODUCE, VERSION = 0, 7  # the first version that may carry zstd
TIMEOUT_S = 60.0  # a broker that inflates a bomb takes its time
OVERHEAD = 12  # bytes of a batch before those that its length counts
CRC_AT, CRC_FROM = 17, 21  # where the checksum is, and from where on it counts

_POLYNOMIAL = 0x82F63B78


def _table() -> list[int]:
    found = []
    for number in range(256):
        crc = number
        for _ in range(8):
            crc = crc >> 1 ^ (_POLYNOMIAL if crc & 1 else 0)
        found.append(crc)
    return found


_CRC = _table()


def crc32c(data: bytes) -> int:
    """Castagnoli, as Kafka has it."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _CRC[(crc ^ byte) & 255]
    return crc ^ 0xFFFFFFFF


def varint(number: int) -> bytes:
    """Zigzag."""
    left = number << 1 ^ number >> 63
    out = bytearray()
    while left > 127:
        out.append(left & 127 | 128)
        left >>= 7
    return bytes((*out, left))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """One record of a batch. Header names are bytes: nothing says that they must be UTF-8."""

    value: bytes | None
    key: bytes | None = None
    headers: Sequence[tuple[bytes, bytes | None]] = ()


def _field(data: bytes | None) -> bytes:
    return varint(-1) if data is None else varint(len(data)) + data


def body_of(record: Sent, delta: int) -> bytes:
    """A record without its length."""
    headers = b"".join(_field(name) + _field(value) for name, value in record.headers)
    fields = (_field(record.key), _field(record.value), varint(len(record.headers)), headers)
    return b"\0" + varint(0) + varint(delta) + b"".join(fields)


def section(records: Sequence[Sent]) -> bytes:
    """The records of a batch as they are before compression."""
    bodies = [body_of(record, delta) for delta, record in enumerate(records)]
    return b"".join(varint(len(body)) + body for body in bodies)


def batch(payload: bytes, count: int, codec: int = NO_CODEC) -> bytes:
    """A batch around the records' bytes, which are compressed already."""
    after_crc = struct.pack(">hiqqqhii", codec, count - 1, 0, 0, -1, -1, -1, count) + payload
    head = struct.pack(">iBI", -1, 2, crc32c(after_crc))
    return struct.pack(">qi", 0, len(head) + len(after_crc)) + head + after_crc


def batch_of(*records: Sent) -> bytes:
    """Uncompressed."""
    return batch(section(records), len(records))


def bomb(codec: int, size: int) -> bytes:
    """A batch of one record whose value is `size` zero bytes."""
    before = b"\0" + varint(0) + varint(0) + varint(-1) + varint(size)
    length = varint(len(before) + size + 1)
    return batch(_SQUEEZE[codec](length + before, size, varint(0)), 1, codec)


def _gzip(before: bytes, zeros: int, after: bytes) -> bytes:
    squeeze = zlib.compressobj(9, wbits=31)
    piece = bytes(1 << 20)
    out = [squeeze.compress(before)]
    out += [squeeze.compress(piece) for _ in range(zeros >> 20)]
    out += [squeeze.compress(bytes(zeros & (1 << 20) - 1) + after), squeeze.flush()]
    return b"".join(out)


def _zstd(before: bytes, zeros: int, after: bytes) -> bytes:
    """A frame of raw and run-length blocks; its header does not say how much there is."""

    def block(kind: int, size: int, data: bytes, *, last: bool = False) -> bytes:
        return (size << 3 | kind << 1 | last).to_bytes(3, "little") + data

    run = 128 * 1024
    blocks = [block(0, len(before), before)]
    blocks += [block(1, run, b"\0")] * (zeros // run)
    if zeros % run:
        blocks.append(block(1, zeros % run, b"\0"))
    window_of_1_mib = b"\x50"
    return (
        b"\x28\xb5\x2f\xfd\x00" + window_of_1_mib + b"".join(blocks) + block(0, len(after), after, last=True)
    )


def _lz4(before: bytes, zeros: int, after: bytes) -> bytes:
    """A frame of independent blocks of 4 MiB: one literal run, then a match that repeats the byte before it."""
    descriptor = b"\x60\x70"
    out = [b"\x04\x22\x4d\x18", descriptor, bytes((_xxh32(descriptor) >> 8 & 255,))]
    most = 4 << 20
    literals, left = before + b"\0", zeros - 1
    while left > 0:
        run = min(left, most - len(literals) - 5)
        if left - run < 32 and left > run:
            run -= 64
        out.append(_lz4_block(literals, run))
        left -= run
        literals = b"\0" if left else b""
        left -= 1 if left else 0
    stored = after
    out += [(len(stored) | 1 << 31).to_bytes(4, "little"), stored, bytes(4)]
    return b"".join(out)


def _lz4_block(literals: bytes, run: int) -> bytes:
    """Literals, then `run` zeros, of which the last five are literals again as the format wants it."""
    match = run - 5
    token = min(len(literals), 15) << 4 | 15
    block = (
        bytes((token,)) + _lz4_more(len(literals) - 15) + literals + b"\x01\x00" + _lz4_more(match - 4 - 15)
    )
    block += bytes((5 << 4,)) + bytes(5)
    return len(block).to_bytes(4, "little") + block


def _lz4_more(length: int) -> bytes:
    if length < 0:
        return b""
    return b"\xff" * (length // 255) + bytes((length % 255,))


def _xxh32(data: bytes) -> int:
    """Of fewer than 16 bytes, seed 0."""
    mask = 0xFFFFFFFF

    def turn(value: int, by: int) -> int:
        return (value << by | value >> 32 - by) & mask

    found = 374761393 + len(data) & mask
    for byte in data:  # fewer than four
        found = turn(found + byte * 374761393 & mask, 11) * 2654435761 & mask
    found = (found ^ found >> 15) * 2246822519 & mask
    found = (found ^ found >> 13) * 3266489917 & mask
    return found ^ found >> 16


def _snappy(before: bytes, zeros: int, after: bytes) -> bytes:
    """One raw block: its length, literals, copies of at most 64 bytes from one byte back."""
    total = len(before) + zeros + len(after)
    out = bytearray()
    while total > 127:
        out.append(total & 127 | 128)
        total >>= 7
    out.append(total)
    out += _snappy_literal(before + b"\0")
    out += b"\xfe\x01\x00" * ((zeros - 1) // 64)
    if left := (zeros - 1) % 64:
        out += bytes((left - 1 << 2 | 2,)) + b"\x01\x00"
    return bytes(out + _snappy_literal(after))


def _snappy_literal(data: bytes) -> bytes:
    assert len(data) <= 60, "one byte says how long it is"
    return bytes((len(data) - 1 << 2,)) + data


_SQUEEZE = {GZIP: _gzip, SNAPPY: _snappy, LZ4: _lz4, ZSTD: _zstd}


def produce(address: str, topic: str, partition: int, records: bytes) -> tuple[int, int]:
    """Send one batch with acks of all replicas: (error code, base offset). ConnectionError if the broker hangs up."""
    name = topic.encode()
    body = struct.pack(">hhi", -1, -1, 30_000)
    body += struct.pack(">ih", 1, len(name)) + name
    body += struct.pack(">iii", 1, partition, len(records)) + records
    request = struct.pack(">hhih", PRODUCE, VERSION, 1, 4) + b"hand" + body
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), TIMEOUT_S) as line:
        line.sendall(struct.pack(">i", len(request)) + request)
        (size,) = struct.unpack(">i", _read(line, 4))
        answer = _read(line, size)
    at = 4 + 4 + 2 + len(name) + 4 + 4
    code, offset = struct.unpack_from(">hq", answer, at)
    return code, offset


def _read(line: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size:
        piece = line.recv(size - len(found))
        if not piece:
            raise ConnectionError(f"the broker hung up after {len(found)} of {size} bytes")
        found += piece
    return found
