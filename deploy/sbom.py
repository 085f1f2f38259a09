"""What a lock file installs, as a CycloneDX 1.6 bill of materials: ``make sbom``.

The lock file is the truth: names, versions and the hashes of every file that may be installed.
"""

from __future__ import annotations

import argparse
import sys
from importlib.metadata import version
from pathlib import Path

from cyclonedx.model import HashAlgorithm, HashType
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output import make_outputter
from cyclonedx.schema import OutputFormat, SchemaVersion
from packageurl import PackageURL
from pip_requirements_parser import InstallRequirement, RequirementsFile


def describe(lock: Path) -> Bom:
    """The bill of what ``lock`` pins."""
    bom = Bom()
    bom.metadata.component = Component(
        name="darkroom", version=version("darkroom"), type=ComponentType.APPLICATION
    )
    for requirement in RequirementsFile.from_file(str(lock)).requirements:
        bom.components.add(_component(requirement))
    bom.register_dependency(bom.metadata.component, bom.components)
    return bom


def _component(requirement: InstallRequirement) -> Component:
    name, pinned = requirement.name, requirement.get_pinned_version
    if not pinned or not requirement.hash_options:
        raise SystemExit(f"{requirement.line} is not pinned with hashes")
    link = PackageURL("pypi", name=name, version=pinned)
    return Component(
        name=name,
        version=pinned,
        type=ComponentType.LIBRARY,
        purl=link,
        bom_ref=str(link),
        hashes=[
            HashType(alg=HashAlgorithm.SHA_256, content=option.removeprefix("sha256:"))
            for option in requirement.hash_options
        ],
    )


def main() -> None:
    """Write the bill of each lock file to ``dist``."""
    parser = argparse.ArgumentParser(description="Bills of materials of lock files.")
    parser.add_argument("locks", nargs="+", type=Path)
    parser.add_argument("--to", type=Path, default=Path("dist"))
    arguments = parser.parse_args()
    arguments.to.mkdir(exist_ok=True)
    for lock in arguments.locks:
        bom = describe(lock)
        target = arguments.to / f"sbom-{lock.stem}.cdx.json"
        outputter = make_outputter(bom, OutputFormat.JSON, SchemaVersion.V1_6)
        target.write_text(outputter.output_as_string(indent=1))
        sys.stdout.write(f"{target}: {len(bom.components)} packages\n")


if __name__ == "__main__":
    main()
