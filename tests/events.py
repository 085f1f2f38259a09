"""Reads event files of TensorBoard: records of TensorFlow's framing, each a protocol buffer."""

from __future__ import annotations

import struct
from typing import Any


def read_events(content: bytes) -> list[Any]:
    """The events of a file. Raises AssertionError where a record's checksum is wrong."""
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import masked_crc32c

    events = []
    at = 0
    while at < len(content):
        (length,) = struct.unpack_from("<Q", content, at)
        (length_crc,) = struct.unpack_from("<I", content, at + 8)
        body = content[at + 12 : at + 12 + length]
        (body_crc,) = struct.unpack_from("<I", content, at + 12 + length)
        assert length_crc == masked_crc32c(content[at : at + 8])
        assert body_crc == masked_crc32c(body)
        events.append(Event.FromString(body))
        at += 16 + length
    return events
