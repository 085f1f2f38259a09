"""Starts workers and dispatchers in a tenth of a second instead of seven.

Tests start many processes and kill most of them, and each new one would import torch and Celery
for seconds on the machine's few cores. This process imports them once, opens nothing and forks: a
child is a whole process of its own, with its own environment, connections and threads.

``python -m tests.nursery`` reads one JSON request a line. It answers that for a process with a
pid, and that for the end of one with what the process ended with.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from app.settings import Settings
from app.storage.client import make_client

_PR_SET_PDEATHSIG = 1
_CLONE_NEWNET = 0x40000000
_PRELOADED = (
    "torch",
    "billiard.pool",
    "boto3.s3.inject",
    "celery.app.amqp",
    "celery.app.control",
    "celery.app.events",
    "celery.app.log",
    "celery.apps.worker",
    "celery.backends.base",
    "celery.bin.celery",
    "celery.concurrency.thread",
    "celery.contrib.migrate",
    "celery.fixups.django",
    "celery.worker.autoscale",
    "celery.worker.components",
    "celery.worker.consumer",
    "celery.worker.consumer.delayed_delivery",
    "celery.worker.loops",
    "celery.worker.strategy",
    "kombu.mixins",
    "kombu.transport.redis",
    "kombu.utils.limits",
    "tests.faults.fakes",
    "tests.faults.worker",
    "worker.tasks.evaluate",
    "worker.tasks.finetune",
    "worker.tasks.predict",
    "worker.tasks.import_weights",
    "worker.tasks.plan",
    "worker.tasks.ingest",
    "worker.tasks.export",
    "worker.recognisers.load",
    "tests.faults.dispatcher",
)


class Child:
    """A forked process, with the words of :class:`subprocess.Popen`; threads may share it.

    Watched and ended through a handle that no other pid can take over.
    """

    def __init__(self, nursery: Nursery, pid: int) -> None:
        self.pid = pid
        #: Its exit status once it was seen to have ended, negative for a signal.
        self.returncode: int | None = None
        self._nursery = nursery
        self._handle = os.pidfd_open(pid)
        self._lock = threading.Lock()

    def poll(self) -> int | None:
        """Its exit status, or None while it lives; a stopped one lives."""
        with self._lock:
            if self.returncode is None and self._has_ended(0):
                self.returncode = self._nursery.end_of(self.pid)
                os.close(self._handle)
            return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Its exit status, once it has ended.

        Raises:
            subprocess.TimeoutExpired: it lives after so many seconds.
        """
        if self.returncode is None and not self._has_ended(timeout):
            raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
        status = self.poll()
        assert status is not None
        return status

    def send_signal(self, number: signal.Signals) -> None:
        """Signal it; one that has ended is fine."""
        with self._lock, contextlib.suppress(ProcessLookupError):
            # Whoever still holds this object later must not hit another process.
            if self.returncode is None:
                signal.pidfd_send_signal(self._handle, number)

    def terminate(self) -> None:
        """Ask it to stop."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it without a word."""
        self.send_signal(signal.SIGKILL)

    def _has_ended(self, seconds: float | None) -> bool:
        return bool(select.select([self._handle], [], [], seconds)[0])


class Nursery:
    """The forking process, from its parent's side; safe to share between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.nursery"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        if self._process.stdout.readline().strip() != "ready":
            raise RuntimeError("the nursery did not start; what it said stands in our stderr")

    def start(
        self,
        module: str,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        log: Path,
        network: Path | None = None,
    ) -> Child:
        """A new process that runs ``module.main()``; it dies with the nursery.

        ``network`` is the network namespace that it lives in, where that is not ours.
        """
        request = {
            "module": module,
            "arguments": list(arguments),
            "environment": dict(environment),
            "log": str(log),
            "network": network and str(network),
        }
        return Child(self, self._ask(request))

    def end_of(self, pid: int) -> int:
        """What a child that has ended ended with; asked once."""
        return self._ask({"ended": pid})

    def close(self) -> None:
        """End the nursery, and with it whatever it started."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=30)

    def _ask(self, request: Mapping[str, Any]) -> int:
        with self._lock:
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            return int(self._process.stdout.readline())


@cache
def shared_nursery() -> Nursery:
    """The one of this process, started on first use."""
    nursery = Nursery()
    atexit.register(nursery.close)
    return nursery


class Ended(NamedTuple):
    """What a process ended with, and all that it said."""

    status: int
    said: str


def run_forked(
    module: str, arguments: Sequence[str], environment: Mapping[str, str], *, seconds: float = 60
) -> Ended:
    """Run ``module.main()`` in a process of its own until it ends.

    Raises:
        subprocess.TimeoutExpired: it lives after so many seconds.
    """
    with tempfile.NamedTemporaryFile("r") as log:
        child = shared_nursery().start(module, arguments, environment, Path(log.name))
        try:
            status = child.wait(seconds)
        finally:
            child.kill()
        return Ended(status, log.read())


def _die_with(parent: int) -> None:
    """Have the kernel end this process the moment its parent is gone."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _fork(request: Mapping[str, Any], nursery: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        _die_with(nursery)
        log = os.open(request["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        null = os.open(os.devnull, os.O_RDONLY)
        for old, new in ((null, 0), (log, 1), (log, 2)):
            os.dup2(old, new)
        if request["network"]:
            _enter_network(request["network"])
        os.environ.clear()
        os.environ.update(request["environment"])
        sys.argv = [request["module"], *request["arguments"]]
        importlib.import_module(request["module"]).main()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _enter_network(path: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    namespace = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    if libc.setns(namespace, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns", path)


def _serve() -> None:
    # Read as OpenMP is loaded; a worker for training sets it for itself before it imports torch.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for module in _PRELOADED:
        importlib.import_module(module)
    # The description of S3, half a second of JSON.
    make_client(Settings(DATABASE_URL="postgresql://x:y@127.0.0.1:1/z", S3_ENDPOINT_URL="http://x"))
    # What is shared stays shared: no child's collector writes to it.
    gc.freeze()
    print("ready", flush=True)  # noqa: T201  the protocol
    # Until whoever started this closes the pipe, or ends.
    for line in sys.stdin:
        request = json.loads(line)
        if "ended" in request:
            answer = os.waitstatus_to_exitcode(os.waitpid(request["ended"], 0)[1])
        else:
            answer = _fork(request, os.getpid())
        print(answer, flush=True)  # noqa: T201


if __name__ == "__main__":
    _serve()
