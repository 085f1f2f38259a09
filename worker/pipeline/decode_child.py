"""A decode process: reads runs of image files, writes pixels into shared memory.

Imports no torch (that alone costs seconds and half a gigabyte), holds no credentials, and
ends by itself when its parent is gone. Anything hostile in an image can kill only this: it has
no network, opens no file, and its memory and processor time are limited (``walls.py``).
"""

from __future__ import annotations

import argparse
import math
import mmap
import os
import signal
import socket
import sys
import warnings

from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageCms,
    ImageMath,
    JpegImagePlugin,
    MpoImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from app.errors import ItemError
from app.models.spec import PreprocessSpec
from worker.pipeline.limits import DecodeLimits
from worker.pipeline.pixels import decode_image
from worker.pipeline.walls import (
    arm_default_signals,
    forbid_files,
    keep_descriptors,
    raise_walls,
)
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
#: Beyond the parent's own limit, so that it acts only where the parent cannot.
_ALARM_MARGIN_SECONDS = 5
#: Pillow imports these when it first needs them; behind the walls there is no file to import.
_NEEDED_LATER = (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    ImageCms,
    ImageMath,
    JpegImagePlugin,
    MpoImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)


def main(arguments: list[str] | None = None) -> None:
    """Serve runs on the given socket until the parent closes it."""
    parser = argparse.ArgumentParser(prog="decode_child")
    parser.add_argument("--socket-fd", type=int, required=True)
    parser.add_argument("--memory-fd", type=int, required=True)
    parser.add_argument("--limits", type=DecodeLimits.from_json, required=True)
    options = parser.parse_args(arguments)
    socket_fd, memory_fd = keep_descriptors(options.socket_fd, options.memory_fd)
    refused = _confine(options.limits)
    with socket.socket(fileno=socket_fd) as sock:
        send_frame(sock, {"ready": os.getpid(), "refused": refused})
        _silence()
        # One more: a mapping holds a copy of its descriptor.
        forbid_files(memory_fd, more=1)
        try:
            _serve(sock, memory_fd, options.limits)
        except (WireClosedError, ConnectionError):
            return


def _confine(limits: DecodeLimits) -> dict[str, str]:
    """Raise the walls; why the kernel refused some, by their names."""
    os.nice(_NICENESS)
    # The terminal's and the supervisor's signals go to the whole group; the parent decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    arm_default_signals([signal.SIGALRM, signal.SIGPROF])
    _ready_pillow()
    return raise_walls(limits.memory_bytes)


def _ready_pillow() -> None:
    """Have Pillow do now what it would do once it needs it, and leave limits to us."""
    # Where none of these knows a file, Pillow would import all that it has, a third of a second.
    Image._initialized = 2
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


def _serve(sock: socket.socket, memory_fd: int, limits: DecodeLimits) -> None:
    memory: mmap.mmap | None = None
    runs = sock.makefile("rb")
    alarm_seconds = math.ceil(limits.item_seconds) + _ALARM_MARGIN_SECONDS
    while True:
        run = receive_frame(runs)
        images = [receive_bytes(runs, length) for length in run["lengths"]]
        spec = PreprocessSpec.from_dict(run["spec"])
        height, width, channels = spec.output_shape
        slot_bytes = height * width * channels
        if memory is None or len(memory) < run["memory_bytes"]:
            if memory is not None:
                memory.close()
            memory = mmap.mmap(memory_fd, run["memory_bytes"])
        for index, data in enumerate(images):
            # Both end the process even inside C code: what one image takes of the processor is
            # limited, and an orphan that hangs in a hostile file does not live for ever.
            signal.setitimer(signal.ITIMER_PROF, limits.cpu_seconds)
            signal.alarm(alarm_seconds)
            try:
                start = index * slot_bytes
                memory[start : start + slot_bytes] = decode_image(data, spec, limits)
                error: ItemError | None = None
            except ItemError as raised:
                error = raised
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.alarm(0)
            if error is None:
                sock.sendall(DECODED)
            else:
                sock.sendall(NOT_DECODED)
                send_frame(sock, {"code": error.code, "detail": error.detail[:500]})


if __name__ == "__main__":
    main()
