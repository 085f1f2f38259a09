"""Queues, the names of the tasks in them, and how many chunks a worker of each takes at once."""

from __future__ import annotations

import enum


class Queue(enum.StrEnum):
    """What a worker process serves; one worker, one queue."""

    #: Short work on the device: recognition, reports of evaluations, checks of imported weights.
    INFERENCE = "inference"
    #: Long work on the device: fine-tuning, and the trials of searches.
    TRAINING = "training"
    #: Work without torch: planning, ingest, export. Runs in the API's slim image.
    IO = "io"


#: Task of a chunk → the queue its bell is rung in.
QUEUE_OF_TASK = {
    "plan": Queue.IO,
    "ingest": Queue.IO,
    "export": Queue.IO,
    "predict": Queue.INFERENCE,
    "evaluate": Queue.INFERENCE,
    "import": Queue.INFERENCE,
    "finetune": Queue.TRAINING,
    "trial": Queue.TRAINING,
}

#: Chunks a worker works on at once. Two for inference: one computes while the next is
#: fetched and decoded. Three for io: two exports, and one for what gives its slot back.
SLOTS_OF_QUEUE = {Queue.INFERENCE: 2, Queue.TRAINING: 1, Queue.IO: 3}

#: Tasks that hold their slot to their end beside others that give it back where somebody waits.
#: Of the slots of their queue one for each worker is kept free of them.
HOLDING_TASKS = ("export",)


def celery_task_name(task: str) -> str:
    """The Celery name of the door that a chunk's task opens, e.g. ``darkroom.predict``."""
    return f"darkroom.{task}"
