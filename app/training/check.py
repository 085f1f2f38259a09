"""What a dataset must have before a training of it is accepted: told at once, not hours later."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from app.errors import InvalidInputError
from app.training.recipe import TrainingRecipe

#: Fewer training images of a class teach nothing that holds for another image of it.
MIN_TRAIN_IMAGES = 2
_LISTED = 20


@dataclass(frozen=True, slots=True)
class DatasetFacts:
    """What a training asks of a dataset version."""

    #: As the client named it.
    name: str
    classes: Sequence[str]
    #: ``{"train": {"cat": 12, …}, …}``.
    counts: Mapping[str, Mapping[str, int]]

    def images(self, split: str) -> dict[str, int]:
        """Images of each class in a split; classes without any are left out."""
        return {name: count for name, count in (self.counts.get(split) or {}).items() if count}


def check_dataset(data: DatasetFacts, recipe: TrainingRecipe) -> None:
    """Let a dataset pass that can teach and judge by this recipe.

    Raises:
        InvalidInputError: ``too_few_classes``, ``empty_split``, ``one_class_split``,
            ``too_few_images``, which names the classes, or
            ``early_stopping_needs_validation``.
    """
    if len(data.classes) < 2:
        raise InvalidInputError(
            f"dataset {data.name} has {len(data.classes)} class; training needs at least two",
            code="too_few_classes",
        )
    for split in ("train", "test", "validation"):
        images = data.images(split)
        if not images and split != "validation":
            raise InvalidInputError(
                f"dataset {data.name} has no images in its {split} split", code="empty_split"
            )
        if len(images) == 1:
            raise InvalidInputError(
                f"all images in the {split} split of dataset {data.name} are of class "
                f"{next(iter(images))!r}: such a split neither teaches nor judges; freeze the "
                "dataset with another seed or other fractions",
                code="one_class_split",
            )
    train = data.images("train")
    poor = [name for name in data.classes if train.get(name, 0) < MIN_TRAIN_IMAGES]
    if poor:
        raise InvalidInputError(
            f"{len(poor)} of the {len(data.classes)} classes of dataset {data.name} have fewer "
            f"than {MIN_TRAIN_IMAGES} training images; add images of them, or leave them out",
            code="too_few_images",
            errors=[
                {"pointer": name, "detail": f"{train.get(name, 0)} training images"}
                for name in poor[:_LISTED]
            ],
            total=len(poor),
        )
    if recipe.early_stopping_epochs and not data.images("validation"):
        raise InvalidInputError(
            f"early_stopping_epochs watches the validation split, and dataset {data.name} has "
            "none; freeze it with one, or set early_stopping_epochs to 0",
            code="early_stopping_needs_validation",
        )
