"""Labels that come with an archive: from a ``labels.csv``, else from the folders' names."""

from __future__ import annotations

import io
import itertools
import re
import sys
from typing import Any

from app.errors import InvalidInputError
from app.uploads.csv_rows import CsvRows
from app.uploads.names import clean_name
from app.uploads.reader import Survey

_MAX_FAULTS = 100
_MAX_LABEL_LENGTH = 200
_MAX_ROW_CHARS = 64 * 1024
#: Of all files of an archive; a line for each member it may have, and a quarter more.
_MAX_LINES = 2_500_000
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")
#: What people call the three splits.
_SPLITS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}

Label = tuple[str | None, str | None]
_NONE: Label = (None, None)


class Labels:
    """The label and split of each member.

    Where the archive has a ``labels.csv``, it alone speaks: a header with ``filename`` and
    ``label``, and ``split`` if wanted; other columns are ignored. A filename is a member's
    name in the archive, or relative to the file's own folder, or its last part where no two
    members share it. Several such files are taken together.

    Without one, the last folder is the label: ``train/cat/1.jpg`` is a ``cat``. The deepest
    folder that holds every item labels nothing, since it tells none apart from another: a zip
    of ``photos/*.jpg`` has no labels.

    ``faults`` lists up to 100 bad lines and ``fault_count`` counts them all; their images
    have no label. A line that names no member is one of them, and is not kept: the lines may be
    many more than the members.
    """

    def __init__(self, survey: Survey) -> None:
        self.faults: list[dict[str, Any]] = []
        self.fault_count = 0
        self._from_files = bool(survey.label_files)
        #: By the name relative to the file's own folder, and by the name as it stands there.
        self._by_name: dict[str, Label] = {}
        self._by_full_name: dict[str, Label | None] = {}
        #: By the last part of the filename, with the folder the line gave; None: unclear.
        self._by_base: dict[str, tuple[Label, str] | None] = {}
        self._lines_left = _MAX_LINES
        self._unlabelled_folder = survey.common_folder
        self._known_bases = set(survey.base_hashes) if survey.label_files else set()
        for name, content in survey.label_files:
            self._read(name, content)
        self._known_bases.clear()
        self._drop_shared(survey)

    def of(self, name: str) -> Label:
        """The label and the split of a member; None where there is none."""
        if self._from_files:
            return self._by_name.get(name) or self._by_full_name.get(name) or self._of_base(name)
        folder = name.rpartition("/")[0]
        if not folder or folder == self._unlabelled_folder:
            return _NONE
        label = folder.rpartition("/")[2]
        return (sys.intern(label[:_MAX_LABEL_LENGTH]) or None, None)

    def _of_base(self, name: str) -> Label:
        folder, _, base = name.rpartition("/")
        found = self._by_base.get(base)
        # Two different folders contradict each other; a bare name fits any.
        return found[0] if found is not None and not (found[1] and folder) else _NONE

    def _read(self, name: str, content: bytes) -> None:
        folder = name.rpartition("/")[0]
        self._lines_left -= max(content.count(b"\n"), content.count(b"\r"))
        if self._lines_left < 0:
            raise _unreadable(name, f"it has lines beyond {_MAX_LINES}")
        text = io.TextIOWrapper(io.BytesIO(content), encoding="utf-8-sig", newline="")
        rows = iter(CsvRows(text, longest=_MAX_ROW_CHARS))
        _, first = next(rows, (1, []))
        if isinstance(first, Exception):
            raise _unreadable(name, str(first))
        header = [column.strip().lower() for column in first]
        columns = {column: index for index, column in reversed(list(enumerate(header)))}
        missing = [column for column in ("filename", "label") if column not in columns]
        if missing:
            raise _unreadable(name, f"its header lacks the column {' and '.join(missing)}")
        file_at, label_at = columns["filename"], columns["label"]
        split_at = columns.get("split", len(header))
        for line, row in rows:
            if isinstance(row, Exception):
                self._fault((name, line), f"the line cannot be read: {row}")
                continue
            if not row:
                continue
            if len(row) <= max(file_at, label_at):
                self._fault((name, line), f"the line has {len(row)} of {len(header)} columns")
                continue
            self._take(
                (name, line),
                folder=folder,
                filename=row[file_at].strip(),
                label=row[label_at].strip(),
                split=row[split_at].strip() if split_at < len(row) else "",
            )

    def _take(
        self, at: tuple[str, int], *, folder: str, filename: str, label: str, split: str
    ) -> None:
        known_split = _SPLITS.get(split.lower())
        if not filename:
            self._fault(at, "the filename is empty")
        elif not label:
            self._fault(at, "the label is empty")
        elif len(label) > _MAX_LABEL_LENGTH or _CONTROL.search(label):
            self._fault(at, f"a label has at most {_MAX_LABEL_LENGTH} characters, all printable")
        elif split and known_split is None:
            self._fault(at, f"{split[:50]!r} is no split; use train, validation or test")
        elif hash((name := clean_name(filename)).rpartition("/")[2]) not in self._known_bases:
            self._fault(at, f"{name[:200]!r} names no member of the archive")
        else:
            value = (sys.intern(label), known_split)
            own = f"{folder}/{name}" if folder else name
            if self._by_name.setdefault(own, value) != value:
                self._fault(at, f"{name[:200]!r} already has another label")
                return
            if folder and self._by_full_name.setdefault(name, value) != value:
                self._by_full_name[name] = None
            parent, _, base = name.rpartition("/")
            known = self._by_base.setdefault(base, (value, parent))
            if known is not None and known[0] != value:
                self._by_base[base] = None

    def _fault(self, at: tuple[str, int], detail: str) -> None:
        self.fault_count += 1
        if len(self.faults) < _MAX_FAULTS:
            self.faults.append({"file": at[0], "line": at[1], "detail": detail})

    def _drop_shared(self, survey: Survey) -> None:
        """Forget the base names that two members share: they name neither."""
        if not self._by_base:
            return
        shared = _repeated(survey)
        for base in [base for base in self._by_base if hash(base) in shared]:
            del self._by_base[base]


def _repeated(survey: Survey) -> set[int]:
    """Hashes of the base names that more than one item has."""
    hashes = sorted(survey.base_hashes)
    return {one for one, other in itertools.pairwise(hashes) if one == other}


def _unreadable(name: str, why: str) -> InvalidInputError:
    return InvalidInputError(f"{name} cannot be used: {why}", code="labels_invalid")
