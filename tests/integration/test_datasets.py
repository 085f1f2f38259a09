import hashlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
from sqlalchemy import func, select, text

from app.datasets.freeze import freeze_dataset
from app.datasets.resolve import (
    iter_samples,
    list_dataset_versions,
    list_datasets,
    names_of_dataset_versions,
    resolve_dataset,
)
from app.datasets.tables import Dataset, DatasetVersion, Split
from app.db.session import Database
from app.errors import DarkroomError, InvalidInputError, NotFoundError
from app.storage.keys import shard
from app.uploads.pack import ShardEntry
from app.uploads.tables import UploadKind, UploadState
from tests.factories import add_upload, entry

PETS = [[entry(n, "cat" if n % 3 else "dog") for n in range(lo, lo + 20)] for lo in (0, 20)]


def upload(database: Database, tenant_id: str, *shards: list[ShardEntry]) -> str:
    with database.tenant(tenant_id) as session:
        return add_upload(session, tenant_id, *(shards or PETS)).id


def freeze(
    database: Database,
    tenant_id: str,
    upload_id: str,
    *,
    name: str = "pets",
    seed: int = 0,
    skip_unlabelled: bool = False,
    labels: dict[str, str] | None = None,
) -> DatasetVersion:
    with database.tenant(tenant_id) as session:
        return freeze_dataset(
            session,
            tenant_id,
            name=name,
            upload_id=upload_id,
            seed=seed,
            skip_unlabelled=skip_unlabelled,
            labels=labels,
        )


def test_version_holds_the_labelled_images_in_order(database: Database, tenant_id: str) -> None:
    upload_id = upload(database, tenant_id)
    version = freeze(database, tenant_id, upload_id)
    with database.tenant(tenant_id) as session:
        samples = list(iter_samples(session, tenant_id, version.id))
    assert version.number == 1
    assert version.classes == ["cat", "dog"]
    assert version.sample_count == len(samples) == 40
    assert [sample.ordinal for sample in samples] == list(range(40))
    for sample, original in zip(samples, [*PETS[0], *PETS[1]], strict=True):
        assert sample.object_key == shard(tenant_id, upload_id, original.ordinal // 20)
        assert (sample.offset_bytes, sample.length_bytes) == (original.offset, original.length)
        assert (sample.name, sample.sha256, sample.label) == (
            original.name,
            original.sha256,
            original.label,
        )
    counted = Counter((sample.split, sample.label) for sample in samples)
    assert counted == {
        (split, label): number
        for split, labels in version.counts.items()
        for label, number in labels.items()
    }
    assert version.counts["validation"] == {}
    assert version.source["upload"] == upload_id


def test_same_content_is_the_same_version(database: Database, tenant_id: str) -> None:
    first = freeze(database, tenant_id, upload(database, tenant_id))
    again = freeze(database, tenant_id, upload(database, tenant_id))
    other_seed = freeze(database, tenant_id, upload(database, tenant_id), seed=1)
    elsewhere = freeze(database, tenant_id, upload(database, tenant_id), name="beasts")
    assert again.id == first.id
    assert (other_seed.number, elsewhere.number) == (2, 1)
    assert elsewhere.content_sha256 == first.content_sha256 != other_seed.content_sha256


def test_content_hash_is_over_digest_label_and_split(database: Database, tenant_id: str) -> None:
    image = entry(0, "a cat\n", "test")
    version = freeze(database, tenant_id, upload(database, tenant_id, [image]))
    written = f'["{image.sha256}", "a cat\\n", "test"]'
    assert version.content_sha256 == hashlib.sha256(written.encode()).hexdigest()


def test_labels_are_renamed_and_merged_as_content(database: Database, tenant_id: str) -> None:
    kinds = ("kitten", "cat", "dog")
    kittens = [entry(n, kinds[n % 3], "train") for n in range(9)]
    cats = [entry(n, "dog" if n % 3 == 2 else "cat", "train") for n in range(9)]
    upload_id = upload(database, tenant_id, kittens)
    as_they_are = freeze(database, tenant_id, upload_id)
    merged = freeze(database, tenant_id, upload_id, labels={"kitten": "cat"})
    assert merged.classes == ["cat", "dog"]
    assert merged.counts["train"] == {"cat": 6, "dog": 3}
    assert merged.source["labels"] == {"kitten": "cat"}
    assert "labels" not in as_they_are.source
    with database.tenant(tenant_id) as session:
        samples = list(iter_samples(session, tenant_id, merged.id))
    assert [sample.label for sample in samples] == ["cat", "cat", "dog"] * 3
    # The names decide, and not how an image came by them.
    assert freeze(database, tenant_id, upload(database, tenant_id, cats)).id == merged.id
    # Both at once: nothing is renamed twice.
    swapped = freeze(database, tenant_id, upload_id, labels={"cat": "dog", "dog": "cat"})
    assert swapped.counts["train"] == {"cat": 3, "dog": 3, "kitten": 3}
    assert len({as_they_are.id, merged.id, swapped.id}) == 3


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        ({"kiten": "cat"}, "no image has the label 'kiten'; there are 'cat', 'dog'"),
        ({"cat": " "}, "'cat' cannot be called ' '"),
        ({"cat": "a\x00b"}, "printable"),
        ({"cat": "c" * 201}, "1…200 characters"),
        ({"cat": "dog "}, "no blank at an end"),
    ],
    ids=["unknown", "blank", "control", "long", "padded"],
)
def test_names_that_cannot_be_given_are_refused(
    database: Database, tenant_id: str, labels: dict[str, str], told: str
) -> None:
    with pytest.raises(InvalidInputError) as caught:
        freeze(database, tenant_id, upload(database, tenant_id), labels=labels)
    assert caught.value.code == "labels_map_invalid"
    assert told in caught.value.detail
    with database.tenant(tenant_id) as session:
        assert list_datasets(session, tenant_id) == ([], False)


def test_split_that_came_with_an_image_wins(database: Database, tenant_id: str) -> None:
    entries = [entry(n, "cat", split="validation") for n in range(5)]
    version = freeze(database, tenant_id, upload(database, tenant_id, [*entries, entry(9)]))
    assert version.counts["validation"] == {"cat": 5}
    assert version.sample_count == 6


def test_copies_of_one_image_stand_in_one_split(database: Database, tenant_id: str) -> None:
    copies = [entry(n, content="the very same") for n in range(10)]
    version = freeze(database, tenant_id, upload(database, tenant_id, copies))
    assert sorted(sum(labels.values()) for labels in version.counts.values()) == [0, 0, 10]


def test_version_tells_the_sizes_of_its_images(database: Database, tenant_id: str) -> None:
    sizes = [(10, 20, 100), (30, 20, 300), (20, 20, 500), (40, 10, 101)]
    shards = [
        [entry(n)._replace(width=width, height=height, length=length)]
        for n, (width, height, length) in enumerate(sizes)
    ]
    left_out = entry(9, None)._replace(width=999)
    upload_id = upload(database, tenant_id, *shards, [left_out])
    with database.tenant(tenant_id) as session:
        version = freeze_dataset(
            session, tenant_id, name="pets", upload_id=upload_id, skip_unlabelled=True
        )
    facts = version.facts
    assert facts is not None
    assert facts["width"] == {"min": 10, "median": 20, "mean": 25, "max": 40}
    assert facts["height"] == {"min": 10, "median": 20, "mean": 17.5, "max": 20}
    assert facts["aspect"] == {"landscape": 2, "square": 1, "portrait": 1}
    assert facts["bytes"] == {"min": 100, "mean": 250.25, "max": 500, "total": 1001}
    assert facts["duplicates"]["groups"] == 0
    assert facts["duplicates"]["examples"] == []


def test_copies_are_counted_and_the_worst_are_named(database: Database, tenant_id: str) -> None:
    def of(content: str, *places: tuple[int, str, str]) -> list[ShardEntry]:
        return [entry(n, label, split, content) for n, split, label in places]

    shards = [
        of("plain", *((n, "train", "cat") for n in range(3))),
        of("crossing", *((n, "train", "dog") for n in range(10, 16)), (16, "test", "dog")),
        of("contradicting", (20, "train", "cat"), (21, "train", "dog")),
        of("merged", (30, "train", "cat"), (31, "train", "kitten")),
        of("alone", (40, "test", "cat")),
    ]
    upload_id = upload(database, tenant_id, *shards)
    version = freeze(database, tenant_id, upload_id, labels={"kitten": "cat"})
    assert version.facts is not None
    found = version.facts["duplicates"]
    counts = {name: found[name] for name in ("groups", "images", "across_splits", "contradicting")}
    assert counts == {"groups": 4, "images": 14, "across_splits": 1, "contradicting": 1}
    named = [[image["name"] for image in group["images"]] for group in found["examples"]]
    assert named == [
        ["20.png", "21.png"],
        ["10.png", "11.png", "12.png", "16.png"],
        ["0.png", "1.png", "2.png"],
        ["30.png", "31.png"],
    ]
    assert found["examples"][0]["images"][1] == {"name": "21.png", "split": "train", "label": "dog"}
    assert [group["count"] for group in found["examples"]] == [2, 7, 3, 2]


def test_images_without_label_are_named_and_refused(database: Database, tenant_id: str) -> None:
    bare = [entry(n, None) for n in range(150)]
    with pytest.raises(InvalidInputError) as caught:
        freeze(database, tenant_id, upload(database, tenant_id, [entry(200), *bare]))
    assert caught.value.code == "unlabelled_images"
    assert caught.value.errors[0] == {"pointer": "0.png", "detail": "no label"}
    assert (len(caught.value.errors), caught.value.total) == (100, 150)
    with database.tenant(tenant_id) as session:
        assert list_datasets(session, tenant_id) == ([], False)


def test_images_without_label_are_skipped_on_request(database: Database, tenant_id: str) -> None:
    shards = [[entry(0), entry(1, None)], [entry(2, None)], [entry(3, "dog")]]
    version = freeze(
        database, tenant_id, upload(database, tenant_id, *shards), skip_unlabelled=True
    )
    with database.tenant(tenant_id) as session:
        samples = list(iter_samples(session, tenant_id, version.id))
    assert [(sample.ordinal, sample.name) for sample in samples] == [(0, "0.png"), (1, "3.png")]
    assert version.source["skipped_unlabelled"] == 2


def test_upload_without_any_label_makes_no_dataset(database: Database, tenant_id: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        freeze(
            database,
            tenant_id,
            upload(database, tenant_id, [entry(0, None)]),
            skip_unlabelled=True,
        )
    assert caught.value.code == "dataset_empty"


@pytest.mark.parametrize(
    ("kind", "state", "code"),
    [
        (UploadKind.ARCHIVE, UploadState.STORED, "upload_not_ready"),
        (UploadKind.ARCHIVE, UploadState.FAILED, "upload_not_ready"),
        (UploadKind.WEIGHTS, UploadState.READY, "upload_not_archive"),
    ],
)
def test_only_ingested_archives_are_frozen(
    database: Database, tenant_id: str, kind: UploadKind, state: UploadState, code: str
) -> None:
    with database.tenant(tenant_id) as session:
        upload_id = add_upload(session, tenant_id, kind=kind, state=state).id
    with pytest.raises(DarkroomError) as caught:
        freeze(database, tenant_id, upload_id)
    assert caught.value.code == code


def test_unknown_upload_is_not_found(database: Database, tenant_id: str) -> None:
    with pytest.raises(NotFoundError) as caught:
        freeze(database, tenant_id, "upl_none")
    assert caught.value.code == "upload_not_found"


def test_freezes_at_once_agree_on_one_version_for_each_content(
    database: Database, tenant_id: str
) -> None:
    upload_id = upload(database, tenant_id)
    seeds = [0, 0, 1, 1]
    barrier = Barrier(len(seeds))

    def run(seed: int) -> tuple[str, int]:
        with database.tenant(tenant_id) as session:
            session.execute(text("SELECT 1"))
            barrier.wait(timeout=10)
            version = freeze_dataset(
                session, tenant_id, name="raced", upload_id=upload_id, seed=seed
            )
            return version.id, version.number

    with ThreadPoolExecutor(len(seeds)) as pool:
        made = list(pool.map(run, seeds))
    assert made[0] == made[1]
    assert made[2] == made[3]
    assert {number for _, number in made} == {1, 2}
    with database.tenant(tenant_id) as session:
        assert session.scalar(select(func.count()).select_from(Dataset)) == 1


def test_reference_finds_latest_number_and_id(database: Database, tenant_id: str) -> None:
    upload_id = upload(database, tenant_id)
    first, second = (freeze(database, tenant_id, upload_id, seed=seed) for seed in (0, 1))
    with database.tenant(tenant_id) as session:
        for reference, version in {"pets": second, "pets@1": first, first.id: first}.items():
            assert resolve_dataset(session, tenant_id, reference).id == version.id
        names = names_of_dataset_versions(session, tenant_id, [second.id])
    assert names == {second.id: "pets@2"}


@pytest.mark.parametrize(
    ("reference", "told"),
    [
        ("pets@7", "latest version is 1"),
        ("pets@latest", "latest version is 1"),
        ("birds", "datasets here: pets"),
        ("dsv_1", "datasets here: pets"),
    ],
)
def test_unknown_reference_is_told_what_exists(
    database: Database, tenant_id: str, reference: str, told: str
) -> None:
    freeze(database, tenant_id, upload(database, tenant_id))
    with pytest.raises(NotFoundError, match=told), database.tenant(tenant_id) as session:
        resolve_dataset(session, tenant_id, reference)


def test_samples_are_read_split_by_split_and_page_by_page(
    database: Database, tenant_id: str
) -> None:
    version = freeze(database, tenant_id, upload(database, tenant_id))
    with database.tenant(tenant_id) as session:
        train = list(iter_samples(session, tenant_id, version.id, split=Split.TRAIN))
        pages = []
        after = None
        while page := list(
            iter_samples(session, tenant_id, version.id, split="train", after=after, limit=7)
        ):
            pages.append(page)
            after = page[-1].ordinal
        everything = list(iter_samples(session, tenant_id, version.id, limit=None))
        assert list(iter_samples(session, tenant_id, version.id, limit=0)) == []
    assert {sample.split for sample in train} == {"train"}
    assert len(train) == sum(version.counts["train"].values())
    assert [sample for page in pages for sample in page] == train
    assert all(len(page) == 7 for page in pages[:-1])
    assert len(everything) == 40


def test_unknown_split_is_refused(database: Database, tenant_id: str) -> None:
    with (
        pytest.raises(InvalidInputError, match="train, validation, test"),
        database.tenant(tenant_id) as session,
    ):
        iter_samples(session, tenant_id, "dsv_1", split="exam")


def test_datasets_and_versions_are_listed_newest_first(database: Database, tenant_id: str) -> None:
    upload_id = upload(database, tenant_id)
    for name, seed in (("cats", 0), ("dogs", 0), ("dogs", 1)):
        freeze(database, tenant_id, upload_id, name=name, seed=seed)
    with database.tenant(tenant_id) as session:
        datasets, more = list_datasets(session, tenant_id)
        (latest,), follows = list_dataset_versions(session, tenant_id, "dogs", limit=1)
        (first,), end = list_dataset_versions(session, tenant_id, "dogs", after=latest.id)
    assert [(row.name, row.version_count, row.latest_number) for row in datasets] == [
        ("dogs", 2, 2),
        ("cats", 1, 1),
    ]
    assert (latest.number, first.number) == (2, 1)
    assert (more, follows, end) == (False, True, False)
