"""TensorBoard event files: scalars as TFRecords of Event messages, written without TensorBoard or protobuf.

A record is the length (uint64), its masked CRC-32C, the bytes and theirs, little-endian. Of Event only wall_time (1), step
(2), file_version (3) and summary (5) are used, of Summary the values (1) with tag (1) and simple_value (2). That is all a
curve needs; the libraries that write it bring 5 to 60 MB of others along.

Source: tensorflow/core/lib/io/record_writer.h, tensorflow/core/util/event.proto, summary.proto.
"""

import math
import os
import platform
import struct
import time
from collections.abc import Mapping
from pathlib import Path

_POLYNOMIAL = 0x82F63B78  # Castagnoli, reversed


def _table() -> tuple[int, ...]:
    found = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (_POLYNOMIAL if byte & 1 else 0)
        found.append(byte)
    return tuple(found)


_TABLE = _table()


def crc32c(data: bytes) -> int:
    """The CRC-32C of some bytes."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def _masked(data: bytes) -> bytes:
    crc = crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def record(data: bytes) -> bytes:
    """One TFRecord."""
    length = struct.pack("<Q", len(data))
    return length + _masked(length) + data + _masked(data)


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)


def _field(number: int, data: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def event(wall_time: float, step: int, values: Mapping[str, float]) -> bytes:
    """An Event with one scalar for each value."""
    summary = b"".join(
        _field(1, _field(1, tag.encode()) + b"\x15" + struct.pack("<f", _float32(value)))
        for tag, value in values.items()
    )
    return b"\x09" + struct.pack("<d", wall_time) + b"\x10" + _varint(step) + _field(5, summary)


def _float32(value: float) -> float:
    """The nearest that fp32 holds: what is too large is infinite."""
    return value if not math.isfinite(value) or abs(value) < 3.4e38 else math.copysign(math.inf, value)


class EventFile:
    """One event file, made at its first row; every row is on disk when `write` returns."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path: Path | None = None

    def write(self, step: int, values: Mapping[str, float], wall_time: float | None = None) -> None:
        """Append one row of scalars."""
        now = time.time() if wall_time is None else wall_time
        data = b""
        if self._path is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._path = self._folder / f"events.out.tfevents.{int(now)}.{platform.node() or 'host'}.{os.getpid()}"
            data = record(b"\x09" + struct.pack("<d", now) + _field(3, b"brain.Event:2"))
        with self._path.open("ab") as file:
            file.write(data + record(event(now, step, values)))
