"""Families: an object store that fails, crawls, cuts off, hangs, forgets and changes."""

from __future__ import annotations

from app.jobs.states import JobState
from tests.faults.families import family
from tests.faults.kills import IMPATIENT, slow
from tests.faults.library import BUCKET, MODEL, SHARD_ITEMS, Picture
from tests.faults.oracle import answer_of
from tests.faults.s3_proxy import Rule
from tests.faults.trial import OPTIONS, Trial

_SHARDS = "shard-"


@family(quick=True)
def s3_misbehaves(trial: Trial) -> None:
    """GETs that end with 500, crawl, end in the middle or are cut at once."""
    trial.muster(slow(trial))
    limit = trial.size(40, 4)
    rules = [
        Rule("error", _SHARDS, every=5, limit=limit),
        Rule("short", _SHARDS, every=4, limit=limit),
        Rule("slow", _SHARDS, every=4, limit=limit),
        Rule("refuse", _SHARDS, every=5, limit=limit),
    ]
    with trial.misbehaving(*rules):
        trial.load(trial.size(16_000, 1_500), 3)
        trial.wait_for_end(240)


@family()
def s3_hangs(trial: Trial) -> None:
    """A GET that brings no byte: the worker sees that nothing moves, and ends itself."""
    orders = slow(trial)
    orders.variables = IMPATIENT
    trial.muster(orders)
    with trial.misbehaving(Rule("hang", _SHARDS, every=7, limit=4)):
        trial.load(6_000, 3)
        trial.wait_for_end(240)


@family()
def s3_restarts(trial: Trial) -> None:
    """kill -9 of the S3 server, away for seconds, with fetches under way."""
    trial.muster(slow(trial))
    trial.load(10_000, 4)
    for _ in range(4):
        trial.pause(0.5, 1.5)
        assert trial.stage.s3.pid is not None
        trial.kill_pid(trial.stage.s3.pid, "kill of the S3 server")
        trial.pause(0.5, 2.0)
        trial.stage.s3.start()
    trial.wait_for_end(240)


@family()
def s3_forgets(trial: Trial) -> None:
    """Objects that are missing, and shards that end too early: those items fail, no others."""
    trial.muster(slow(trial))
    pictures = trial.pictures(600)
    prefix = f"{trial.family}/{trial.callers[0].tenant_id}/whole"
    gone = set(trial.rng.sample(range(len(pictures)), 40))
    for index, one in enumerate(pictures):
        if index not in gone:
            trial.stage.store.put(BUCKET, f"{prefix}/{one.custom_id}", one.data)
    trial.made["missing object"] += len(gone)
    trial.accept(
        0,
        {
            "kind": "predict",
            "model": MODEL,
            "input": {
                "items": [
                    {"key": f"s3://{BUCKET}/{prefix}/{one.custom_id}", "custom_id": one.custom_id}
                    for one in pictures
                ]
            },
            "options": OPTIONS,
        },
        [
            (
                one.custom_id,
                frozenset({"!object_missing" if index in gone else answer_of(one.data)}),
            )
            for index, one in enumerate(pictures)
        ],
        frozenset({JobState.PARTIALLY_SUCCEEDED}),
    )
    trial.load(2_000, 2)
    trial.wait_for_end()


@family()
def s3_changes(trial: Trial) -> None:
    """Shards that are written anew, or cut short, while a job reads them."""
    trial.muster(slow(trial, 0.05))
    before = trial.pictures(2 * SHARD_ITEMS)
    # Same lengths, so that the ranges of the manifest still hold one image each.
    after = _same_lengths(trial, before)
    ends = [
        (
            old.custom_id,
            frozenset({answer_of(old.data), answer_of(new.data), "!object_missing"}),
        )
        for old, new in zip(before, after, strict=True)
    ]
    job = trial.submit(
        before,
        items=ends,
        ends=frozenset({JobState.SUCCEEDED, JobState.PARTIALLY_SUCCEEDED}),
    )
    trial.wait(lambda: trial.has_begun(job.job_id), "the job has begun")
    prefix = f"{trial.family}/{job.tenant_id}/0"
    whole = b"".join(one.data for one in after[:SHARD_ITEMS])
    cut = b"".join(one.data for one in before[SHARD_ITEMS : SHARD_ITEMS + SHARD_ITEMS // 2])
    trial.stage.store.put(BUCKET, f"{prefix}/shard-{0:07d}.bin", whole)
    trial.stage.store.put(BUCKET, f"{prefix}/shard-{SHARD_ITEMS:07d}.bin", cut)
    trial.made["changed object"] += 1
    trial.made["cut object"] += 1
    trial.load(2_000, 2)
    trial.wait_for_end()


def _same_lengths(trial: Trial, pictures: list[Picture]) -> list[Picture]:
    """Other images, each as long as the one in its place."""
    pool: dict[int, list[bytes]] = {}
    for one in trial.pictures(4 * len(pictures)):
        pool.setdefault(len(one.data), []).append(one.data)
    return [
        Picture(one.custom_id, pool[len(one.data)].pop() if pool.get(len(one.data)) else one.data)
        for one in pictures
    ]
