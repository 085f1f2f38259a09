from __future__ import annotations

import pytest

from app.storage import keys


def test_every_key_begins_with_its_tenant() -> None:
    made = [
        keys.upload_archive("ten_1", "upl_1"),
        keys.shard("ten_1", "upl_1", 7),
        keys.weights("ten_1", "mdv_1"),
        keys.artifact("ten_1", "job_1", "results.jsonl"),
        keys.checkpoint("ten_1", "job_1", 1, 500),
        keys.checkpoint("ten_1", "job_1", 2, 500),
    ]
    assert all(key.startswith(keys.tenant_prefix("ten_1")) for key in made)
    assert len(set(made)) == len(made)
    assert made[1] == "tenants/ten_1/uploads/upl_1/shards/000007.shard"


@pytest.mark.parametrize("part", ["", "..", "a/b", "../x", "a\n", ".hidden"])
def test_a_part_that_could_leave_its_folder_is_refused(part: str) -> None:
    with pytest.raises(ValueError, match="object key"):
        keys.artifact("ten_1", "job_1", part)
