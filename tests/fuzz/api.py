"""schemathesis with all its checks against the API as it is run, for two minutes.

As a command: ``python -m tests.fuzz.api [--seed n] [--seconds 120]``. It ends with one line of
figures, and with status 1 where a check failed; what failed is told above it, with a request that
shows it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path

from app.db.session import Database
from app.log import configure_logging
from app.storage.s3 import ObjectStore
from tests.api_client import make_app, make_key
from tests.bench.service import local_parts, say
from tests.http_server import HttpServer, running_api
from tests.local_parts import scratch_folder
from tests.world import World, build_world

SECONDS = 120
#: Ids that exist, so that most requests lead somewhere; nothing ends what the others need.
_STAYS = ("job_id", "artifact_id", "name", "number", "alias", "webhook_id", "delivery_id")
#: A valid request may be refused by rules that no schema can tell: what it names does not exist,
#: is not ready, or is too much. The check of our own in api_hooks sees to the rest.
_EXPECTED = ["2xx", "304", "401", "403", "404", "409", "413", "415", "416", "422", "429", "503"]
#: What is wrong may be wrong in size, too.
_REFUSED = ["400", "401", "403", "404", "405", "409", "413", "414", "415", "422", "429", "431"]
#: Where this API means something else than a check expects.
_OWN_WAYS = """
# It has the form of an upload's address, whose methods answer there.
[[operations]]
include-path = "/v1/uploads/multipart"
checks.unsupported_method.enabled = false
checks.allow_header_conformance.enabled = false
# Its stream would be one long wait.
[[operations]]
include-operation-id = "list_events"
headers = { Accept = "application/json" }
# An upload that was given up is kept, as failed.
[[operations]]
include-operation-id = "get_upload"
checks.use_after_free.enabled = false
"""


def main(words: list[str] | None = None) -> int:
    """Run it; 0 where nothing failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.api", description=__doc__)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--seconds", type=int, default=SECONDS)
    # `make fuzz EXAMPLES=` bounds parts that count inputs; this one counts seconds.
    parser.add_argument("--examples", help=argparse.SUPPRESS)
    asked = parser.parse_args(words)
    seed = asked.seed if asked.seed is not None else random.randrange(2**31)
    configure_logging("ERROR")
    with scratch_folder("darkroom-fuzz-") as folder, local_parts(folder, **_LIMITS) as parts:
        settings, objects = parts.settings, ObjectStore.from_settings(parts.settings)
        database = Database.from_settings(settings)
        world = build_world(make_app(settings, objects), settings, database, objects)
        began = time.monotonic()
        with running_api(settings, objects, threads=8) as server:
            key = make_key(database, settings, world.tenant_id, name="fuzz")
            config = folder / "schemathesis.toml"
            config.write_text(_config(world))
            told, status = _run(_command(server, key, config, asked.seconds, seed))
        seconds = time.monotonic() - began
        figures = _figures(told)
        database.close()
    say(
        f"fuzz_api requests={figures['requests']} operations={figures['operations']} "
        f"failures={figures['failures']} seed={seed} seconds={seconds:.0f}"
    )
    return 1 if figures["failures"] or status else 0


_LIMITS = {
    "max_requests_per_minute": 10_000_000,
    "max_failed_authentications_per_minute": 10_000_000,
    "webhook_hosts": "*.example.com",
    "require_durable": False,
}


def _command(server: HttpServer, key: str, config: Path, seconds: int, seed: int) -> list[str]:
    return [
        *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(config), "run"),
        f"http://127.0.0.1:{server.port}/v1/openapi.json",
        *("--checks", "all", "--max-time", str(seconds), "--seed", str(seed)),
        *("--header", f"Authorization: Bearer {key}", "--request-timeout", "20"),
        *("--continue-on-failure", "--suppress-health-check", "all", "--no-color"),
        *("--warnings", "off", "--generation-database", "none"),
    ]


def _run(command: list[str]) -> tuple[str, int]:
    """What schemathesis said, which is shown as it comes, and its exit status."""
    variables = {**os.environ, "SCHEMATHESIS_HOOKS": "tests.fuzz.api_hooks"}
    told = []
    with subprocess.Popen(
        command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            told.append(line)
            sys.stdout.write(line)
    return "".join(told), process.returncode


def _config(world: World) -> str:
    lines = ["[parameters]"]
    lines += [f'"path.{name}" = {json.dumps(world.ids[name])}' for name in _STAYS]
    lines += ["[checks.positive_data_acceptance]", f"expected-statuses = {json.dumps(_EXPECTED)}"]
    lines += ["[checks.negative_data_rejection]", f"expected-statuses = {json.dumps(_REFUSED)}"]
    return "\n".join(lines) + _OWN_WAYS


def _figures(told: str) -> dict[str, int]:
    """Figures of the summary; none of them in it means that there was no run."""
    summary = told.rpartition(" SUMMARY ")[2]

    def number(pattern: str) -> int:
        return sum(int(found) for found in re.findall(pattern, summary))

    return {
        "requests": number(r"(\d+) generated"),
        "operations": number(r"Tested: (\d+)"),
        # The last line counts both, or says that there are none.
        "failures": number(r"(?m)^=.*?(\d+) failures?") + number(r"(?m)^=.*?(\d+) errors?"),
    }


if __name__ == "__main__":
    sys.exit(main())
