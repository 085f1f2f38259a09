"""Frames between a worker and its decode children: a length, JSON, then raw bytes.

JSON and not pickle: a child handles hostile bytes, and what it says back must stay data.
Standard library only, as a decode child imports this.
"""

from __future__ import annotations

import json
import socket
import struct
from typing import Any, BinaryIO

_LENGTH = struct.Struct("!I")
_MAX_HEADER_BYTES = 1024 * 1024

#: What a child says of one image: its pixels are ready, or a frame with its error follows.
#: One byte, because a run of tiny images is answered faster than JSON is read.
DECODED, NOT_DECODED = b"+", b"-"


class WireClosedError(ConnectionError):
    """The other end of the socket is gone."""


def send_frame(
    sock: socket.socket, header: dict[str, Any], bodies: tuple[bytes, ...] | list[bytes] = ()
) -> None:
    """Send one frame; ``bodies`` follow it back to back, their lengths told by the header."""
    text = json.dumps(header).encode()
    sock.sendall(_LENGTH.pack(len(text)) + text)
    for body in bodies:
        sock.sendall(body)


def receive_frame(stream: BinaryIO) -> dict[str, Any]:
    """The next frame's header, from a socket's buffered reader.

    Raises:
        WireClosedError: the other end closed or died, or sent what is no frame.
    """
    (length,) = _LENGTH.unpack(receive_bytes(stream, _LENGTH.size))
    if length > _MAX_HEADER_BYTES:
        raise WireClosedError(f"a frame of {length} bytes is no frame of ours")
    try:
        header = json.loads(receive_bytes(stream, length))
    except ValueError as error:
        raise WireClosedError(f"a frame is not JSON: {error}") from None
    if not isinstance(header, dict):
        raise WireClosedError("a frame is not an object")
    return header


def receive_bytes(stream: BinaryIO, length: int) -> bytes:
    """Exactly ``length`` bytes. Raises WireClosedError where the stream ends before."""
    data = stream.read(length)
    if len(data) < length:
        raise WireClosedError("the other end closed the socket")
    return data
