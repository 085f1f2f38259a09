"""How fast an archive is read, judged and packed on one core; no service is needed.

python -m tests.bench.pack_archive ARCHIVE
"""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path

from app.errors import ItemError
from app.settings import load_settings
from app.uploads.archive import open_archive
from app.uploads.judge import ImageLimits, judge_image
from app.uploads.labels import Labels
from app.uploads.members import ArchiveLimits
from app.uploads.pack import ShardWriter


def main(path: Path) -> None:
    settings = load_settings(DATABASE_URL="postgresql://not-used")
    limits = ImageLimits.from_settings(settings)
    started = time.perf_counter()
    shards = images = failed = labelled = 0
    with path.open("rb", buffering=1 << 20) as file:
        archive = open_archive(file, ArchiveLimits.from_settings(settings))
        labels = Labels(archive.survey())
        writer = ShardWriter(
            max_bytes=settings.shard_bytes,
            max_items=settings.shard_items,
            key_of=str,
        )
        for member in archive.members():
            try:
                content = member.read()
                facts = judge_image(content, limits)
            except ItemError as error:
                failed += 1
                full = writer.fail(member.name, error)
            else:
                images += 1
                label, split = labels.of(member.name)
                labelled += label is not None
                full = writer.add(member.name, content, facts, label, split)
            shards += full is not None
        shards += writer.finish() is not None
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    sys.stdout.write(
        f"pack images={images} failed={failed} labelled={labelled} shards={shards} "
        f"seconds={seconds:.2f} images_per_s={(images + failed) / seconds:.0f} peak_mib={peak}\n"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
