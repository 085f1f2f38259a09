"""Which version serves, why, and how good the others are: gates, promotions, evaluations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from app.client.comparison import Comparison, compare_results
from app.client.errors import ApiError
from app.client.jobs import Jobs
from app.client.promotion import submit_missing
from app.client.transport import Transport, road
from app.client.values import Alias, AliasMove, Evaluation, Job, ModelVersion


class Catalogue:
    """``darkroom.catalogue``."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def alias(self, model: str, alias: str = "production") -> Alias:
        """Where an alias points, and the gate before it."""
        return Alias.from_dict(self._call("GET", "models", model, "aliases", alias))

    def moves(self, model: str, alias: str = "production") -> Iterator[AliasMove]:
        """Every move of an alias, newest first."""
        path = road("models", model, "aliases", alias, "moves")
        return map(AliasMove.from_dict, self._transport.pages(path))

    def set_gate(
        self,
        model: str,
        alias: str = "production",
        *,
        metric: str = "accuracy",
        margin: float = 0.0,
        minimum: float | None = None,
        dataset: str | None = None,
    ) -> dict[str, Any]:
        """Let an alias move only to versions that are good enough; needs the scope ``admin``."""
        body = {"metric": metric, "margin": margin, "minimum": minimum, "dataset": dataset}
        return self._call("PUT", "models", model, "aliases", alias, "gate", json=body)

    def remove_gate(self, model: str, alias: str = "production") -> None:
        """Take the gate before an alias away; needs the scope ``admin``."""
        self._transport.call("DELETE", road("models", model, "aliases", alias, "gate"))

    def promote(
        self,
        model: str,
        number: int,
        alias: str = "production",
        *,
        metric: str | None = None,
        margin: float = 0.0,
        minimum: float | None = None,
        dataset: str | None = None,
        evaluate: bool = False,
        wait: Callable[[Job], Job] | None = None,
    ) -> Alias:
        """Point an alias at a version that is good enough.

        ``metric`` and what follows count only where no gate stands before the alias. With
        ``evaluate`` the version and the one in place are evaluated first on the same images, where
        they were not; ``wait`` gets each of these jobs and returns it once it is over.

        Raises:
            ApiError: ``gate_not_passed``, ``evaluation_missing`` or ``gate_missing``.
        """
        rule = {"metric": metric, "margin": margin, "minimum": minimum, "dataset": dataset}
        body = {"version": number} | ({} if metric is None else {"gate": rule})
        where = ("POST", "models", model, "aliases", alias, "promote")
        try:
            return Alias.from_dict(self._call(*where, json=body))
        except ApiError as error:
            if not evaluate or error.code != "evaluation_missing":
                raise
            jobs = submit_missing(self, self._transport, model, number, alias=alias, rule=rule)
            if not jobs:
                raise
        for job in jobs:
            ended = wait(job) if wait is not None else Jobs(self._transport).wait(job.id)
            if ended.state not in ("succeeded", "partially_succeeded"):
                raise ApiError(
                    f"the evaluation {job.id} ended {ended.state}, so nothing was promoted",
                    code="evaluation_missing",
                    status=409,
                )
        return Alias.from_dict(self._call(*where, json=body))

    def roll_back(self, model: str, alias: str = "production") -> AliasMove:
        """Point an alias at the version that it pointed to before."""
        return AliasMove.from_dict(
            self._call("POST", "models", model, "aliases", alias, "rollback")
        )

    def archive(self, model: str, number: int) -> ModelVersion:
        """Let a version take no new jobs; those under way go on."""
        return ModelVersion.from_dict(
            self._call("POST", "models", model, "versions", number, "archive")
        )

    def restore(self, model: str, number: int) -> ModelVersion:
        """Let an archived version take jobs again."""
        return ModelVersion.from_dict(
            self._call("POST", "models", model, "versions", number, "restore")
        )

    def delete(self, model: str, number: int) -> ModelVersion:
        """Give up an archived version: its weights go once no open job uses them."""
        return ModelVersion.from_dict(self._call("DELETE", "models", model, "versions", number))

    def evaluations(self, model: str, number: int) -> Iterator[Evaluation]:
        """How good a version was on which images, newest first."""
        path = road("models", model, "versions", number, "evaluations")
        return map(Evaluation.from_dict, self._transport.pages(path))

    def compare(
        self,
        first: tuple[str, int],
        second: tuple[str, int],
        *,
        dataset: str | None = None,
    ) -> tuple[Evaluation, Evaluation, Comparison]:
        """Compare two versions, each a name and a number, on the newest images both answered.

        These are the same split of the same dataset version, ``dataset`` where it is given, in an
        ``evaluate`` job of each. Reads the results of both jobs.

        Raises:
            ApiError: ``evaluation_missing``: no images on which both were evaluated.
        """
        ours, theirs = self._common(first, second, dataset)
        jobs = Jobs(self._transport)
        known = set(self._classes(*second))
        classes = [name for name in self._classes(*first) if name in known]
        found = compare_results(jobs.results(ours.job_id), jobs.results(theirs.job_id), classes)
        return ours, theirs, found

    def _common(
        self, first: tuple[str, int], second: tuple[str, int], dataset: str | None
    ) -> tuple[Evaluation, Evaluation]:
        newest: dict[tuple[str, str | None], Evaluation] = {}
        jobs = Jobs(self._transport)
        for each in self.evaluations(*second):
            newest.setdefault((each.dataset, each.split), each)
        for each in self.evaluations(*first):
            other = newest.get((each.dataset, each.split))
            wanted = dataset is None or dataset in (each.dataset, each.dataset.rpartition("@")[0])
            # A training keeps scores, and no answers.
            if (
                other is not None
                and wanted
                and {jobs.get(each.job_id).kind, jobs.get(other.job_id).kind} == {"evaluate"}
            ):
                return each, other
        raise ApiError(
            f"{first[0]}@{first[1]} and {second[0]}@{second[1]} have no evaluate job on the same "
            "images; run darkroom evaluate for both, on the same dataset and split",
            code="evaluation_missing",
            status=409,
        )

    def _classes(self, model: str, number: int) -> tuple[str, ...]:
        return ModelVersion.from_dict(
            self._call("GET", "models", model, "versions", number)
        ).classes

    def _call(self, method: str, *parts: str | int, json: Any = None) -> dict[str, Any]:
        body: dict[str, Any] = self._transport.call(method, road(*parts), json=json).json()
        return body
