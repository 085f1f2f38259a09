"""A way to a server that breaks: it carries so many bytes of an answer and then hangs up."""

from __future__ import annotations

import socket
import threading
from typing import Self


class CuttingProxy:
    """Listens on ``port`` and cuts every connection after ``after_bytes`` of the answer."""

    def __init__(self, to_port: int, *, after_bytes: int) -> None:
        self._to_port = to_port
        self._after_bytes = after_bytes
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads: list[threading.Thread] = []
        self.port: int = self._listener.getsockname()[1]
        self.connections = 0

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        # Wakes the accept as well, which close alone does not.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(30)

    def _start(self, work: object, *args: object) -> None:
        thread = threading.Thread(target=work, args=args)  # type: ignore[arg-type]
        thread.start()
        self._threads.append(thread)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._start(self._carry, client)

    def _carry(self, client: socket.socket) -> None:
        with client, socket.create_connection(("127.0.0.1", self._to_port)) as server:
            server.sendall(client.recv(65536))
            left = self._after_bytes
            while left > 0:
                piece = server.recv(min(left, 65536))
                if not piece:
                    return
                client.sendall(piece)
                left -= len(piece)
