"""The supervisor against small real processes; every wait is for a line or an exit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from app.stack.backoff import Backoff
from app.stack.children import child_specs
from app.stack.locks import FolderLock
from app.stack.processes import AlreadyRunningError, StackError, wait_gone
from app.stack.supervisor import ChildSpec, Supervisor, ending

QUICK = Backoff(quick_seconds=0.0, first_seconds=0.01, longest_seconds=0.02)
LIMIT_SECONDS = 20.0


def python(source: str) -> tuple[str, str, str]:
    return (sys.executable, "-c", source)


def obedient(name: str, journal: Path, *, before_exit: str = "") -> ChildSpec:
    """A child that writes `name started`, waits for SIGTERM and writes `name stopped`."""
    return ChildSpec(
        name,
        python(
            "import os, signal, time\n"
            f"def write(word): open({str(journal)!r}, 'a').write('{name} ' + word + '\\n')\n"
            "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])\n"
            "write('started')\n"
            f"signal.sigwait([signal.SIGTERM])\n{before_exit}\nwrite('stopped')\n"
        ),
    )


def stubborn(name: str, journal: Path) -> ChildSpec:
    """A child that does not heed SIGTERM."""
    return ChildSpec(
        name,
        python(
            "import signal\n"
            "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
            f"open({str(journal)!r}, 'a').write('{name} started\\n')\n"
            "signal.sigwait([signal.SIGUSR1])\n"
        ),
    )


def has_lines(journal: Path, *lines: str) -> Callable[[], bool]:
    def look() -> bool:
        present = journal.read_text().splitlines() if journal.exists() else []
        return all(line in present for line in lines)

    return look


def test_child_gets_the_environment_it_is_given_and_nothing_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DARKROOM_BUCKET", "of-another-service")
    report = tmp_path / "report"
    source = f"import os; open({str(report)!r}, 'w').write(os.environ.get('DARKROOM_BUCKET', '-'))"
    spec = ChildSpec("api", python(source), {"PATH": os.environ["PATH"]})
    supervisor = Supervisor(
        [spec], logs_dir=tmp_path / "logs", say=lambda _: None, backoff=Backoff(loud_after=99)
    )
    supervisor.start()
    try:
        assert supervisor.run_until(has_lines(report, "-"), LIMIT_SECONDS)
    finally:
        supervisor.drain(LIMIT_SECONDS)


def test_only_the_dispatcher_is_told_of_the_system_role_and_nobody_of_the_superuser() -> None:
    given = {"SYSTEM_DATABASE_URL": "s", "ADMIN_DATABASE_URL": "a", "REDIS_URL": "r"}
    given["DARKROOM_METRICS_PORT"] = "9464"
    specs = child_specs(
        data_dir=Path("/data"),
        host="127.0.0.1",
        port=1,
        api_threads=4,
        inference_workers=2,
        environment=given,
        system_url="system",
    )
    assert len(specs) == 6
    for spec in specs:
        assert spec.environment is not None
        assert spec.environment["REDIS_URL"] == "r"
        assert "ADMIN_DATABASE_URL" not in spec.environment
        has_system = "system" if spec.name == "dispatcher" else None
        assert spec.environment.get("SYSTEM_DATABASE_URL") == has_system
        # Workers stand behind those whose answers people wait for; whoever knows better says so.
        niceness = "10" if spec.is_worker else None
        assert spec.environment.get("DARKROOM_NICENESS") == niceness
        # Who came first would have the port; the dispatcher's gauges tell of the whole service.
        metrics_port = "0" if spec.is_worker else "9464"
        assert spec.environment.get("DARKROOM_METRICS_PORT") == metrics_port


def test_killed_child_is_named_and_started_again(tmp_path: Path) -> None:
    journal, lines = tmp_path / "journal", list[str]()
    supervisor = Supervisor(
        [obedient("worker-1", journal)], logs_dir=tmp_path / "logs", say=lines.append, backoff=QUICK
    )
    supervisor.start()
    try:
        assert supervisor.run_until(has_lines(journal, "worker-1 started"), LIMIT_SECONDS)
        first = supervisor.pids()["worker-1"]
        os.kill(first, signal.SIGKILL)
        assert supervisor.run_until(lambda: any("again" in line for line in lines), LIMIT_SECONDS)
        second = supervisor.pids()["worker-1"]
    finally:
        supervisor.drain(LIMIT_SECONDS)
    assert second != first
    assert lines == [
        "worker-1 was killed by SIGKILL.",
        f"worker-1 was started again (pid {second}).",
    ]


def test_child_that_keeps_dying_is_reported_with_the_end_of_its_log(tmp_path: Path) -> None:
    lines = list[str]()
    supervisor = Supervisor(
        [ChildSpec("api", python("raise SystemExit('no module of that name')"))],
        logs_dir=tmp_path,
        say=lines.append,
        backoff=Backoff(first_seconds=0.01, longest_seconds=0.02),
    )
    supervisor.start()
    with pytest.raises(StackError, match="api does not stay up"):
        supervisor.run_until(lambda: False, LIMIT_SECONDS)
    supervisor.drain(LIMIT_SECONDS)
    assert "api died at once 3 times" in lines[-1]
    assert "no module of that name" in lines[-1]


def test_children_are_told_to_stop_and_waited_for(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    specs = [obedient(name, journal) for name in ("worker-1", "dispatcher", "api")]
    lines = list[str]()
    supervisor = Supervisor(specs, logs_dir=tmp_path / "logs", say=lines.append)
    supervisor.start()
    started = has_lines(journal, *(f"{spec.name} started" for spec in specs))
    assert supervisor.run_until(started, LIMIT_SECONDS)
    supervisor.request_stop()
    supervisor.run()
    supervisor.drain(LIMIT_SECONDS)
    assert supervisor.pids() == {}
    assert has_lines(journal, *(f"{spec.name} stopped" for spec in specs))()
    assert lines == []


def test_child_that_does_not_let_go_is_killed_and_named(tmp_path: Path) -> None:
    journal, lines = tmp_path / "journal", list[str]()
    specs = [stubborn("worker-1", journal), obedient("api", journal)]
    supervisor = Supervisor(specs, logs_dir=tmp_path / "logs", say=lines.append)
    supervisor.start()
    assert supervisor.run_until(has_lines(journal, "worker-1 started", "api started"), 20)
    supervisor.drain(0.5)
    assert lines == ["worker-1 had not let go in time and was killed."]
    assert supervisor.pids() == {}


def test_second_request_to_stop_cuts_the_draining_short(tmp_path: Path) -> None:
    journal, lines = tmp_path / "journal", list[str]()
    supervisor = Supervisor([stubborn("worker-1", journal)], logs_dir=tmp_path, say=lines.append)
    supervisor.start()
    assert supervisor.run_until(has_lines(journal, "worker-1 started"), LIMIT_SECONDS)
    supervisor.request_stop()
    before = signal.signal(signal.SIGALRM, lambda *_: supervisor.request_stop())
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        supervisor.drain(3600)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert lines == ["worker-1 had not let go in time and was killed."]


def test_stop_ends_waiting_for_readiness(tmp_path: Path) -> None:
    supervisor = Supervisor([], logs_dir=tmp_path, say=lambda _: None)
    supervisor.request_stop()
    assert not supervisor.run_until(lambda: False, LIMIT_SECONDS)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of the death")
def test_children_of_a_killed_supervisor_drain_by_themselves_and_hold_the_folder(
    tmp_path: Path,
) -> None:
    journal, release = tmp_path / "journal", tmp_path / "release"
    os.mkfifo(release)
    child = obedient("worker-1", journal, before_exit=f"open({str(release)!r}).read()")
    source = (
        "from pathlib import Path\n"
        "from app.stack.locks import FolderLock\n"
        "from app.stack.supervisor import ChildSpec, Supervisor\n"
        f"folder = Path({str(tmp_path)!r})\n"
        "lock = FolderLock(folder)\n"
        "lock.acquire(patience_seconds=0)\n"
        f"supervisor = Supervisor([ChildSpec('worker-1', {tuple(child.command)!r})],\n"
        "    logs_dir=folder, say=print, keep_open=[lock.shared_descriptor])\n"
        "supervisor.start()\n"
        f"look = lambda: Path({str(journal)!r}).exists()\n"
        "supervisor.run_until(look, 20)\n"
        "print(supervisor.pids()['worker-1'], flush=True)\n"
        "supervisor.run()\n"
    )
    with subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        with pytest.raises(AlreadyRunningError, match=f"already runs on .* \\(pid {parent.pid}\\)"):
            FolderLock(tmp_path).acquire(patience_seconds=0)
        parent.kill()
    # The child got its SIGTERM and lets go of its work; the folder is not free before.
    with pytest.raises(AlreadyRunningError, match="earlier run still work"):
        FolderLock(tmp_path).acquire(patience_seconds=0)
    release.write_text("now")
    assert wait_gone(pid, LIMIT_SECONDS)
    lock = FolderLock(tmp_path)
    lock.acquire(patience_seconds=LIMIT_SECONDS)
    lock.release()
    assert has_lines(journal, "worker-1 stopped")()


@pytest.mark.parametrize(
    ("code", "words"),
    [(0, "ended with code 0"), (3, "ended with code 3"), (-9, "was killed by SIGKILL")],
)
def test_ending_says_how_a_process_ended(code: int, words: str) -> None:
    assert ending(code) == words


def test_backoff_grows_and_is_bounded() -> None:
    delays = [Backoff().delay(deaths) for deaths in range(9)]
    assert delays == [0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
