"""The end of a training that was told to stop: the best network of a cancelled one is kept.

Its version is ready, without scores and without an alias: it can be evaluated, promoted, or
taken as the start of another training.
"""

from __future__ import annotations

from sqlalchemy.orm import Session

from app.errors import DarkroomError, FencedError
from app.jobs.record import record_stopped
from app.log import get_logger
from app.models.register import complete_version
from app.models.spec import ModelSpec
from worker.heartbeat import HeldLease
from worker.process import WorkerProcess
from worker.recognisers.cost import count_macs
from worker.recognisers.weights import check_weights, save_weights
from worker.tasks.artifacts import add_artifacts
from worker.tasks.door import let_go
from worker.tasks.event_file import store_event_file
from worker.tasks.files import memory_file, path_of
from worker.tasks.versions import store_weights
from worker.training.state import TrainingState

log = get_logger(__name__)


def end_stopped(
    process: WorkerProcess, held: HeldLease, spec: ModelSpec, state: TrainingState | None
) -> None:
    """Give the chunk back, or end it with the version of what was best so far.

    Only a job that is over for good keeps one, by cancel, deadline or quota, and only after a
    whole epoch. Where it cannot be stored, the job ends without.

    Raises:
        FencedError: the lease was lost.
    """
    if held.cancelled.is_set() and not held.lost.is_set() and state is not None and state.epoch:
        try:
            _keep(process, held, spec, state)
            return
        except FencedError:
            raise
        except DarkroomError as error:
            log.warning("stopped_training_not_kept", code=error.code, detail=error.detail)
    let_go(process, held)


def _keep(process: WorkerProcess, held: HeldLease, spec: ModelSpec, state: TrainingState) -> None:
    lease = held.lease
    with memory_file() as file:
        save_weights(state.kept_weights(), path_of(file))
        report = check_weights(path_of(file), spec)
        stored = store_weights(process, held, file)
    curves = store_event_file(process, lease)

    def complete(session: Session) -> None:
        complete_version(
            session,
            lease.tenant_id,
            str(lease.model_version_id),
            spec=spec,
            weights_key=stored.key,
            weights_sha256=stored.sha256,
            weights_bytes=stored.size_bytes,
            sealed_sha256=stored.sealed_sha256,
            parameter_count=report.parameters,
            macs=count_macs(spec),
            lineage={
                "epoch": state.best.epoch if state.best is not None else state.epoch,
                "epochs": state.epoch,
                "ended_by": "stopped",
            },
        )
        add_artifacts(session, lease, curves)

    with process.db.tenant(lease.tenant_id) as session:
        record_stopped(session, lease, before_close=complete)
    log.info("stopped_training_kept", version=lease.model_version_id, epoch=state.epoch)
