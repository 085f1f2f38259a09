"""Freezes the labelled images of an upload into a version of a dataset."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, func, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from app.datasets.facts import SizeTally, find_duplicates
from app.datasets.split import SplitRule, split_rule
from app.datasets.tables import Dataset, DatasetVersion, Split
from app.errors import ConflictError, InvalidInputError, NotFoundError
from app.ids import DATASET, DATASET_VERSION, new_id
from app.names import check_name
from app.uploads.pack import ShardEntry
from app.uploads.tables import Shard, Upload, UploadKind, UploadState

_ERRORS_SHOWN = 100
_MAX_LABEL_LENGTH = 200

_INSERT_SAMPLES = text(
    """
    INSERT INTO samples (dataset_version_id, ordinal, tenant_id, name, object_key,
                         offset_bytes, length_bytes, sha256, label, split)
    SELECT :version_id, ordinal, :tenant_id, name, :object_key,
           offset_bytes, length_bytes, sha256, label, split
    FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS row (
        ordinal bigint, name text, offset_bytes bigint, length_bytes bigint,
        sha256 text, label text, split text)
    """
)


@dataclass(frozen=True, slots=True)
class _Rules:
    """Which split an image goes to, and what its label is called."""

    split: SplitRule
    #: Label → its other name.
    names: Mapping[str, str]

    def split_of(self, entry: ShardEntry) -> str:
        """The split that came with it, or the rule's."""
        if entry.split:
            return Split(entry.split).value
        return self.split.split_of(entry.sha256).value

    def label_of(self, label: str) -> str:
        """Its name in the version."""
        return self.names.get(label, label)


@dataclass(frozen=True, slots=True)
class _Content:
    """What an upload holds once labels and splits are settled."""

    sha256: str
    #: Split → class → samples.
    counts: dict[str, dict[str, int]]
    skipped: int
    sizes: SizeTally

    @property
    def classes(self) -> list[str]:
        return sorted({name for counted in self.counts.values() for name in counted})

    @property
    def sample_count(self) -> int:
        return sum(sum(counted.values()) for counted in self.counts.values())


def freeze_dataset(
    session: Session,
    tenant_id: str,
    *,
    name: str,
    upload_id: str,
    fractions: Sequence[float] = (0.8, 0.0, 0.2),
    seed: int = 0,
    skip_unlabelled: bool = False,
    labels: Mapping[str, str] | None = None,
) -> DatasetVersion:
    """A frozen version of the dataset with the upload's labelled images in their order.

    A split that came with an image wins; the others follow from ``fractions`` (train,
    validation, test) and ``seed``. ``labels`` gives labels of the upload other names; two that
    get one name become one class. Where a version with the very same content exists, it is
    returned instead of a new one. Memory: one shard's index.

    Raises:
        InvalidInputError: ``dataset_name_invalid``, ``fractions_invalid``, ``seed_invalid``,
            ``labels_map_invalid``, ``unlabelled_images`` (unless they may be skipped) or
            ``dataset_empty``.
        NotFoundError: ``upload_not_found``.
        ConflictError: ``upload_not_ready``.
    """
    check_name(name, "dataset")
    rules = _Rules(split_rule(fractions, seed), labels or {})
    _check_names(rules.names)
    _check_upload(session, tenant_id, upload_id)
    # The reading comes first: it needs no lock, and others may freeze meanwhile.
    content = _read_content(session, tenant_id, upload_id, rules, skip_unlabelled=skip_unlabelled)
    dataset_id = _lock_dataset(session, tenant_id, name)
    same = session.scalar(
        select(DatasetVersion)
        .where(
            DatasetVersion.tenant_id == tenant_id,
            DatasetVersion.dataset_id == dataset_id,
            DatasetVersion.content_sha256 == content.sha256,
        )
        .order_by(DatasetVersion.number)
        .limit(1)
    )
    if same is not None:
        return same
    last = session.scalar(
        select(func.max(DatasetVersion.number)).where(
            DatasetVersion.tenant_id == tenant_id, DatasetVersion.dataset_id == dataset_id
        )
    )
    version = DatasetVersion(
        id=new_id(DATASET_VERSION),
        tenant_id=tenant_id,
        dataset_id=dataset_id,
        number=(last or 0) + 1,
        content_sha256=content.sha256,
        classes=content.classes,
        sample_count=content.sample_count,
        counts=content.counts,
        source={
            "upload": upload_id,
            "fractions": dict(
                zip(("train", "validation", "test"), rules.split.fractions, strict=True)
            ),
            "seed": seed,
            "skipped_unlabelled": content.skipped,
        }
        | ({"labels": dict(rules.names)} if rules.names else {}),
    )
    session.add(version)
    session.flush()
    session.refresh(version)
    _insert_samples(session, tenant_id, version.id, upload_id, rules)
    duplicates = find_duplicates(session, tenant_id, version.id)
    version.facts = content.sizes.as_dict() | {"duplicates": duplicates}
    session.flush()
    return version


def _check_names(labels: Mapping[str, str]) -> None:
    """Refuse new names that a labels.csv could not give either."""
    wrong = [
        name
        for name, new in labels.items()
        if not new or new != new.strip() or len(new) > _MAX_LABEL_LENGTH or not new.isprintable()
    ]
    if wrong:
        raise InvalidInputError(
            f"{wrong[0][:_MAX_LABEL_LENGTH]!r} cannot be called {labels[wrong[0]][:60]!r}: a label "
            f"has 1…{_MAX_LABEL_LENGTH} characters, all printable, and no blank at an end",
            code="labels_map_invalid",
        )


def _require_known(labels: Mapping[str, str], known: set[str]) -> None:
    """Refuse names of labels that no image has: one is misspelt, and would stay as it is."""
    unknown = sorted(labels.keys() - known)
    if unknown:
        raise InvalidInputError(
            f"no image has the label {unknown[0][:_MAX_LABEL_LENGTH]!r}; there are "
            f"{', '.join(map(repr, sorted(known)[:10]))}{', …' if len(known) > 10 else ''}",
            code="labels_map_invalid",
            errors=[{"pointer": f"/labels/{name}", "detail": "no such label"} for name in unknown][
                :_ERRORS_SHOWN
            ],
            total=len(unknown),
        )


def _check_upload(session: Session, tenant_id: str, upload_id: str) -> None:
    upload = session.execute(
        select(Upload.kind, Upload.state).where(
            Upload.tenant_id == tenant_id, Upload.id == upload_id
        )
    ).one_or_none()
    if upload is None:
        raise NotFoundError(f"there is no upload {upload_id[:60]!r}", code="upload_not_found")
    if upload.kind != UploadKind.ARCHIVE:
        raise InvalidInputError(
            f"upload {upload_id!r} holds {upload.kind}, not images", code="upload_not_archive"
        )
    if upload.state != UploadState.READY:
        raise ConflictError(
            f"upload {upload_id!r} is {upload.state}: wait until its ingest job has succeeded",
            code="upload_not_ready",
        )


def _shards(session: Session, tenant_id: str, upload_id: str) -> Iterator[Row[int, str, list[Any]]]:
    """Object key and entries of one shard after the other."""
    number = -1
    while True:
        shard = session.execute(
            select(Shard.number, Shard.object_key, Shard.entries)
            .where(
                Shard.tenant_id == tenant_id, Shard.upload_id == upload_id, Shard.number > number
            )
            .order_by(Shard.number)
            .limit(1)
        ).one_or_none()
        if shard is None:
            return
        yield shard
        number = shard.number


def _read_content(
    session: Session, tenant_id: str, upload_id: str, rules: _Rules, *, skip_unlabelled: bool
) -> _Content:
    digest = hashlib.sha256()
    counted: Counter[tuple[str, str]] = Counter()
    found: set[str] = set()
    unlabelled: list[str] = []
    skipped = 0
    sizes = SizeTally()
    for shard in _shards(session, tenant_id, upload_id):
        labelled: list[ShardEntry] = []
        for entry in map(ShardEntry.from_row, shard.entries):
            if entry.label is None:
                skipped += 1
                if len(unlabelled) < _ERRORS_SHOWN:
                    unlabelled.append(entry.name)
                continue
            found.add(entry.label)
            split, label = rules.split_of(entry), rules.label_of(entry.label)
            # JSON, because a label may hold any character that could part two fields.
            digest.update(json.dumps([entry.sha256, label, split]).encode())
            counted[split, label] += 1
            labelled.append(entry)
        sizes.add(labelled)
    if skipped and not skip_unlabelled:
        raise InvalidInputError(
            f"{skipped} images have no label; put them in folders named after their class, "
            "send a labels.csv, or set skip_unlabelled",
            code="unlabelled_images",
            errors=[{"pointer": name, "detail": "no label"} for name in unlabelled],
            total=skipped,
        )
    if not counted:
        raise InvalidInputError(f"upload {upload_id!r} has no labelled image", code="dataset_empty")
    _require_known(rules.names, found)
    counts: dict[str, dict[str, int]] = {split.value: {} for split in Split}
    for (split, label), number in sorted(counted.items()):
        counts[split][label] = number
    return _Content(digest.hexdigest(), counts, skipped, sizes)


def _lock_dataset(session: Session, tenant_id: str, name: str) -> str:
    """The dataset's id, made if new; its row stays locked to the end of the transaction."""
    session.execute(
        insert(Dataset)
        .values(id=new_id(DATASET), tenant_id=tenant_id, name=name)
        .on_conflict_do_nothing(index_elements=[Dataset.tenant_id, Dataset.name])
    )
    return session.scalars(
        select(Dataset.id)
        .where(Dataset.tenant_id == tenant_id, Dataset.name == name)
        .with_for_update()
    ).one()


def _insert_samples(
    session: Session, tenant_id: str, version_id: str, upload_id: str, rules: _Rules
) -> None:
    ordinal = 0
    for shard in _shards(session, tenant_id, upload_id):
        rows = [
            {
                "ordinal": ordinal + position,
                "name": entry.name,
                "offset_bytes": entry.offset,
                "length_bytes": entry.length,
                "sha256": entry.sha256,
                "label": rules.label_of(label),
                "split": rules.split_of(entry),
            }
            for position, (entry, label) in enumerate(
                (entry, entry.label)
                for entry in map(ShardEntry.from_row, shard.entries)
                if entry.label is not None
            )
        ]
        ordinal += len(rows)
        session.execute(
            _INSERT_SAMPLES,
            {
                "version_id": version_id,
                "tenant_id": tenant_id,
                "object_key": shard.object_key,
                "rows": json.dumps(rows),
            },
        )
