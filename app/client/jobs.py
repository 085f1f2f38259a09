"""Submits jobs, waits for them, and iterates what they answered."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

from app.client.events import follow_events
from app.client.transport import Transport, road
from app.client.values import Event, Job, Metric, Result, Trial
from app.client.wait import wait_for_job

Only = Literal["all", "succeeded", "failed"]


class Jobs:
    """``darkroom.jobs``."""

    def __init__(self, transport: Transport, *, now: Callable[[], float] = time.monotonic) -> None:
        self._transport = transport
        self._now = now

    # Submitting

    def submit_predict(
        self,
        source: Mapping[str, Any],
        model: str,
        *,
        top_k: int | None = None,
        threshold: float | None = None,
        activation: str | None = None,
        priority: int = 0,
        deadline: datetime | None = None,
        max_failed: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
    ) -> Job:
        """Recognise every image of ``source`` with ``model`` (``name``, ``name@alias`` or id).

        ``source`` is one of ``{"upload": id}``, ``{"prefix": "s3://…", "include", "exclude"}``,
        ``{"manifest": "s3://…"}``, ``{"items": […]}`` or ``{"dataset": "name@1", "split"}``;
        ``max_failed`` is ``{"items": n, "fraction": f}``, or one of the two.
        """
        return self._submit(
            "predict",
            input=dict(source),
            model=model,
            options={"top_k": top_k, "threshold": threshold, "activation": activation},
            priority=priority,
            deadline=_moment(deadline),
            max_failed=max_failed,
            metadata=metadata,
            idempotency_key=idempotency_key,
        )

    def submit_evaluate(
        self,
        source: Mapping[str, Any],
        model: str,
        *,
        top_k: int | None = None,
        bootstrap_samples: int | None = None,
        hardest: int | None = None,
        seed: int | None = None,
        keep_temperature: bool | None = None,
        priority: int = 0,
        deadline: datetime | None = None,
        max_failed: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
    ) -> Job:
        """Measure ``model`` on every labelled image of ``source``, as for :meth:`submit_predict`.

        The job's ``result`` holds the scores, and its artifacts the report as HTML, JSON and CSV.
        """
        return self._submit(
            "evaluate",
            input=dict(source),
            model=model,
            options={
                "top_k": top_k,
                "bootstrap_samples": bootstrap_samples,
                "hardest": hardest,
                "seed": seed,
                "keep_temperature": keep_temperature,
            },
            priority=priority,
            deadline=_moment(deadline),
            max_failed=max_failed,
            metadata=metadata,
            idempotency_key=idempotency_key,
        )

    def submit_finetune(
        self,
        dataset: str,
        model: str,
        *,
        alias: str | None = "production",
        priority: int = 0,
        deadline: datetime | None = None,
        metadata: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
        **recipe: Any,
    ) -> Job:
        """Train a version of ``model`` on a dataset version.

        ``recipe`` are the API's options: ``preset="standard"``, ``arch="resnet20"``,
        ``start="photos@3"``, ``max_seconds=600``, ``augment={"flip": True}`` and so on.
        """
        return self._submit(
            "finetune",
            input={"dataset": dataset},
            model=model,
            options={**recipe, "alias": alias},
            priority=priority,
            deadline=_moment(deadline),
            metadata=metadata,
            idempotency_key=idempotency_key,
        )

    def submit_search(
        self,
        dataset: str,
        model: str,
        *,
        space: Mapping[str, Mapping[str, Any]],
        trials: int | None = None,
        recipe: Mapping[str, Any] | None = None,
        alias: str | None = "production",
        priority: int = 0,
        deadline: datetime | None = None,
        metadata: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
        **options: Any,
    ) -> Job:
        """Train by recipes that differ and make the best network a version of ``model``.

        ``space`` is ``{"learning_rate": {"low": 1e-4, "high": 0.1, "log": True}, "optimizer":
        {"choices": ["sgd", "adamw"]}}`` and so on, ``recipe`` what all trials have in common, as
        for :meth:`submit_finetune`; ``options`` are the API's further ones: ``max_seconds``,
        ``metric``, ``pruner``, ``seed`` and so on.
        """
        return self._submit(
            "search",
            input={"dataset": dataset},
            model=model,
            options={
                **options,
                "space": {name: dict(values) for name, values in space.items()},
                "trials": trials,
                "recipe": dict(recipe or {}),
                "alias": alias,
            },
            priority=priority,
            deadline=_moment(deadline),
            metadata=metadata,
            idempotency_key=idempotency_key,
        )

    def import_weights(
        self,
        model: str,
        *,
        arch: str,
        weights: str,
        classes: Sequence[str] | str,
        alias: str | None = "production",
        preprocess: Mapping[str, Any] | None = None,
        priority: int = 0,
        deadline: datetime | None = None,
        metadata: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
    ) -> Job:
        """Check weights (``upl_…`` or ``torchvision:NAME``) and register them as a version."""
        options = {
            "arch": arch,
            "weights": weights,
            "classes": classes if isinstance(classes, str) else list(classes),
            "alias": alias,
            "preprocess": preprocess,
        }
        return self._submit(
            "import",
            model=model,
            options=options,
            priority=priority,
            deadline=_moment(deadline),
            metadata=metadata,
            idempotency_key=idempotency_key,
        )

    def export(
        self,
        job_id: str,
        format: str = "jsonl",  # noqa: A002  the API's own word
        *,
        only: Only = "all",
        include_retries: bool = False,
        priority: int = 0,
        deadline: datetime | None = None,
        metadata: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
    ) -> Job:
        """Write the results of a job as ``jsonl``, ``csv`` or ``parquet``.

        With ``include_retries`` images that failed or never ended are answered by its retries.
        """
        return self._submit(
            "export",
            input={"job": job_id},
            options={"format": format, "only": only, "include_retries": include_retries or None},
            priority=priority,
            deadline=_moment(deadline),
            metadata=metadata,
            idempotency_key=idempotency_key,
        )

    # Watching

    def get(self, job_id: str) -> Job:
        """One job as it stands."""
        return Job.from_dict(self._transport.call("GET", road("jobs", job_id)).json())

    def list(self, *, kind: str | None = None, state: str | None = None) -> Iterator[Job]:
        """Every job, newest first, fetched page by page."""
        query = {"kind": kind, "state": state}
        return map(Job.from_dict, self._transport.pages("/v1/jobs", query, limit=100))

    def wait(
        self,
        job_id: str,
        timeout: float | None = None,
        on_change: Callable[[Job], None] | None = None,
    ) -> Job:
        """The job once it is over; ``timeout`` in seconds, ``on_change`` sees each new answer.

        One request is held by the service until something changes. A service that restarts
        meanwhile is waited for.

        Raises:
            ApiError: refused; code ``wait_timeout`` where the job goes on beyond ``timeout``.
        """
        return wait_for_job(
            self._transport, job_id, timeout=timeout, on_change=on_change, now=self._now
        )

    def events(
        self, job_id: str, *, after: int = 0, follow: bool = True, page_size: int = 1000
    ) -> Iterator[Event]:
        """What happened to a job, each event once and in order.

        Waits for more until the event that ends the job, over lost connections too; with
        ``follow=False`` only what there is. ``after`` is the number (``id``) of the last one
        known.
        """
        if follow:
            return follow_events(self._transport, job_id, after=after, now=self._now)
        path = road("jobs", job_id, "events")
        query = {"after": after or None}
        return map(Event.from_dict, self._transport.pages(path, query, limit=page_size))

    # Control

    def cancel(self, job_id: str) -> Job:
        """Ask a job to stop; what had finished stays."""
        return self._control(job_id, "cancel")

    def pause(self, job_id: str) -> Job:
        """Hold a job: nothing more of it is begun until it is resumed."""
        return self._control(job_id, "pause")

    def resume(self, job_id: str) -> Job:
        """Let a paused job go on where it stood."""
        return self._control(job_id, "resume")

    def retry(
        self,
        job_id: str,
        *,
        which: str = "all",
        model: str | None = None,
        top_k: int | None = None,
        threshold: float | None = None,
        activation: str | None = None,
        priority: int | None = None,
        deadline: datetime | None = None,
        max_failed: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
    ) -> Job:
        """A new job over the images of a closed one that failed, were never touched, or both.

        ``which`` is ``failed``, ``unfinished`` or ``all``. What is None is as in that job; only
        deadline and failure budget are not taken over.
        """
        fields = {
            "which": which,
            "model": model,
            "options": _given(top_k=top_k, threshold=threshold, activation=activation) or None,
            "priority": priority,
            "deadline": _moment(deadline),
            "max_failed": max_failed,
            "metadata": metadata,
        }
        answer = self._transport.call(
            "POST",
            road("jobs", job_id, "retry"),
            json=_given(**fields),
            idempotency_key=idempotency_key,
        )
        return Job.from_dict(answer.json())

    # Reading

    def results(
        self, job_id: str, *, only: Only = "all", page_size: int = 1000
    ) -> Iterator[Result]:
        """Every result, fetched page by page as it is iterated."""
        query = {"only": None if only == "all" else only}
        path = road("jobs", job_id, "results")
        return map(Result.from_dict, self._transport.pages(path, query, limit=page_size))

    def errors(self, job_id: str, *, page_size: int = 1000) -> Iterator[Result]:
        """Every failed item, fetched page by page as it is iterated."""
        path = road("jobs", job_id, "errors")
        return map(Result.from_dict, self._transport.pages(path, limit=page_size))

    def metrics(self, job_id: str, *, name: str | None = None) -> Iterator[Metric]:
        """Every logged number of a job, in the order of its steps."""
        path = road("jobs", job_id, "metrics")
        return map(Metric.from_dict, self._transport.pages(path, {"name": name}))

    def trials(self, job_id: str) -> Iterator[Trial]:
        """Every trial of a search that was begun, by number."""
        return map(Trial.from_dict, self._transport.pages(road("jobs", job_id, "trials")))

    def _control(self, job_id: str, verb: str) -> Job:
        return Job.from_dict(self._transport.call("POST", road("jobs", job_id, verb)).json())

    def _submit(
        self,
        kind: str,
        *,
        options: Mapping[str, Any],
        idempotency_key: str | None,
        **fields: Any,
    ) -> Job:
        """Post a job; fields and options that are None are left to the service's defaults."""
        body: dict[str, Any] = {"kind": kind}
        body.update({name: value for name, value in fields.items() if value})
        # An alias of null is a choice: register, and leave every alias where it is.
        body["options"] = {
            name: value for name, value in options.items() if value is not None or name == "alias"
        }
        answer = self._transport.call(
            "POST", "/v1/jobs", json=body, idempotency_key=idempotency_key
        )
        return Job.from_dict(answer.json())


def _given(**fields: Any) -> dict[str, Any]:
    """The fields that are not None."""
    return {name: value for name, value in fields.items() if value is not None}


def _moment(moment: datetime | None) -> str | None:
    """A moment as the service reads it; without an offset it is the machine's own time."""
    if moment is None:
        return None
    return (moment if moment.tzinfo is not None else moment.astimezone()).isoformat()
