"""A decode process: reads runs of image files, writes pixels into shared memory.

Imports no torch (that alone costs seconds and half a gigabyte), holds no credentials, and
ends by itself when its parent is gone. Anything hostile in an image can kill only this.
"""

from __future__ import annotations

import argparse
import math
import mmap
import os
import resource
import signal
import socket
import sys
import warnings

from PIL import AvifImagePlugin, Image

from app.errors import ItemError
from app.models.spec import PreprocessSpec
from worker.pipeline.pixels import decode_image
from worker.pipeline.wire import (
    DECODED,
    NOT_DECODED,
    WireClosedError,
    receive_bytes,
    receive_frame,
    send_frame,
)

#: Kernel niceness: decoding fills what the forward pass leaves of the processor.
_NICENESS = 10
#: Address space beside the pixels: interpreter, libraries and the file itself.
_BASE_BYTES = 1024 * 1024 * 1024
#: Copies of an image that decoding, turning and converting hold at once, at 4 bytes a pixel.
_PIXEL_BYTES = 24
#: Beyond the parent's own limit, so that it acts only where the parent cannot.
_ALARM_MARGIN_SECONDS = 5


def main(arguments: list[str] | None = None) -> None:
    """Serve runs on the given socket until the parent closes it."""
    parser = argparse.ArgumentParser(prog="decode_child")
    parser.add_argument("--socket-fd", type=int, required=True)
    parser.add_argument("--memory-fd", type=int, required=True)
    parser.add_argument("--max-pixels", type=int, required=True)
    parser.add_argument("--item-seconds", type=float, required=True)
    options = parser.parse_args(arguments)
    _confine(options.max_pixels)
    with socket.socket(fileno=options.socket_fd) as sock:
        send_frame(sock, {"ready": os.getpid()})
        _silence()
        try:
            _serve(sock, options.memory_fd, options.max_pixels, options.item_seconds)
        except (WireClosedError, ConnectionError):
            return


def _confine(max_pixels: int) -> None:
    os.nice(_NICENESS)
    # The terminal's and the supervisor's signals go to the whole group; the parent decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    limit = _BASE_BYTES + _PIXEL_BYTES * max_pixels
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard == resource.RLIM_INFINITY or limit < hard:
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Our own check of the header is stricter and comes first.
    Image.MAX_IMAGE_PIXELS = None
    # There is a child for each core already, and every thread's heap counts as address space.
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    warnings.simplefilter("ignore")


def _silence() -> None:
    """Keep what C libraries print about hostile files out of the worker's log."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stderr.fileno())
    os.close(null)


def _serve(sock: socket.socket, memory_fd: int, max_pixels: int, item_seconds: float) -> None:
    memory: mmap.mmap | None = None
    runs = sock.makefile("rb")
    alarm_seconds = math.ceil(item_seconds) + _ALARM_MARGIN_SECONDS
    while True:
        run = receive_frame(runs)
        images = [receive_bytes(runs, length) for length in run["lengths"]]
        spec = PreprocessSpec.from_dict(run["spec"])
        height, width, channels = spec.output_shape
        slot_bytes = height * width * channels
        if memory is None or len(memory) < run["memory_bytes"]:
            memory = mmap.mmap(memory_fd, run["memory_bytes"])
        for index, data in enumerate(images):
            # The default action ends the process even inside C code, so an orphan that
            # hangs in a hostile file does not live for ever.
            signal.alarm(alarm_seconds)
            try:
                start = index * slot_bytes
                memory[start : start + slot_bytes] = decode_image(data, spec, max_pixels=max_pixels)
                error: ItemError | None = None
            except ItemError as raised:
                error = raised
            signal.alarm(0)
            if error is None:
                sock.sendall(DECODED)
            else:
                sock.sendall(NOT_DECODED)
                send_frame(sock, {"code": error.code, "detail": error.detail[:500]})


if __name__ == "__main__":
    main()
