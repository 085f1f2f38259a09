"""Every hostile archive ends in its code, within its time and memory, and harms no neighbour."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.security.archive_cases import NEIGHBOURS, Case
from tests.security.confined import run_confined
from tests.security.hostile_archives import CASES
from tests.security.intake import take_file, take_repeated
from tests.security.raw_archives import tar_header


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_a_hostile_archive_gets_its_code_and_its_neighbours_succeed(
    case: Case, tmp_path: Path
) -> None:
    path = tmp_path / "archive"
    path.write_bytes(case.make())
    outcome = run_confined(take_file, str(path)).result
    path.unlink()
    if case.refused is not None:
        assert outcome.get("refused") == case.refused, outcome.get("detail", outcome["failed"])
        assert len(outcome["detail"]) < 5000
        return
    assert "refused" not in outcome, outcome
    assert dict(outcome["failed"]) == case.failed
    assert Counter(outcome["packed"]) == Counter([*NEIGHBOURS, *case.taken])


def test_a_tar_of_a_million_empty_files_is_refused() -> None:
    outcome = run_confined(take_repeated, tar_header(b"empty.jpg"), 1_000_000, bytes(1024)).result
    assert outcome["refused"] == "archive_empty"


def test_the_case_list_has_no_name_twice() -> None:
    assert len({case.name for case in CASES}) == len(CASES)
