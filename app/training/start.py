"""Which model version a training starts from, and what that decides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sqlalchemy.orm import Session

from app.errors import InvalidInputError
from app.models.architectures import Family, find_architecture
from app.models.input_size import check_input_px
from app.models.resolve import resolve_version
from app.training.presets import Preset, preset_fields
from app.training.recipe import TrainingRecipe

_ARCH = TrainingRecipe().arch
#: Architectures some of whose layers have as many weights as the size of the images asks for.
ONE_SIZE = frozenset({"small_cnn", "row_rnn", "renet"})


def spell_recipe(
    session: Session,
    tenant_id: str,
    given: Mapping[str, Any],
    *,
    preset: Preset | None = None,
) -> TrainingRecipe:
    """The whole recipe of which a client gave some fields.

    What was not given is the preset's, else the default. A training that starts from a version
    has its architecture and options unless others are given.

    Raises:
        InvalidInputError: ``recipe_invalid``, ``arch_unknown`` or ``arch_options_invalid``.
        NotFoundError: ``model_not_found``.
        ConflictError: ``model_not_ready``.
    """
    fields = dict(given)
    if fields.get("start") is not None and "arch" not in fields:
        version = resolve_version(session, tenant_id, fields["start"])
        fields["arch"] = version.arch
        fields.setdefault("arch_options", version.arch_options)
    arch = fields.setdefault("arch", _ARCH)
    if preset is not None:
        started = fields.get("start") is not None
        base = preset_fields(
            find_architecture(arch), preset, started=started, epochs=fields.get("epochs")
        )
        if fields.get("train_layers") == "head":
            base.pop("frozen_epochs", None)
        augment = base.get("augment", {}) | fields.get("augment", {})
        fields = base | fields | {"augment": augment}
    try:
        return TrainingRecipe.from_dict(fields)
    except (TypeError, ValueError) as error:
        raise InvalidInputError(str(error), code="recipe_invalid") from None


def settle_start(session: Session, tenant_id: str, recipe: TrainingRecipe) -> TrainingRecipe:
    """The recipe with the id of the version that it starts from; its network can be built.

    Raises:
        InvalidInputError: ``start_mismatch``: another architecture or size of images;
            ``start_impossible``: it is not trained step by step; ``preprocess_invalid``: the
            network takes no such images.
        NotFoundError: ``model_not_found``.
        ConflictError: ``model_not_ready``.
    """
    if recipe.start is None:
        usual_px = find_architecture(recipe.arch).input_px
        check_input_px(recipe.arch, recipe.arch_options, recipe.input_px or usual_px)
        return recipe
    version = resolve_version(session, tenant_id, recipe.start)
    if version.arch != recipe.arch:
        raise InvalidInputError(
            f"{recipe.start[:250]!r} is a {version.arch}, and a {recipe.arch} cannot start from "
            "its weights; leave arch out to train what it is",
            code="start_mismatch",
        )
    if find_architecture(recipe.arch).family == Family.BASELINE:
        raise InvalidInputError(
            f"a {recipe.arch} is fitted anew each time; it starts from no other version",
            code="start_impossible",
        )
    if recipe.input_px is not None:
        check_input_px(recipe.arch, recipe.arch_options, recipe.input_px)
        learnt_px = (version.preprocess or {}).get("crop_px")
        if recipe.arch in ONE_SIZE and recipe.input_px != learnt_px:
            raise InvalidInputError(
                f"{recipe.start[:250]!r} learnt from images of {learnt_px} pixels and its "
                "layers fit no others; leave input_px out, or train without start",
                code="start_mismatch",
            )
    return replace(recipe, start=version.id)
