"""Measure an evaluation whose items are all done, and write its report."""

from __future__ import annotations

import json
import os
from typing import Any

from app.clock import utc_now
from app.datasets.resolve import names_of_dataset_versions
from app.datasets.tables import Split
from app.jobs.answered import name_items
from app.jobs.claim import Lease
from app.jobs.record import record_chunk
from app.jobs.source import describe_input
from app.log import get_logger
from app.models.calibrate import keep_calibration
from app.models.evaluations import record_evaluation
from app.models.resolve import get_version, names_of_versions, spec_of
from app.models.rights import Answers
from app.models.shared import require_answers
from worker.evaluation.measure import Evaluation
from worker.evaluation.page import write_page
from worker.evaluation.report import (
    NotableItem,
    Report,
    Subject,
    summarise,
    write_csv,
)
from worker.heartbeat import HeldLease
from worker.process import WorkerProcess
from worker.tasks.answers import EvaluationStoppedError, GatheredAnswers
from worker.tasks.artifacts import add_artifacts, store_artifact
from worker.tasks.door import let_go
from worker.tasks.files import unnamed_file

log = get_logger(__name__)

#: Unknown labels that a report names.
_LABELS_SHOWN = 20


def evaluate_chunk(process: WorkerProcess, held: HeldLease) -> None:
    """Gather the answers, measure them, and register report and scores with the job's end.

    A report is made in one go: one that is stopped or killed begins anew.
    """
    lease = held.lease
    # Else it looks for fonts anew in each process, where its home cannot be written to.
    fonts = process.settings.cache_dir.expanduser() / "matplotlib"
    os.environ.setdefault("MPLCONFIGDIR", str(fonts))

    def on_part() -> None:
        if held.should_stop():
            raise EvaluationStoppedError

    subject, classes, exact = _look_up(process, lease)
    try:
        with unnamed_file() as file:
            answers = GatheredAnswers(classes, lease, held)
            answers.gather(process, file if exact else None)
            evaluation = answers.measure(file, on_part)
    except EvaluationStoppedError:
        let_go(process, held)
        return
    report = _report(process, lease, subject, answers, evaluation)
    stored = [
        store_artifact(process, lease, name, media_type, content)
        for name, media_type, content in (
            ("report.html", "text/html; charset=utf-8", write_page(report)),
            ("report.json", "application/json", _json(report)),
            ("report.csv", "text/csv; charset=utf-8", write_csv(report)),
        )
    ]
    with process.db.tenant(lease.tenant_id) as session:
        # The fence first: an attempt that lost its lease registers nothing.
        summary = summarise(report)
        record_chunk(session, lease, result=summary)
        if lease.dataset_version_id is not None and not lease.is_shared:
            split = lease.input.get("split")
            record_evaluation(
                session,
                lease.tenant_id,
                version_id=subject.model_version_id,
                dataset_version_id=lease.dataset_version_id,
                split=Split(split) if split else None,
                job_id=lease.job_id,
                items=evaluation.images,
                scores=summary,
            )
        add_artifacts(session, lease, stored)
        if evaluation.calibration is not None and lease.options["keep_temperature"]:
            keep_calibration(
                session,
                lease.tenant_id,
                str(lease.model_version_id),
                _calibration(lease, subject, evaluation),
            )
    log.info("evaluated", images=evaluation.images, accuracy=evaluation.scores.accuracy)


def _look_up(process: WorkerProcess, lease: Lease) -> tuple[Subject, tuple[str, ...], bool]:
    """What is evaluated, its classes, and whether its exact scores may be looked at.

    Raises:
        ForbiddenError: ``model_grant_revoked``.
    """
    version_id = str(lease.model_version_id)
    with process.db.tenant(lease.tenant_id) as session:
        if lease.is_shared:
            shared = require_answers(
                session, version_id, labelled=lease.dataset_version_id is not None
            )
            spec, weights_sha256 = shared.spec, shared.weights_sha256
            model, exact = shared.reference, shared.blurs() is Answers.FULL
        else:
            version = get_version(session, lease.tenant_id, version_id)
            spec, weights_sha256 = spec_of(version), str(version.weights_sha256)
            model = names_of_versions(session, lease.tenant_id, {version_id})[version_id]
            exact = True
        images = _describe(lease.input)
        if lease.dataset_version_id is not None:
            ids = {lease.dataset_version_id}
            name = names_of_dataset_versions(session, lease.tenant_id, ids).popitem()[1]
            images = f"{name}, {split}" if (split := lease.input.get("split")) else name
    subject = Subject(
        job_id=lease.job_id,
        model=model,
        model_version_id=version_id,
        weights_sha256=weights_sha256,
        preprocess_sha256=spec.preprocess.digest,
        images=images,
        dataset_version_id=lease.dataset_version_id,
        made_at=utc_now().isoformat(),
    )
    return subject, tuple(spec.classes), exact


def _describe(source: dict[str, Any]) -> str:
    return describe_input(source).removeprefix("the ")


def _report(
    process: WorkerProcess,
    lease: Lease,
    subject: Subject,
    answers: GatheredAnswers,
    evaluation: Evaluation,
) -> Report:
    notables = {each.index for each in evaluation.hardest + evaluation.confidently_wrong}
    ordinals = [answers.ordinals[index] for index in notables]
    with process.db.tenant(lease.tenant_id) as session:
        names = name_items(session, lease.tenant_id, lease.job_id, ordinals)
    return Report(
        subject=subject,
        counts=answers.counts(),
        unknown_labels=dict(answers.unknown.most_common(_LABELS_SHOWN)),
        evaluation=evaluation,
        items={index: NotableItem(*names[answers.ordinals[index]]) for index in notables},
    )


def _json(report: Report) -> bytes:
    return json.dumps(report.as_dict(), ensure_ascii=False, allow_nan=False).encode() + b"\n"


def _calibration(lease: Lease, subject: Subject, evaluation: Evaluation) -> dict[str, Any]:
    """What is kept with the version: the temperature, and what it was fitted on."""
    found = evaluation.calibration
    assert found is not None
    return {
        "temperature": found.temperature,
        "ece": found.ece,
        "ece_scaled": found.ece_scaled,
        "log_loss": found.log_loss,
        "log_loss_scaled": found.log_loss_scaled,
        "images": evaluation.images,
        "on": subject.images,
        "job": lease.job_id,
        "fitted_at": subject.made_at,
    }
