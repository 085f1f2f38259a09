"""Lets other hosts reach servers that listen for this one alone, by passing their bytes on."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def to_port(port: int) -> Callable[[], Awaitable[Streams]]:
    """Connects to a server on 127.0.0.1."""
    return lambda: asyncio.open_connection("127.0.0.1", port)


def to_socket(path: Path) -> Callable[[], Awaitable[Streams]]:
    """Connects to a server on a unix socket."""
    return lambda: asyncio.open_unix_connection(str(path))


Targets = Mapping[int, Callable[[], Awaitable[Streams]]]


@contextmanager
def forwarded(host: str, targets: Targets) -> Iterator[None]:
    """Listen on these ports of ``host``, each for its server, while the block runs."""
    loop = asyncio.new_event_loop()
    forwarder = _Forwarder(loop)
    thread = threading.Thread(target=loop.run_forever, name="forward")
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(forwarder.open(host, targets), loop).result(10)
        yield
    finally:
        asyncio.run_coroutine_threadsafe(forwarder.close(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


class _Forwarder:
    """Listeners and the connections that they have accepted, all on one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._servers: list[asyncio.Server] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self, host: str, targets: Targets) -> None:
        for port, connect in targets.items():

            def accept(
                reader: asyncio.StreamReader,
                writer: asyncio.StreamWriter,
                connect: Callable[[], Awaitable[Streams]] = connect,
            ) -> None:
                task = self._loop.create_task(self._serve((reader, writer), connect))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

            self._servers.append(await asyncio.start_server(accept, host, port))

    async def close(self) -> None:
        for server in self._servers:
            server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, client: Streams, connect: Callable[[], Awaitable[Streams]]) -> None:
        try:
            server = await connect()
        except OSError:
            client[1].close()
            return
        await asyncio.gather(_pass_on(client[0], server[1]), _pass_on(server[0], client[1]))


async def _pass_on(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    try:
        while data := await source.read(65536):
            sink.write(data)
            await sink.drain()
    except OSError:
        # Either side is gone; the other learns of it by the end of the stream.
        pass
    finally:
        sink.close()
