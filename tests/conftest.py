"""Real parts for the tests: one PostgreSQL, one Valkey and one S3 server per session.

They start on first use. Where a part is not installed, a laptop skips the tests that need it;
under ``CI=true`` that is a failure.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from app.stack.part import Part
from app.stack.postgres import LocalPostgres
from app.stack.processes import PartMissingError
from app.stack.s3 import LocalS3
from app.stack.valkey import LocalValkey

P = TypeVar("P", bound=Part)


def _serve(part: P) -> Iterator[P]:
    try:
        part.start()
    except PartMissingError as error:
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail(str(error))
        pytest.skip(str(error))
    try:
        yield part
    finally:
        part.stop()


@pytest.fixture(scope="session")
def stack_dir() -> Iterator[Path]:
    """The session's data folder, open to pass through: PostgreSQL may run as another user."""
    folder = Path(tempfile.mkdtemp(prefix="darkroom-test-"))
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres(stack_dir: Path) -> Iterator[LocalPostgres]:
    """A running PostgreSQL without any database of ours."""
    yield from _serve(LocalPostgres(stack_dir, fast=True))


@pytest.fixture(scope="session")
def valkey(stack_dir: Path) -> Iterator[LocalValkey]:
    """A running, empty Valkey; a test that needs it empty again flushes it."""
    yield from _serve(LocalValkey(stack_dir))


@pytest.fixture(scope="session")
def s3(stack_dir: Path) -> Iterator[LocalS3]:
    """A running S3 endpoint with one empty bucket, ``darkroom``."""
    yield from _serve(LocalS3(stack_dir))
