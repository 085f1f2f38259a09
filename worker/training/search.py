"""Which recipe a search tries next, and which trial is not worth its end: optuna decides.

A study is made anew for each question from what all trials have shown, so that nothing but their
rows has to be kept, and any worker may ask.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, create_trial
from optuna.trial import TrialState as OptunaState

from app.training.search import Choices, Range, Search, Space, Trial

optuna.logging.set_verbosity(optuna.logging.WARNING)

_STATES = {
    "running": OptunaState.RUNNING,
    "waiting": OptunaState.RUNNING,
    "complete": OptunaState.COMPLETE,
    "pruned": OptunaState.PRUNED,
    "failed": OptunaState.FAIL,
    "stopped": OptunaState.FAIL,
}


def suggest(search: Search, trials: Sequence[Trial], number: int) -> dict[str, Any]:
    """Parameters for the trial of this number, by a tree-structured Parzen estimator.

    Trials under way count as bad ones, so that workers do not try the same at once
    (``constant_liar``). The same trials give the same parameters.
    """
    study = _study(search, trials, number)
    return dict(study.ask(_distributions(search.space)).params)


def should_prune(search: Search, trials: Sequence[Trial], number: int) -> bool:
    """Whether the trial does worse than half of the complete ones did after as many epochs."""
    if search.pruner == "none":
        return False
    (trial,) = (each for each in trials if each.number == number)
    others = [each for each in trials if each.number != number]
    study = _study(search, others, number)
    frozen = _frozen(search, trial, _distributions(search.space))
    # It answers with a bool of numpy.
    return bool(study.pruner.prune(study, frozen))


def _study(search: Search, trials: Sequence[Trial], number: int) -> optuna.Study:
    seed = hashlib.sha256(f"{search.seed}:{number}".encode()).digest()[:4]
    with warnings.catch_warnings():
        # Of an argument that may still change: the lock says which optuna this is.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(
            seed=int.from_bytes(seed), n_startup_trials=search.random_trials, constant_liar=True
        )
    study = optuna.create_study(
        direction="minimize" if search.metric == "loss" else "maximize",
        sampler=sampler,
        pruner=optuna.pruners.MedianPruner(
            n_startup_trials=search.random_trials, n_warmup_steps=search.pruner_warmup_epochs
        ),
    )
    distributions = _distributions(search.space)
    study.add_trials([_frozen(search, trial, distributions) for trial in trials])
    return study


def _frozen(
    search: Search, trial: Trial, distributions: dict[str, BaseDistribution]
) -> FrozenTrial:
    shown = {each.epoch: getattr(each, search.metric) for each in trial.epochs}
    state = _STATES[trial.state]
    return create_trial(
        state=state,
        params=dict(trial.parameters),
        distributions=distributions,
        value=getattr(trial, search.metric) if state is OptunaState.COMPLETE else None,
        # NaN is what optuna takes for the worst.
        intermediate_values={
            epoch: float("nan") if value is None else value for epoch, value in shown.items()
        },
    )


def _distributions(space: Space) -> dict[str, BaseDistribution]:
    return {name: _distribution(values) for name, values in space.items()}


def _distribution(values: Range | Choices) -> BaseDistribution:
    if isinstance(values, Choices):
        return CategoricalDistribution(values.values)
    if values.is_integer:
        return IntDistribution(int(values.low), int(values.high), log=values.log)
    return FloatDistribution(values.low, values.high, log=values.log)
