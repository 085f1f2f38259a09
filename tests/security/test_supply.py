"""What is installed is what was locked: by version and by hash, from wherever it comes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOCKS = ("requirements.lock", "deploy/api.lock", "deploy/worker.lock", "deploy/bootstrap.lock")
PINNED = re.compile(r"^([a-z0-9._-]+)==(\S+)", re.MULTILINE)


@pytest.mark.parametrize("lock", LOCKS)
def test_every_package_is_pinned_with_its_hashes_and_no_address(lock: str) -> None:
    text = (ROOT / lock).read_text()
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    blocks = re.split(r"\n(?=\S)", "\n".join(lines).strip())
    assert len(blocks) > 3
    for block in blocks:
        assert PINNED.match(block), block
        assert re.search(r"--hash=sha256:[0-9a-f]{64}\b", block), block
    assert "://" not in "\n".join(lines)
    assert "--index-url" not in text
    assert "--extra-index-url" not in text


def test_every_way_of_installing_compares_hashes() -> None:
    for file in ("Makefile", "deploy/api.Dockerfile", "deploy/worker.Dockerfile"):
        for line in (ROOT / file).read_text().replace("\\\n", " ").splitlines():
            if re.search(r"pip (install|sync)", line):
                own = "--no-deps" in line
                assert own or "--require-hashes" in line, f"{file}: {line}"


def test_bill_of_materials_names_what_the_lock_installs(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "deploy/sbom.py", "deploy/api.lock", "--to", str(tmp_path)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    bill = json.loads((tmp_path / "sbom-api.cdx.json").read_text())
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    lock = (ROOT / "deploy/api.lock").read_text()
    named = {(part["name"], part["version"]) for part in bill["components"]}
    assert named == set(PINNED.findall(lock))
    for part in bill["components"]:
        assert part["purl"].startswith("pkg:pypi/")
        assert part["hashes"]
        for found in part["hashes"]:
            assert found["content"] in lock
