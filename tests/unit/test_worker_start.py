"""What a worker loads before it takes its first bell: no more than its queue needs."""

from __future__ import annotations

import json
import os
import subprocess
import sys

_LOADED = """
import json, sys
from app.queues.names import Queue
from app.settings import load_settings
from worker.main import make_worker

for queue in sys.argv[1:]:
    _, process = make_worker(load_settings(DATABASE_URL="postgresql://not-used"), Queue(queue))
    assert process.device
print(json.dumps(sorted(sys.modules)))
"""


def loaded_by(*queues: str) -> set[str]:
    """The modules in memory once the doors of these queues stand open."""
    done = subprocess.run(
        [sys.executable, "-c", _LOADED, *queues], capture_output=True, text=True, check=True
    )
    return set(json.loads(done.stdout))


def test_doors_that_compute_load_torch_and_leave_torchvision_for_later() -> None:
    loaded = loaded_by("inference", "training")
    assert "torch" in loaded
    assert not loaded & {"torchvision", "torch._dynamo", "torch._inductor"}


def test_doors_that_move_bytes_load_no_torch() -> None:
    assert not loaded_by("io") & {"torch", "torchvision", "safetensors"}


def test_worker_that_cannot_register_ends_instead_of_taking_chunks_without_a_heartbeat() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "worker.main", "--role", "io"],
        # Port 1: nobody listens there.
        env={**os.environ, "DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none"},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 1
    assert "worker_not_started" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


_TOLD_WHILE_IT_STARTS = """
import os, signal, sys
from worker import main

main._start = lambda *_: os.kill(os.getpid(), signal.SIGTERM)
sys.argv = ["worker.main", "--role", "io"]
main.main()
"""


def test_worker_that_is_told_to_stop_while_it_starts_ends_well() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _TOLD_WHILE_IT_STARTS],
        env={**os.environ, "DATABASE_URL": "postgresql://not-used"},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
