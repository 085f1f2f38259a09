"""What one worker process holds: its connections, its leases, and for torch its device.

Threads of the process share it. Nothing heavy is made before it is needed, so that a worker
without torch runs in the slim image.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING

from app.db.schema import require_schema
from app.db.session import Database
from app.ids import WORKER, new_id
from app.queues.names import SLOTS_OF_QUEUE, Queue
from app.settings import Settings
from app.storage.s3 import ObjectStore
from worker.gate import Gate
from worker.gauges import WorkerGauges
from worker.heartbeat import Heartbeat
from worker.pipeline.timing import SharedTime
from worker.watchdog import Hearing

if TYPE_CHECKING:
    from app.keyring import Keyring
    from worker.pipeline.decode import DecodePool
    from worker.recognisers.cache import RecogniserCache

#: Weights that stay warm in one process, in bytes.
_WARM_BYTES = 4 * 1024**3


class WorkerProcess:
    """One running worker: who it is, what it holds, and whether it has been told to stop."""

    def __init__(self, settings: Settings, queue: Queue) -> None:
        self.settings = settings
        self.queue = queue
        self.slots = SLOTS_OF_QUEUE[queue]
        self.id = new_id(WORKER)
        self.host = socket.gethostname()
        self.name = f"{self.host}:{settings.worker_name or f'{queue.value}-{os.getpid()}'}"
        self.db = Database.from_settings(settings)
        self.store = ObjectStore.from_settings(settings)
        #: Set once the process must stop: running chunks record what is finished and let go.
        self.stopping = threading.Event()
        #: Called once another process has taken this one's name; must end the process.
        self.on_replaced: Callable[[], None] = self.stopping.set
        self.heartbeat = Heartbeat(self)
        #: Passed by every chunk before it is claimed; a suspect holds it alone.
        self.gate = Gate(self.stopping)
        self.hearing = Hearing()
        self.gauges = WorkerGauges(self)
        #: The time of the process, divided among the chunks that it recognises at once.
        self.time = SharedTime()
        self._decoder: DecodePool | None = None
        self._decoder_lock = threading.Lock()

    @cached_property
    def device(self) -> str:
        """The device that this worker computes on; ``none`` where it never does."""
        if self.queue is Queue.IO:
            return "none"
        from worker.recognisers.load import choose_device

        return choose_device(self.settings.device)

    @cached_property
    def device_name(self) -> str:
        """What that device is called, such as ``NVIDIA H200, float32``."""
        from worker.pipeline.device import describe_device

        return describe_device(self.device)

    @cached_property
    def train_devices(self) -> list[str]:
        """The devices of one training; the first is :attr:`device`.

        Raises:
            SettingsError: the machine has fewer than the settings ask for.
        """
        from worker.training.lead import choose_devices

        return choose_devices(self.settings.train_devices, self.device)

    @cached_property
    def recognisers(self) -> RecogniserCache:
        """Recognisers kept warm between chunks."""
        from worker.recognisers.cache import RecogniserCache

        return RecogniserCache(_WARM_BYTES)

    @cached_property
    def keyring(self) -> Keyring:
        """The keys that open what lies sealed."""
        from app.keyring import Keyring

        return Keyring.from_settings(self.settings)

    @property
    def decoder(self) -> DecodePool:
        """The decode children, started when the first image comes."""
        from worker.pipeline.decode import DecodePool
        from worker.pipeline.limits import DecodeLimits

        settings = self.settings
        with self._decoder_lock:
            if self._decoder is None:
                self._decoder = DecodePool.start(
                    settings.decode_process_count,
                    settings.max_image_bytes,
                    DecodeLimits(
                        max_pixels=settings.max_image_pixels,
                        max_aspect=settings.max_image_aspect,
                        max_frames=settings.max_image_frames,
                        memory_bytes=settings.decode_memory_bytes,
                        cpu_seconds=settings.decode_cpu_seconds,
                        item_seconds=settings.decode_seconds,
                    ),
                )
            return self._decoder

    def warm_versions(self) -> list[str]:
        """Ids of the model versions that are in memory."""
        warm = self.__dict__.get("recognisers")
        return warm.version_ids() if warm is not None else []

    def start(self) -> None:
        """Register, and begin to beat.

        Raises:
            SchemaError: the database was migrated by another version of Darkroom.
            UnavailableError: the database does not answer.
            SettingsError: this machine has fewer devices than a training is to use.
        """
        require_schema(self.db)
        if self.queue is Queue.TRAINING and self.settings.train_devices != "1":
            # Now, and not when the first training comes.
            _ = self.train_devices
        if self.queue is not Queue.IO and self.settings.torch_threads:
            import torch

            torch.set_num_threads(self.settings.torch_threads)
        self.heartbeat.start()

    def close(self) -> None:
        """Say goodbye, end the children, close the connections."""
        self.stopping.set()
        self.heartbeat.close()
        if self._decoder is not None:
            self._decoder.close()
        self.db.close()
