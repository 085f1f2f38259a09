"""The handwritten digits that scikit-learn brings, as an archive that anyone could have made."""

from __future__ import annotations

import csv
import io
import zipfile
from pathlib import Path

from app.errors import SettingsError

_SEED = 0
_HELD_OUT = 0.2
#: The data are counts of dark pixels, 0…16.
_LEVELS = 16
#: Zip members carry a time; a fixed one makes the archive the same every time.
_MOMENT = (2000, 1, 1, 0, 0, 0)


def write_digits(path: Path) -> tuple[int, int]:
    """Write 1,797 grey 8×8 PNGs and a ``labels.csv`` to ``path``; returns train and test counts.

    The split is stratified by digit and the same on every machine: the bytes of two archives
    are equal.
    """
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ModuleNotFoundError:
        raise SettingsError(
            "the demo's digits come with scikit-learn: pip install 'darkroom[worker]'"
        ) from None
    from PIL import Image

    digits = load_digits()
    pixels = (digits.images * (255 / _LEVELS)).round().astype("uint8")
    labels = [str(label) for label in digits.target]
    _, held_out = train_test_split(
        range(len(labels)), test_size=_HELD_OUT, stratify=labels, random_state=_SEED
    )
    test = set(held_out)
    listing = io.StringIO(newline="")
    lines = csv.writer(listing)
    lines.writerow(("filename", "label", "split"))
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for number, (image, label) in enumerate(zip(pixels, labels, strict=True)):
            name = f"digit-{number:04d}.png"
            content = io.BytesIO()
            Image.fromarray(image).save(content, "PNG")
            archive.writestr(zipfile.ZipInfo(name, _MOMENT), content.getvalue())
            lines.writerow((name, label, "test" if number in test else "train"))
        archive.writestr(zipfile.ZipInfo("labels.csv", _MOMENT), listing.getvalue())
    return len(labels) - len(test), len(test)
