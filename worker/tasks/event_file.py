"""The curves of a training as a file that TensorBoard reads.

It is written in one go from the job's metrics, when the training is over: whatever happened on
the way, each epoch is in it once, with the numbers that the API shows.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from app.jobs.claim import Lease
from app.training.metrics import MetricPoint, read_metrics
from worker.process import WorkerProcess
from worker.tasks.artifacts import store_artifact
from worker.tasks.files import memory_file, path_of

#: TensorBoard takes a file for one of its own by this beginning of the name.
_NAME = "events.out.tfevents"
_SPLITS = ("train", "validation", "test")
_STEPS = "steps"


def store_event_file(process: WorkerProcess, lease: Lease) -> list[dict[str, Any]]:
    """Store the event file of a job's metrics so far.

    Returns the columns of its artifact, not registered yet; nothing where no epoch is over.

    Raises:
        UnavailableError: the database or the store does not answer.
    """
    points = list(_read_all(process, lease))
    if not points:
        return []
    began = int(points[0].recorded_at.timestamp())
    content = write_events(points, lease.options["recipe"])
    name = f"{_NAME}.{began}.{lease.job_id}"
    return [store_artifact(process, lease, name, "application/octet-stream", content)]


def write_events(points: Sequence[MetricPoint], recipe: Mapping[str, Any]) -> bytes:
    """The metrics as TFRecords of TensorBoard's events, and the recipe as a text.

    ``points`` come by step, which is the epoch. TensorBoard's step is the number of changes of
    the weights, so that runs of different batch sizes lie side by side; the epoch is a curve of
    its own. Numbers become float32, and one that was not finite is left out. The 10,000 epochs
    that a recipe may have make 4 MB.
    """
    from tensorboardX import summary
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import RecordWriter

    began_at = points[0].recorded_at.timestamp()
    epochs: dict[int, list[MetricPoint]] = defaultdict(list)
    for point in points:
        epochs[point.step].append(point)
    events = [
        Event(wall_time=began_at, file_version="brain.Event:2"),
        Event(wall_time=began_at, step=0, summary=summary.text("recipe", _table(recipe))),
    ]
    for epoch, logged in epochs.items():
        values = {point.name: point.value for point in logged if point.value is not None}
        step = int(values.pop(_STEPS, epoch))
        at = logged[0].recorded_at.timestamp()
        for name, value in [("epoch", float(epoch)), *values.items()]:
            scalar = summary.scalar(_tag(name), value)
            events.append(Event(wall_time=at, step=step, summary=scalar))
    with memory_file() as file:
        writer = RecordWriter(str(path_of(file)))
        for event in events:
            writer.write(event.SerializeToString())
        writer.close()
        file.seek(0)
        return file.read()


def _read_all(process: WorkerProcess, lease: Lease) -> Iterable[MetricPoint]:
    after: str | None = None
    while True:
        with process.db.tenant(lease.tenant_id) as session:
            points, has_more = read_metrics(session, lease.tenant_id, lease.job_id, after=after)
        yield from points
        if not has_more:
            return
        after = points[-1].id


def _tag(name: str) -> str:
    """``loss/train`` for ``train_loss``: TensorBoard shows what begins alike side by side."""
    split, _, measure = name.partition("_")
    return f"{measure}/{split}" if split in _SPLITS and measure else name


def _table(recipe: Mapping[str, Any]) -> str:
    """The fields of a recipe as a table in Markdown, which TensorBoard renders."""
    rows = [f"| {name} | `{json.dumps(value)}` |" for name, value in sorted(recipe.items())]
    return "\n".join(["| field | value |", "| --- | --- |", *rows])
