"""The checkpoints of a training: stored under a key of their own, then named by the cursor.

A kill at any moment leaves the cursor at a whole checkpoint. The one before it is kept too,
for the case that the newest cannot be read back. What was stored and never named, or named
and not deleted, goes when the job has ended (``app/dispatch/cleanup_objects.py``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from io import BufferedRandom
from typing import Any

from sqlalchemy.orm import Session

from app.clock import monotonic_seconds
from app.db.hold import deletions_held
from app.errors import FencedError, ObjectMissingError, StorageError, UnavailableError
from app.jobs.claim import Lease
from app.jobs.record import record_part
from app.log import get_logger
from app.models.weights import version_data_key
from app.points import reach
from app.sealing.bundle import SealedDamagedError, Subject
from app.storage import keys
from worker.heartbeat import HeldLease
from worker.process import WorkerProcess
from worker.tasks.files import memory_file, path_of
from worker.tasks.sealed import store_sealed, unseal_into
from worker.tasks.versions import fetch_object
from worker.training.checkpoint import (
    CheckpointRefusedError,
    restore_checkpoint,
    save_checkpoint,
)
from worker.training.data import TrainingStoppedError
from worker.training.state import TrainingState

log = get_logger(__name__)

#: The newest, and the one before it.
_KEPT = 2


class Checkpoints:
    """What one attempt at a training knows of its checkpoints, and writes of them."""

    def __init__(self, process: WorkerProcess, held: HeldLease) -> None:
        self._process = process
        self._held = held
        #: Newest first: key, sha256, and where the training stood.
        cursor = held.lease.cursor or {}
        self._kept: list[dict[str, Any]] = list(cursor.get("checkpoints", ()))
        #: Steps that the furthest checkpoint of all attempts had behind it: only past this
        #: has the chunk got on.
        self._furthest: int = cursor.get("furthest", 0)
        self._kept_steps = 0
        self._kept_at = monotonic_seconds()
        #: The training once it has begun.
        self.state: TrainingState | None = None

    @property
    def lease(self) -> Lease:
        """Under which they are written."""
        return self._held.lease

    def alive(self, _answered: int) -> None:
        """Say that the work goes on while no step ends, as while a large split is answered."""
        self._held.report(self._held.progress)

    def resume(self, state: TrainingState) -> None:
        """Go on from the newest checkpoint that can be read; without one, from the beginning.

        Raises:
            StorageError: the store does not answer; trying again may help.
            SealError: the key that seals them is not here; no reason to begin anew.
        """
        self.state = state
        while self._kept:
            newest = self._kept[0]
            try:
                self._restore(state, newest)
            except (CheckpointRefusedError, SealedDamagedError, ObjectMissingError) as error:
                log.warning("checkpoint_refused", key=newest["key"], detail=error.detail)
                # The cursor names it no more; it is deleted when the job has ended.
                self._kept.pop(0)
                continue
            log.info(
                "training_resumed", key=newest["key"], epoch=state.epoch, steps=state.epoch_steps
            )
            break
        self._kept_steps = state.steps
        self.report(_progress(state))

    def before_step(self, state: TrainingState) -> None:
        """Keep a checkpoint where one is due, or where the training must stop.

        Raises:
            TrainingStoppedError: it must stop.
        """
        held = self._held
        held.report(state.steps)
        if held.should_stop():
            # Of a cancelled job nobody needs it, and under a lost lease nobody may write it.
            if not held.lost.is_set() and not held.cancelled.is_set():
                self._keep_if_possible(state)
            raise TrainingStoppedError("training was told to stop")
        if monotonic_seconds() - self._kept_at >= self._process.settings.checkpoint_seconds:
            self._keep_if_possible(state)

    def keep_epoch(self, state: TrainingState, also: Callable[[Session], None]) -> None:
        """Keep a checkpoint of an epoch that is over, in one transaction with ``also``.

        So the epoch's numbers are written once: a training that goes on before its end has
        not written them. A store that does not answer costs the checkpoint, not the training.

        Raises:
            FencedError: the lease was lost; nothing is written.
            UnavailableError: the database does not answer.
        """
        self._held.report(state.steps)
        try:
            newest = self._store(state)
        except StorageError as error:
            log.warning("checkpoint_not_kept", code=error.code, detail=error.detail)
            newest = None
        self._record(newest, _progress(state), also)

    def report(self, progress: dict[str, Any]) -> None:
        """Show how far the job is.

        Raises:
            FencedError: the lease was lost.
            UnavailableError: the database does not answer.
        """
        self._record(None, progress)

    def _keep_if_possible(self, state: TrainingState) -> None:
        """Keep a checkpoint within an epoch, if anything was learnt since the last one."""
        if state.steps == self._kept_steps:
            return
        try:
            self._record(self._store(state), _progress(state))
        except UnavailableError as error:
            log.warning("checkpoint_not_kept", code=error.code, detail=error.detail)
            # Not before every step from now on: the next when its time has come.
            self._kept_at = monotonic_seconds()

    def _store(self, state: TrainingState) -> dict[str, Any]:
        lease = self._held.lease
        key = keys.checkpoint(
            lease.tenant_id, lease.job_id, lease.attempt, state.steps, lease.trial
        )
        reach("checkpoint_begun")
        with memory_file() as file:
            save_checkpoint(state, path_of(file))
            stored = store_sealed(
                self._process, lease, key, file, kind=_kind(key), on_part=self._held.move
            )
        reach("checkpoint_stored")
        return {
            "key": key,
            # Of the object, as a backup compares it; and of what is sealed in it.
            "sha256": stored.sealed_sha256,
            "plain_sha256": stored.sha256,
            "epoch": state.epoch,
            "epoch_steps": state.epoch_steps,
            "steps": state.steps,
        }

    def _record(
        self,
        newest: dict[str, Any] | None,
        progress: dict[str, Any],
        also: Callable[[Session], None] = lambda _: None,
    ) -> None:
        """Commit the cursor, then delete what it names no more."""
        lease, process = self._held.lease, self._process
        named, furthest = self._kept, self._furthest
        if newest is not None:
            named, furthest = [newest, *named], max(newest["steps"], furthest)
        gained = furthest > self._furthest
        try:
            with process.db.tenant(lease.tenant_id) as session:
                record_part(
                    session,
                    lease,
                    cursor={"checkpoints": named[:_KEPT], "furthest": furthest},
                    gained=gained,
                    # A search counts its trials.
                    progress=progress if lease.trial is None else None,
                    lease_seconds=process.settings.lease_seconds,
                )
                also(session)
        except FencedError:
            if newest is not None:
                # Only this attempt knows of it.
                self._delete([newest])
            raise
        if newest is not None:
            self._kept, dropped = named[:_KEPT], named[_KEPT:]
            self._furthest = furthest
            self._kept_steps, self._kept_at = newest["steps"], monotonic_seconds()
            if gained:
                self._held.on_recorded()
            self._delete(dropped)

    def _restore(self, state: TrainingState, entry: dict[str, Any]) -> None:
        with memory_file() as file:
            if "plain_sha256" in entry:
                self._open(entry, file)
            else:
                self._fetch_plain(entry, file)
            restore_checkpoint(state, path_of(file))

    def _open(self, entry: dict[str, Any], file: BufferedRandom) -> None:
        lease, process = self._held.lease, self._process
        version_id, key = str(lease.model_version_id), entry["key"]
        with process.db.tenant(lease.tenant_id) as session:
            data_key, _ = version_data_key(session, process.keyring, lease.tenant_id, version_id)
        subject = Subject(lease.tenant_id, version_id, entry["plain_sha256"], _kind(key))
        with process.store.open(process.settings.bucket, key) as stream:
            unseal_into(file, stream, data_key, subject, on_part=self._held.move)

    def _fetch_plain(self, entry: dict[str, Any], file: BufferedRandom) -> None:
        """Fetch a checkpoint of the time before they were sealed."""
        fetch_object(self._process, entry["key"], file)
        file.seek(0)
        found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != entry["sha256"]:
            raise CheckpointRefusedError(f"it has the digest {found}, not {entry['sha256']}")

    def _delete(self, entries: list[dict[str, Any]]) -> None:
        """Delete checkpoints that no committed cursor names."""
        if not entries:
            return
        try:
            if deletions_held(self._process.db):
                # A backup's snapshot may still name them; they go when the job has ended.
                log.info("checkpoints_left", keys=[entry["key"] for entry in entries])
                return
            self._process.store.delete(
                self._process.settings.bucket, [entry["key"] for entry in entries]
            )
        except UnavailableError as error:
            log.warning("checkpoint_not_deleted", code=error.code, detail=error.detail)


def _kind(key: str) -> str:
    """What a checkpoint's bundle is bound to: its key names job, attempt and step."""
    return f"checkpoint:{key}"


def _progress(state: TrainingState) -> dict[str, Any]:
    return {"step": state.epoch, "steps": state.recipe.epochs, "unit": "epoch"}
