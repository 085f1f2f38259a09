"""What a version's images are like: their sizes, and which of them are the same.

Sizes are tallied as the images pass by; copies are found by the database, which can sort a
million digests on disk.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from operator import eq, gt
from typing import Any

from sqlalchemy import text
from sqlalchemy.orm import Session

from app.uploads.pack import ShardEntry

_EXAMPLES = 5
_IMAGES_OF_EXAMPLE = 4

_FIND_COPIES = text(
    """
    WITH copied AS (
        SELECT sha256, count(*) AS images, min(ordinal) AS first,
               min(split) <> max(split) AS across_splits,
               min(label) <> max(label) AS contradicting
        FROM samples
        WHERE tenant_id = :tenant_id AND dataset_version_id = :version_id
        GROUP BY sha256
        HAVING count(*) > 1
    )
    SELECT sha256, images,
           count(*) OVER () AS groups,
           sum(images) OVER () AS all_images,
           count(*) FILTER (WHERE across_splits) OVER () AS across_splits,
           count(*) FILTER (WHERE contradicting) OVER () AS contradicting
    FROM copied
    ORDER BY copied.contradicting DESC, copied.across_splits DESC, first
    LIMIT :examples
    """
)

# Of each split and label the first, before there is a second of any: a thousand copies in one
# split would hide the one in another.
_NAME_COPIES = text(
    """
    SELECT sha256, name, split, label
    FROM (
        SELECT *, row_number() OVER (PARTITION BY sha256 ORDER BY turn, ordinal) AS place
        FROM (
            SELECT sha256, name, split, label, ordinal,
                   row_number() OVER (PARTITION BY sha256, split, label ORDER BY ordinal) AS turn
            FROM samples
            WHERE tenant_id = :tenant_id AND dataset_version_id = :version_id
              AND sha256 = ANY(:digests)
        ) AS by_kind
    ) AS placed
    WHERE place <= :images
    ORDER BY sha256, ordinal
    """
)


class SizeTally:
    """Widths, heights and bytes of images, counted shard by shard.

    Memory: one count for each different width and height.
    """

    def __init__(self) -> None:
        self._widths: Counter[int] = Counter()
        self._heights: Counter[int] = Counter()
        self._landscape = self._square = 0
        self._min_bytes: float = math.inf
        self._max_bytes = self._total_bytes = 0

    def add(self, entries: Sequence[ShardEntry]) -> None:
        """Count some images; none are none."""
        if not entries:
            return
        # By columns: a million images are counted in one second and not in six.
        widths, heights = [each.width for each in entries], [each.height for each in entries]
        lengths = [each.length for each in entries]
        self._widths.update(widths)
        self._heights.update(heights)
        self._landscape += sum(map(gt, widths, heights))
        self._square += sum(map(eq, widths, heights))
        self._min_bytes = min(self._min_bytes, *lengths)
        self._max_bytes = max(self._max_bytes, *lengths)
        self._total_bytes += sum(lengths)

    def as_dict(self) -> dict[str, Any]:
        """Sides in pixels, images by aspect, bytes; of one image at least."""
        count = self._widths.total()
        return {
            "width": _spread(self._widths),
            "height": _spread(self._heights),
            "aspect": {
                "landscape": self._landscape,
                "square": self._square,
                "portrait": count - self._landscape - self._square,
            },
            "bytes": {
                "min": int(self._min_bytes),
                "mean": self._total_bytes / count,
                "max": self._max_bytes,
                "total": self._total_bytes,
            },
        }


def find_duplicates(session: Session, tenant_id: str, version_id: str) -> dict[str, Any]:
    """How many images of the version have the same bytes, and the worst examples.

    The worst are those whose copies have different labels, then those whose copies stand in
    different splits.
    """
    of_version = {"tenant_id": tenant_id, "version_id": version_id}
    groups = session.execute(_FIND_COPIES, of_version | {"examples": _EXAMPLES}).all()
    if not groups:
        return {"groups": 0, "images": 0, "across_splits": 0, "contradicting": 0, "examples": []}
    named: dict[str, list[dict[str, str]]] = {group.sha256: [] for group in groups}
    for image in session.execute(
        _NAME_COPIES, of_version | {"digests": list(named), "images": _IMAGES_OF_EXAMPLE}
    ):
        named[image.sha256].append({"name": image.name, "split": image.split, "label": image.label})
    return {
        "groups": groups[0].groups,
        "images": int(groups[0].all_images),
        "across_splits": groups[0].across_splits,
        "contradicting": groups[0].contradicting,
        "examples": [
            {"sha256": group.sha256, "count": group.images, "images": named[group.sha256]}
            for group in groups
        ],
    }


def _spread(counted: Counter[int]) -> dict[str, float]:
    """Smallest, lower median, mean and largest of numbers that were counted."""
    total = counted.total()
    passed = 0
    for median in sorted(counted):
        passed += counted[median]
        if 2 * passed >= total:
            break
    return {
        "min": min(counted),
        "median": median,
        "mean": sum(number * count for number, count in counted.items()) / total,
        "max": max(counted),
    }
