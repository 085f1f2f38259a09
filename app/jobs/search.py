"""Searches: trainings by recipes that differ, of which the best becomes a version."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from sqlalchemy import insert, update
from sqlalchemy.orm import Session

from app.datasets.resolve import resolve_dataset
from app.errors import InvalidInputError
from app.ids import CHUNK, new_id
from app.jobs.add import add_job
from app.jobs.items import JobItem, pack_items
from app.jobs.limits import NO_LIMITS, Limits
from app.jobs.states import ChunkState, ChunkTask, JobKind
from app.jobs.submit import announce_trained
from app.jobs.tables import Chunk, Job
from app.models.architectures import Family, find_architecture
from app.queues.names import QUEUE_OF_TASK
from app.training.check import DatasetFacts, check_dataset
from app.training.recipe import TrainingRecipe
from app.training.search import Search, check_search, write_space
from app.training.start import settle_start


def submit_search(
    session: Session,
    tenant_id: str,
    *,
    dataset: str,
    model: str,
    recipe: TrainingRecipe,
    search: Search,
    alias: str | None = "production",
    priority: int = 0,
    limits: Limits = NO_LIMITS,
    metadata: Mapping[str, Any] | None = None,
) -> Job:
    """Submit a search of recipes that differ from ``recipe`` where the search's space says.

    Each trial is an item of the job and a chunk of its own, so that workers take several at once.

    Raises:
        InvalidInputError: as of a fine-tuning; ``search_invalid``, ``search_impossible``, or
            ``search_needs_validation``.
        NotFoundError: no such dataset, or no version to start from.
    """
    if find_architecture(recipe.arch).family == Family.BASELINE:
        raise InvalidInputError(
            f"a {recipe.arch} is fitted in one go and has no recipe to search; use finetune",
            code="search_impossible",
        )
    check_search(search, recipe)
    data = resolve_dataset(session, tenant_id, dataset)
    facts = DatasetFacts(dataset, data.classes, data.counts)
    check_dataset(facts, recipe)
    if not facts.images("validation"):
        raise InvalidInputError(
            f"a search chooses by the validation split, and dataset {dataset} has none: freeze it "
            "with one, such as by --split 0.7,0.15,0.15, so that the test split judges what was "
            "chosen without it",
            code="search_needs_validation",
        )
    recipe = settle_start(session, tenant_id, recipe)
    options = {
        **asdict(search),
        "space": write_space(search.space),
        "recipe": recipe.as_dict(),
        "alias": alias,
        "model": model,
    }
    job = add_job(
        session,
        tenant_id,
        JobKind.SEARCH,
        first=ChunkTask.TRIAL,
        input={"dataset": data.id},
        options=options,
        dataset_version_id=data.id,
        priority=priority,
        limits=limits,
        metadata=metadata,
    )
    announce_trained(session, job, model=model, recipe=recipe)
    job.total = search.trials
    # A trial is no short work: each costs its tenant a full turn.
    job.chunk_items = 1
    session.flush()
    _add_trials(session, job)
    return job


def _add_trials(session: Session, job: Job) -> None:
    """A chunk for each trial; the first is there already."""
    session.execute(
        update(Chunk)
        .where(Chunk.job_id == job.id, Chunk.tenant_id == job.tenant_id)
        .values(hi=1, items=_item(0))
        .execution_options(synchronize_session=False)
    )
    if job.total == 1:
        return
    session.execute(
        insert(Chunk),
        [
            {
                "id": new_id(CHUNK),
                "tenant_id": job.tenant_id,
                "job_id": job.id,
                "task": ChunkTask.TRIAL,
                "queue": QUEUE_OF_TASK[ChunkTask.TRIAL],
                "state": ChunkState.PENDING,
                "lo": number,
                "hi": number + 1,
                "first_item": number,
                "items": _item(number),
            }
            for number in range(1, job.total)
        ],
    )


def _item(number: int) -> dict[str, Any]:
    """What stands for a trial where items are looked at; it has no bytes."""
    name = f"trial-{number}"
    return pack_items([JobItem(custom_id=name, bucket="", key="", source=name)])
