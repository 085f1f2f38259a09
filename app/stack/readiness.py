"""When `darkroom up` may say that it is ready."""

from __future__ import annotations

import http.client
import socket
from dataclasses import dataclass, field

from sqlalchemy import select

from app.clock import monotonic_seconds
from app.db.session import Database
from app.jobs.tables import WorkerRow
from app.stack.supervisor import Supervisor

#: On a busy machine the networks' library loads for long; jobs are taken before it has.
WORKERS_SECONDS = 10.0


@dataclass(slots=True)
class Readiness:
    """What readiness waits for: the API first, then for a while the workers."""

    host: str
    port: int
    began: float
    loading: list[str] = field(default_factory=list)

    def is_over(self, db: Database, supervisor: Supervisor) -> bool:
        """Whether a job can be handed over; ``loading`` names workers that it would wait for."""
        if not api_answers(self.host, self.port):
            return False
        self.loading = not_serving(db, supervisor)
        return not self.loading or monotonic_seconds() - self.began > WORKERS_SECONDS


def visible_host(host: str) -> str:
    """An address that a client on this machine can connect to."""
    if host in ("0.0.0.0", "::", ""):  # noqa: S104 - compared, not bound
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host


def api_answers(host: str, port: int) -> bool:
    """Whether the API says that it is ready: it, the database and the object store answer."""
    connection = http.client.HTTPConnection(host.strip("[]"), port, timeout=5)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def not_serving(db: Database, supervisor: Supervisor) -> list[str]:
    """Names of the workers that have not registered yet; none: a job submitted now starts now."""
    names = supervisor.worker_names
    if not names:
        return []
    pids = supervisor.pids()
    with db.system() as session:
        known = session.scalars(
            select(WorkerRow.pid).where(
                WorkerRow.host == socket.gethostname(), WorkerRow.gone_at.is_(None)
            )
        ).all()
    return [name for name in names if pids.get(name) not in known]
