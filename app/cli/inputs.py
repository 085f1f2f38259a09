"""What the command line names, turned into what the service reads."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from app.cli.progress import TransferBar
from app.cli.words import count_text

if TYPE_CHECKING:
    from app.client import Darkroom
    from app.client.values import Added


def read_pairs(texts: Sequence[str], option: str = "--metadata") -> dict[str, str]:
    """``["k=v", …]`` as a mapping."""
    pairs: dict[str, str] = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if not sign or not name:
            raise typer.BadParameter(f"{text!r} is not of the form NAME=VALUE", param_hint=option)
        pairs[name] = value
    return pairs


def read_value(text: str) -> Any:
    """A value as JSON, or else the text; a number that JSON does not know (``NaN``, 1e999) is text.

    So the service refuses it by its field's name, as it does any other word.
    """
    try:
        return json.loads(text, parse_float=_finite, parse_constant=_finite)
    except ValueError:
        return text


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is no number of JSON")
    return value


def read_classes(text: str) -> list[str] | str:
    """``imagenet``, or the class names in a file: JSON (a list, or ``{"0": …}``) or one a line."""
    if text == "imagenet":
        return text
    path = Path(text)
    try:
        content = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(
            f"{path} cannot be read as text: {error}; give a file or `imagenet`",
            param_hint="--classes",
        ) from None
    if path.suffix == ".json" or content.lstrip()[:1] in ("[", "{"):
        return _classes_of_json(path, content)
    names = [line.strip() for line in content.splitlines() if line.strip()]
    if not names:
        raise typer.BadParameter(f"{path} names no class", param_hint="--classes")
    return names


def _classes_of_json(path: Path, content: str) -> list[str]:
    try:
        body: Any = json.loads(content)
    except ValueError as error:
        raise typer.BadParameter(f"{path} is no JSON: {error}", param_hint="--classes") from None
    if isinstance(body, dict):
        # Index → name, as many published label files have it; ImageNet's name → [id, name] too.
        try:
            body = [body[str(index)] for index in range(len(body))]
        except KeyError as missing:
            raise typer.BadParameter(
                f"{path} has no class {missing}", param_hint="--classes"
            ) from None
        body = [entry[-1] if isinstance(entry, list) else entry for entry in body]
    if not isinstance(body, list) or not all(isinstance(name, str) for name in body):
        raise typer.BadParameter(
            f"{path} must hold a JSON list of class names", param_hint="--classes"
        )
    return body


def read_fractions(text: str | None) -> tuple[float, float, float] | None:
    """``0.8,0.1,0.1`` (train, validation, test), or ``0.8,0.2`` (train, test)."""
    if text is None:
        return None
    try:
        parts = [float(part) for part in text.split(",")]
    except ValueError:
        parts = []
    if len(parts) == 2:
        parts = [parts[0], 0.0, parts[1]]
    if len(parts) != 3 or min(parts) < 0 or abs(sum(parts) - 1) > 1e-6:
        raise typer.BadParameter(
            "give train,validation,test (or train,test) that add up to 1, such as 0.8,0.1,0.1",
            param_hint="--split",
        )
    return (parts[0], parts[1], parts[2])


def check_path(path: Path) -> None:
    """Refuse a path where nothing is."""
    if not path.exists():
        raise typer.BadParameter(f"there is no file or folder {path}")


def check_output(path: Path, name: str, *, force: bool, option: str = "--output") -> None:
    """Refuse a file that cannot be made, or is there, before the service does the work for it.

    ``name`` is what the file is called in a folder.
    """
    if not path.parent.is_dir():
        raise typer.BadParameter(f"there is no folder {path.parent}", param_hint=option)
    file = path / name if path.is_dir() else path
    if file.exists() and not force:
        raise typer.BadParameter(
            f"{file} is there already; give another name, or --force to replace it",
            param_hint=option,
        )


def check_folder(path: Path, option: str) -> None:
    """Refuse a folder that is neither there nor can be made in one that is."""
    if not path.is_dir() and (path.exists() or not path.absolute().parent.is_dir()):
        raise typer.BadParameter(
            f"{path} is no folder, and none can be made there", param_hint=option
        )


def send_file(
    darkroom: Darkroom,
    path: Path,
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    kind: Any = None,
    quiet: bool = False,
) -> Added:
    """Upload a file or folder, with a bar unless ``quiet``."""
    check_path(path)
    if quiet:
        return darkroom.uploads.add(path, include=include, exclude=exclude, kind=kind)
    with TransferBar(f"sending {path.name or path}") as bar:
        return darkroom.uploads.add(
            path, include=include, exclude=exclude, kind=kind, on_progress=bar.moved
        )


def counted_images(counts: Any) -> str:
    """``1,797 images, 3 failed`` of a job's counts."""
    text = count_text(counts.succeeded, "image")
    return f"{text}, {counts.failed:,} failed" if counts.failed else text
