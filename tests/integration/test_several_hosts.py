"""Workers on several hosts, one cut off for longer than its lease and joined again."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

# Everything that the trial starts ends with it, whatever becomes of it: the first process of a
# pid namespace takes all others along.
_APART = ["unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc", "--"]


def _refused() -> str | None:
    """Why this machine does not let a process have hosts of its own; None where it does."""
    missing = [name for name in ("unshare", "nsenter", "ip") if shutil.which(name) is None]
    if missing:
        return f"needs {' and '.join(missing)} (util-linux, iproute2)"
    if os.geteuid() != 0:
        return "needs root to make network namespaces"
    tried = subprocess.run(
        [*_APART, "ip", "link", "add", "tried", "type", "bridge"],
        check=False,
        capture_output=True,
        text=True,
    )
    return (
        f"network namespaces are not allowed: {tried.stderr.strip()}" if tried.returncode else None
    )


def test_worker_that_was_cut_off_longer_than_its_lease_is_refused_and_nothing_is_lost() -> None:
    reason = _refused()
    if reason is not None:
        pytest.skip(reason)
    done = subprocess.run(
        [*_APART, sys.executable, "-m", "tests.hosts.trial"],
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-6000:]
    assert "lost=0 twice=0" in done.stdout.splitlines()[-1]
