"""From the bytes of an archive to packed images: what an ingest does, without its job."""

from __future__ import annotations

from typing import BinaryIO, NamedTuple

from app.errors import InvalidInputError, ItemError
from app.uploads.archive import open_archive
from app.uploads.judge import ImageLimits, judge_image
from app.uploads.labels import Labels
from app.uploads.members import ArchiveLimits, Member
from app.uploads.pack import PackedShard, ShardWriter
from app.uploads.reader import Archive


class Surveyed(NamedTuple):
    """An archive whose headers and labels have been read; no image of it has."""

    archive: Archive
    labels: Labels
    item_count: int


def survey_archive(file: BinaryIO, limits: ArchiveLimits) -> Surveyed:
    """Open an archive and look at all of it that can refuse the whole.

    Raises:
        InvalidInputError: as :func:`open_archive` and :meth:`Archive.survey`, and
            ``archive_empty`` where no file in it has a byte.
        StorageError: the object store failed.
    """
    archive = open_archive(file, limits)
    survey = archive.survey()
    labels = Labels(survey)
    if survey.empty_count == survey.item_count:
        # A million empty members would be a million failed items, and tell no more than this.
        raise InvalidInputError("the archive holds no file with content", code="archive_empty")
    return Surveyed(archive, labels, survey.item_count)


def pack_member(
    writer: ShardWriter, member: Member, labels: Labels, limits: ImageLimits
) -> PackedShard | None:
    """Judge one member and add it; returns a shard where one is now full."""
    try:
        content = member.read()
        facts = judge_image(content, limits)
    except ItemError as error:
        return writer.fail(member.name, error)
    label, split = member.own or labels.of(member.name)
    return writer.add(member.name, content, facts, label, split)
