"""What a trial sends and gets beside manifests: archives in, exports out."""

from __future__ import annotations

import io
import json
import uuid
import zipfile
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sqlalchemy import text

from tests.faults.library import Picture

if TYPE_CHECKING:
    from tests.faults.oracle import Accepted
    from tests.faults.trial import Trial


def make_archive(pictures: Sequence[Picture]) -> bytes:
    """A zip of the images under their names."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for one in pictures:
            archive.writestr(one.custom_id, one.data)
    return out.getvalue()


def send_archive(trial: Trial, archive: bytes) -> tuple[str, str]:
    """Ids of the upload and of its ingest job; the journal has the latter."""
    caller = trial.callers[0]
    key = uuid.uuid4().hex
    answer = trial.stage.client.post(
        caller, "/v1/uploads", archive, key=key, media_type="application/zip"
    )
    job_id = str(answer["job"]["id"])
    trial.stage.journal.write(
        family=trial.family, key=key, tenant=caller.tenant_id, job=job_id, kind="ingest"
    )
    return str(answer["upload"]["id"]), job_id


def export_differs(trial: Trial, source: Accepted, export: Accepted) -> str:
    """What is wrong with an export's file, compared with the rows; nothing where it is whole."""
    stage = trial.stage
    with stage.db.system() as session:
        files = session.execute(
            text("SELECT name, object_key FROM artifacts WHERE job_id = :job ORDER BY name"),
            {"job": export.job_id},
        ).all()
        rows = session.execute(
            text(
                "SELECT ordinal, custom_id, state, prediction FROM items "
                "WHERE job_id = :job ORDER BY ordinal"
            ),
            {"job": source.job_id},
        ).all()
    if [file.name for file in files] != ["manifest.json", "results.jsonl"]:
        return f"export {export.job_id} has the files {[file.name for file in files]}"
    content = stage.store.read(stage.settings.bucket, files[1].object_key)
    lines = [json.loads(line) for line in content.splitlines()]
    told = [
        (
            line["ordinal"],
            line["custom_id"],
            line["state"],
            [[pair["class"], pair["score"]] for pair in line["prediction"]],
        )
        for line in lines
    ]
    if told != [(row.ordinal, row.custom_id, row.state, row.prediction) for row in rows]:
        return f"export {export.job_id} has {len(lines)} lines that are not the {len(rows)} rows"
    return ""
