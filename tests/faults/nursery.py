"""Starts workers and dispatchers in a tenth of a second instead of three.

Hundreds of processes die in a fault run, and each new one would import torch and Celery for
seconds on the machine's few cores. This process imports them once, opens nothing and forks: a
child is a whole process of its own, with its own environment, connections and threads.

``python -m tests.faults.nursery`` reads one JSON request a line and answers each with a pid.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_PR_SET_PDEATHSIG = 1
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
    "worker.tasks.predict",
    "worker.tasks.import_weights",
    "worker.tasks.plan",
    "worker.tasks.ingest",
    "worker.tasks.export",
    "worker.recognisers.load",
    "tests.faults.dispatcher",
)


class Child:
    """A forked process, watched and ended through a handle that no other pid can take over."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._handle = os.pidfd_open(pid)

    def is_alive(self) -> bool:
        """Whether it has not ended yet; a stopped one is alive."""
        return self._handle >= 0 and not select.select([self._handle], [], [], 0)[0]

    def wait(self, seconds: float) -> bool:
        """Whether it ended within so many seconds."""
        return bool(select.select([self._handle], [], [], seconds)[0])

    def send(self, number: signal.Signals) -> None:
        """Signal it; one that has ended is fine."""
        # Whoever still holds this object after it was closed must not hit another process.
        if self._handle < 0:
            return
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._handle, number)

    def close(self) -> None:
        """Give the handle back."""
        os.close(self._handle)
        self._handle = -1


class Nursery:
    """The forking process, from its parent's side; safe to share between threads."""

    def __init__(self, log: Path) -> None:
        self._lock = threading.Lock()
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.faults.nursery", str(os.getpid())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                text=True,
            )
        assert self._process.stdout is not None
        if self._process.stdout.readline().strip() != "ready":
            raise RuntimeError(f"the nursery did not start:\n{log.read_text()}")

    def start(
        self, module: str, arguments: list[str], environment: Mapping[str, str], log: Path
    ) -> Child:
        """A new process that runs ``module.main()``; it dies with the nursery."""
        request = {
            "module": module,
            "arguments": arguments,
            "environment": dict(environment),
            "log": str(log),
        }
        with self._lock:
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        return Child(int(answer))

    def close(self) -> None:
        """End the nursery, and with it whatever it started."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=30)


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
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
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


def _read_service_models() -> None:
    """Parse what boto3 reads to make a client, half a second of JSON, for the children to use."""
    import boto3
    from botocore.loaders import JSONFileLoader

    read: dict[str, Any] = {}
    load_file = JSONFileLoader.load_file

    def note_file(self: Any, path: str) -> Any:
        read[path] = None
        return load_file(self, path)

    def give_file(self: Any, path: str) -> Any:
        # Once: a client changes what it was given.
        return read.pop(path) if path in read else load_file(self, path)

    JSONFileLoader.load_file = note_file
    boto3.session.Session().client("s3", region_name="us-east-1")
    for path in read:
        read[path] = load_file(JSONFileLoader(), path)
    JSONFileLoader.load_file = give_file


def _serve() -> None:
    _die_with(int(sys.argv[1]))
    for module in _PRELOADED:
        importlib.import_module(module)
    _read_service_models()
    # The kernel reaps; nobody here waits for a child.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    print("ready", flush=True)  # noqa: T201  the protocol
    for line in sys.stdin:
        print(_fork(json.loads(line), os.getpid()), flush=True)  # noqa: T201


if __name__ == "__main__":
    _serve()
