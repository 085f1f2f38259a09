"""A switch and hosts on it, each host a network namespace with an address of its own.

The caller's own network namespace holds the switch and stands on it too, so the caller must
have left the machine's (``unshare --net``): nothing outside is touched, nothing can be reached.
A namespace lives as long as a process stands in it, so none is left behind.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

#: The caller's address on the switch; the hosts follow.
HERE = "10.213.0.1"
_SWITCH = "switch"


class Host:
    """A machine of its own, as far as the network can tell."""

    def __init__(self, number: int) -> None:
        self.address = f"10.213.0.{number + 1}"
        self._port = f"port{number}"
        # Its only process stands still; it ends when the pipe to us does.
        self._holder = subprocess.Popen(["unshare", "--net", "cat"], stdin=subprocess.PIPE)

    @property
    def network(self) -> Path:
        """Its network namespace."""
        return Path(f"/proc/{self._holder.pid}/ns/net")

    @property
    def command(self) -> Sequence[str]:
        """Words before a command that is to run on this host."""
        return ["nsenter", f"--target={self._holder.pid}", "--net", "--"]

    def plug_in(self) -> None:
        """Connect it to the switch for the first time."""
        while os.readlink(self.network) == os.readlink("/proc/self/ns/net"):
            assert self._holder.poll() is None, "unshare has ended"
            os.sched_yield()
        peer = ["peer", "name", "eth0", "netns", str(self._holder.pid)]
        _run("ip", "link", "add", self._port, "type", "veth", *peer)
        self.join()
        _run("ip", "link", "set", self._port, "up")
        _run(*self.command, "ip", "address", "add", f"{self.address}/24", "dev", "eth0")
        _run(*self.command, "ip", "link", "set", "lo", "up")
        _run(*self.command, "ip", "link", "set", "eth0", "up")

    def cut(self) -> None:
        """Let every packet from and to it vanish; its own side sees no change."""
        _run("ip", "link", "set", self._port, "nomaster")

    def join(self) -> None:
        """Let packets through again."""
        _run("ip", "link", "set", self._port, "master", _SWITCH)

    def close(self) -> None:
        """End the namespace, once the processes that run in it have ended."""
        assert self._holder.stdin is not None
        self._holder.stdin.close()
        self._holder.wait()


@contextmanager
def switched_hosts(count: int) -> Iterator[list[Host]]:
    """So many hosts on one switch, which this process is on as well."""
    _run("ip", "link", "set", "lo", "up")
    _run("ip", "link", "add", _SWITCH, "type", "bridge")
    _run("ip", "address", "add", f"{HERE}/24", "dev", _SWITCH)
    _run("ip", "link", "set", _SWITCH, "up")
    hosts: list[Host] = []
    try:
        for number in range(1, count + 1):
            hosts.append(Host(number))
            hosts[-1].plug_in()
        yield hosts
    finally:
        for host in hosts:
            host.close()


def _run(*command: str) -> None:
    subprocess.run(command, check=True)
