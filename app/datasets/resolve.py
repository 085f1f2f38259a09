"""Finds dataset versions by what people write, and reads their samples."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session

from app.datasets.tables import Dataset, DatasetVersion, Sample, Split
from app.db.page import fetch_page
from app.errors import InvalidInputError, NotFoundError
from app.ids import DATASET_VERSION

_NAMES_SHOWN = 10
_PAGE_ROWS = 5000


class SampleRow(NamedTuple):
    """One sample as plain values; the fields of :class:`app.datasets.tables.Sample`."""

    ordinal: int
    name: str
    object_key: str
    offset_bytes: int
    length_bytes: int
    sha256: str
    label: str
    split: str


@dataclass(frozen=True, slots=True)
class DatasetSummary:
    """A dataset as a list shows it."""

    id: str
    name: str
    created_at: datetime
    version_count: int
    latest_number: int


def resolve_dataset(session: Session, tenant_id: str, reference: str) -> DatasetVersion:
    """The version that a reference means: ``name`` the latest, ``name@2`` or ``dsv_…``.

    Raises:
        NotFoundError: ``dataset_not_found``; the detail lists what exists.
    """
    mine = select(DatasetVersion).where(DatasetVersion.tenant_id == tenant_id)
    if reference.startswith(f"{DATASET_VERSION}_"):
        version = session.scalar(mine.where(DatasetVersion.id == reference))
        if version is not None:
            return version
    name, _, number = reference.partition("@")
    dataset = get_dataset(session, tenant_id, name)
    statement = (
        mine.where(DatasetVersion.dataset_id == dataset.id)
        .order_by(DatasetVersion.number.desc())
        .limit(1)
    )
    latest = session.scalar(statement)
    if not number:
        version = latest
    elif number.isascii() and number.isdigit() and len(number) < 10:
        version = session.scalar(statement.where(DatasetVersion.number == int(number)))
    else:
        version = None
    if version is None:
        known = f"its latest version is {latest.number}" if latest else "it has no version yet"
        raise NotFoundError(
            f"dataset {name!r} has no version {number[:60]!r}; {known}", code="dataset_not_found"
        )
    return version


def get_dataset(session: Session, tenant_id: str, name: str) -> Dataset:
    """The dataset of this name.

    Raises:
        NotFoundError: ``dataset_not_found``; the detail lists what exists.
    """
    dataset = session.scalar(
        select(Dataset).where(Dataset.tenant_id == tenant_id, Dataset.name == name)
    )
    if dataset is None:
        names = session.scalars(
            select(Dataset.name)
            .where(Dataset.tenant_id == tenant_id)
            .order_by(Dataset.name)
            .limit(_NAMES_SHOWN + 1)
        ).all()
        shown = ", ".join(names[:_NAMES_SHOWN]) + (" and more" if names[_NAMES_SHOWN:] else "")
        raise NotFoundError(
            f"there is no dataset {name[:120]!r}; "
            + (f"datasets here: {shown}" if names else "there are no datasets yet"),
            code="dataset_not_found",
        )
    return dataset


def list_datasets(
    session: Session, tenant_id: str, *, after: str | None = None, limit: int = 100
) -> tuple[list[DatasetSummary], bool]:
    """A page of the tenant's datasets, newest first, and whether more follow."""
    rows, has_more = fetch_page(
        session,
        select(Dataset).where(Dataset.tenant_id == tenant_id),
        Dataset.id,
        after=after,
        limit=limit,
    )
    counted = {
        row.dataset_id: (row.versions, row.latest)
        for row in session.execute(
            select(
                DatasetVersion.dataset_id,
                func.count().label("versions"),
                func.max(DatasetVersion.number).label("latest"),
            )
            .where(
                DatasetVersion.tenant_id == tenant_id,
                DatasetVersion.dataset_id.in_([row.id for row in rows]),
            )
            .group_by(DatasetVersion.dataset_id)
        )
    }
    summaries = [
        DatasetSummary(row.id, row.name, row.created_at, *counted.get(row.id, (0, 0)))
        for row in rows
    ]
    return summaries, has_more


def list_dataset_versions(
    session: Session, tenant_id: str, name: str, *, after: str | None = None, limit: int = 100
) -> tuple[list[DatasetVersion], bool]:
    """A page of the dataset's versions, highest number first, and whether more follow.

    ``after`` is the id of the last version of the page before.

    Raises:
        NotFoundError: ``dataset_not_found``: no such dataset, or no such version to go on after.
    """
    dataset = get_dataset(session, tenant_id, name)
    statement = select(DatasetVersion).where(
        DatasetVersion.tenant_id == tenant_id, DatasetVersion.dataset_id == dataset.id
    )
    if after is not None:
        last = resolve_dataset(session, tenant_id, after)
        statement = statement.where(DatasetVersion.number < last.number)
    rows = list(session.scalars(statement.order_by(DatasetVersion.number.desc()).limit(limit + 1)))
    return rows[:limit], len(rows) > limit


def names_of_dataset_versions(
    session: Session, tenant_id: str, version_ids: Collection[str]
) -> dict[str, str]:
    """``{"dsv_…": "digits@2"}`` for those of the ids that exist."""
    if not version_ids:
        return {}
    rows = session.execute(
        select(DatasetVersion.id, Dataset.name, DatasetVersion.number)
        .join(Dataset, Dataset.id == DatasetVersion.dataset_id)
        .where(DatasetVersion.tenant_id == tenant_id, DatasetVersion.id.in_(set(version_ids)))
    )
    return {row.id: f"{row.name}@{row.number}" for row in rows}


def iter_samples(
    session: Session,
    tenant_id: str,
    version_id: str,
    *,
    split: Split | str | None = None,
    after: int | None = None,
    limit: int | None = _PAGE_ROWS,
) -> Iterator[SampleRow]:
    """A page of the samples of a version (or of one split of it), in order.

    ``after`` is the ordinal of the last sample already had. At most ``limit`` samples come;
    None means all that follow, still read page by page.

    Raises:
        InvalidInputError: ``split_unknown``.
    """
    statement = (
        select(
            Sample.ordinal,
            Sample.name,
            Sample.object_key,
            Sample.offset_bytes,
            Sample.length_bytes,
            Sample.sha256,
            Sample.label,
            Sample.split,
        )
        .where(Sample.tenant_id == tenant_id, Sample.dataset_version_id == version_id)
        .order_by(Sample.ordinal)
    )
    if split is not None:
        if split not in set(Split):
            raise InvalidInputError(
                f"unknown split {split[:60]!r}; there are {', '.join(Split)}", code="split_unknown"
            )
        statement = statement.where(Sample.split == split)
    return _pages(session, statement, -1 if after is None else after, limit)


def _pages(
    session: Session,
    statement: Select[int, str, str, int, int, str, str, str],
    after: int,
    limit: int | None,
) -> Iterator[SampleRow]:
    left = limit
    while left is None or left > 0:
        size = _PAGE_ROWS if left is None else min(left, _PAGE_ROWS)
        rows = session.execute(statement.where(Sample.ordinal > after).limit(size)).all()
        for row in rows:
            yield SampleRow._make(row)
        if len(rows) < size:
            return
        after = rows[-1].ordinal
        left = None if left is None else left - size
