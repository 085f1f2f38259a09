"""What the owner of a model can let another tenant do with it, and how exactly it is answered."""

from __future__ import annotations

import enum
from collections.abc import Sequence


class Right(enum.StrEnum):
    """One permission on a model of another tenant."""

    #: Recognise any images with it.
    RUN = "run"
    #: Recognise the labelled images of a dataset with it, to see how good it is.
    EVALUATE = "evaluate"
    #: Take its weights away.
    EXPORT = "export"


class Answers(enum.StrEnum):
    """How much of each answer a grantee gets to see.

    Full scores let a copy of the model be learned from few answers (Tramèr et al., "Stealing
    Machine Learning Models via Prediction APIs", 2016), so they are not the default.
    """

    FULL = "full"
    #: Scores in hundredths; classes that would have none of them are left out.
    ROUNDED = "rounded"
    #: The best class alone, its score in tenths.
    TOP1 = "top1"


_DECIMALS = {Answers.ROUNDED: 2, Answers.TOP1: 1}

Ranked = Sequence[tuple[str, float]]


def blur(ranked: Ranked, answers: Answers, *, top_k: int, threshold: float) -> Ranked:
    """What is shown of a whole ranked (class, score) list, best first.

    ``threshold`` is compared with the score that is shown: were it the exact one, asking again
    with other thresholds would find out the digits that rounding hides.
    """
    if answers is Answers.FULL:
        return [pair for pair in ranked[:top_k] if pair[1] >= threshold]
    shown = [(name, round(score, _DECIMALS[answers])) for name, score in ranked]
    # The order of what rounds to nothing would tell of scores as small as they come.
    shown = [pair for index, pair in enumerate(shown) if index == 0 or pair[1] > 0]
    count = 1 if answers is Answers.TOP1 else top_k
    return [pair for pair in shown[:count] if pair[1] >= threshold]
