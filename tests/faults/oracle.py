"""Whether the promise was kept, asked of the database when the faults are over.

After 202 every item reaches exactly one terminal state with exactly one stored result. The
oracle knows what was accepted (the client's journal) and what the answers must be (the images'
bytes); everything else it reads by SQL across all tenants.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import bindparam, text
from sqlalchemy.orm import Session

from app.db.session import Database
from app.jobs.states import TERMINAL_JOB_STATES, JobState
from tests.faults.images import expected_classes
from tests.faults.library import Picture

#: A breach is told with at most so many of its rows.
_SHOWN = 5

SUCCEEDED = frozenset({JobState.SUCCEEDED})


@dataclass(frozen=True, slots=True)
class Accepted:
    """A job that was answered with 202, and what must become of it."""

    job_id: str
    tenant_id: str
    #: The manifest: (custom_id, the ends that are right), in the order of the input. An end is
    #: an error code after ``!``, or the classes of the prediction.
    items: Sequence[tuple[str, frozenset[str]]]
    ends: frozenset[JobState] = SUCCEEDED

    @property
    def may_stop_early(self) -> bool:
        """Whether items may be left untouched: told to stop, or out of time."""
        return bool(self.ends & {JobState.CANCELLED, JobState.EXPIRED})


def right_ends(pictures: Sequence[Picture]) -> list[tuple[str, frozenset[str]]]:
    """The manifest of images of which each must be recognised."""
    return [(one.custom_id, frozenset({answer_of(one.data)})) for one in pictures]


def answer_of(data: bytes) -> str:
    """The one right answer to these bytes."""
    return " ".join(expected_classes(data))


@dataclass(slots=True)
class Verdict:
    """What was found; the breaches say where to look."""

    jobs: int = 0
    items: int = 0
    #: Items without a result.
    lost: int = 0
    #: Results beyond the first of an item, and jobs that nobody was told of.
    twice: int = 0
    #: Jobs that did not close, or closed more than once.
    closed_wrong: int = 0
    closings: int = 0
    breaches: list[str] = field(default_factory=list)

    @property
    def is_kept(self) -> bool:
        """Whether everything is as promised."""
        return not (self.breaches or self.lost or self.twice or self.closed_wrong)

    def add(self, other: Verdict) -> None:
        """Take another one's findings in."""
        for name in ("jobs", "items", "lost", "twice", "closed_wrong", "closings"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.breaches += other.breaches


def judge(db: Database, accepted: Sequence[Accepted]) -> Verdict:
    """Hold the database against the journal; reads only."""
    verdict = Verdict()
    with db.system() as session:
        for job in accepted:
            _Judge(session, job, verdict).judge()
        _judge_strangers(session, accepted, verdict)
    return verdict


class _Judge:
    """One job's questions."""

    def __init__(self, session: Session, accepted: Accepted, verdict: Verdict) -> None:
        self._session = session
        self._accepted = accepted
        self._verdict = verdict

    def judge(self) -> None:
        verdict, accepted = self._verdict, self._accepted
        verdict.jobs += 1
        verdict.items += len(accepted.items)
        job = self._session.execute(
            text("SELECT * FROM jobs WHERE id = :job"), {"job": accepted.job_id}
        ).one_or_none()
        if job is None:
            verdict.lost += len(accepted.items)
            verdict.closed_wrong += 1
            self._breach("was accepted and is not there")
            return
        self._judge_closing(job)
        items = self._rows(
            "SELECT ordinal, tenant_id, attempt, custom_id, state, prediction, error "
            "FROM items WHERE job_id = :job ORDER BY ordinal"
        )
        self._judge_items(job, items)
        self._judge_answers(items)
        self._judge_counters(job, items)
        self._judge_fences()
        self._judge_events(job)

    def _judge_closing(self, job: Any) -> None:
        if job.tenant_id != self._accepted.tenant_id:
            self._breach(f"belongs to {job.tenant_id}")
        ends = [
            row
            for row in self._rows("SELECT was, state FROM audit.jobs WHERE job_id = :job")
            if row.state in TERMINAL_JOB_STATES
        ]
        self._verdict.closings += len(ends)
        if len(ends) != 1 or job.state not in TERMINAL_JOB_STATES:
            self._verdict.closed_wrong += 1
            self._breach(f"is {job.state} after {len(ends)} closings", ends)
        elif job.state not in self._accepted.ends:
            self._verdict.closed_wrong += 1
            self._breach(f"ended {job.state}: {job.error}")
        open_chunks = self._rows(
            "SELECT id, state, lo, hi, attempt, kills, lease_until FROM chunks "
            "WHERE job_id = :job AND state IN ('pending', 'running')"
        )
        if open_chunks:
            self._breach("has open chunks after its end", open_chunks)
        foreign = self._rows(
            "SELECT id, tenant_id FROM chunks "
            "WHERE job_id = :job AND tenant_id <> (SELECT tenant_id FROM jobs WHERE id = :job)"
        )
        if foreign:
            self._breach("has chunks of another tenant", foreign)

    def _judge_items(self, job: Any, items: Sequence[Any]) -> None:
        verdict, accepted = self._verdict, self._accepted
        found = Counter(item.custom_id for item in items)
        wanted = Counter(custom_id for custom_id, _ in accepted.items)
        missing, surplus = wanted - found, found - wanted
        if missing and not accepted.may_stop_early:
            verdict.lost += missing.total()
            self._breach(f"lacks {missing.total()} items", list(missing))
        if surplus:
            verdict.twice += surplus.total()
            self._breach(f"has {surplus.total()} results too many", list(surplus))
        strays = [
            item
            for item in items
            if item.ordinal >= len(accepted.items)
            or accepted.items[item.ordinal][0] != item.custom_id
        ]
        if strays:
            self._breach("has items that stand elsewhere in the manifest", strays)
        foreign = [item for item in items if item.tenant_id != job.tenant_id]
        if foreign:
            self._breach("has items of another tenant", foreign)
        undone = self._rows("SELECT what, rows FROM audit.undone WHERE job_id = :job")
        if undone:
            self._breach("had items changed or deleted after they were written", undone)

    def _judge_answers(self, items: Sequence[Any]) -> None:
        right = dict(self._accepted.items)
        wrong = [item for item in items if _end_of(item) not in right.get(item.custom_id, ())]
        if wrong:
            shown = [
                (item.ordinal, _end_of(item), sorted(right.get(item.custom_id, ())))
                for item in wrong
            ]
            self._breach(f"has {len(wrong)} wrong answers", shown)

    def _judge_counters(self, job: Any, items: Sequence[Any]) -> None:
        counted = Counter(item.state for item in items)
        told = {state: getattr(job, state) for state in ("succeeded", "failed", "skipped")}
        if any(counted[state] != number for state, number in told.items()):
            self._breach(f"counts {told}, but its items are {dict(counted)}")
        ended = sum(told.values()) + job.cancelled + job.expired
        if ended != job.total:
            self._breach(f"has counts that sum to {ended}, and a total of {job.total}")
        if not self._accepted.may_stop_early and job.total != len(self._accepted.items):
            self._breach(f"has a total of {job.total} for {len(self._accepted.items)} items")

    def _judge_fences(self) -> None:
        """Every recording stands beside a move of a chunk by the attempt that held it then."""
        recorded = self._rows(
            """
            SELECT i.transaction, i.attempt, i.rows, c.chunk_id, newer.attempt AS newer
            FROM audit.items i
            LEFT JOIN audit.chunks c ON c.transaction = i.transaction AND c.job_id = i.job_id
                AND c.attempt = i.attempt AND c.was = 'running'
            LEFT JOIN LATERAL (
                SELECT attempt FROM audit.chunks n
                WHERE n.chunk_id = c.chunk_id AND n.id < c.id AND n.attempt > c.attempt LIMIT 1
            ) newer ON true
            WHERE i.job_id = :job AND (c.chunk_id IS NULL OR newer.attempt IS NOT NULL)
            """
        )
        if recorded:
            self._breach("has results of attempts that held no lease", recorded)

    def _judge_events(self, job: Any) -> None:
        """The outbox tells of every recording and of the end, once each and without a hole."""
        events = self._rows("SELECT number, type, data FROM events WHERE job_id = :job ORDER BY 1")
        if [event.number for event in events] != list(range(1, job.event_number + 1)):
            self._breach(f"has {len(events)} events, and {job.event_number} is the last", events)
        recordings = sum(event.type == "job.progress" for event in events)
        if recordings != job.seq:
            self._breach(f"has {recordings} events of {job.seq} recordings")
        ends = [event for event in events if event.type.partition(".")[2] in TERMINAL_JOB_STATES]
        if [event.type for event in ends] != [f"job.{job.state}"] or events[-1] is not ends[0]:
            self._breach(f"is {job.state}, and its events end otherwise", events[-_SHOWN:])
        elif ends[0].data["counts"]["succeeded"] != job.succeeded:
            self._breach("has a last event with other counts", ends)

    def _rows(self, query: str) -> Sequence[Any]:
        return self._session.execute(text(query), {"job": self._accepted.job_id}).all()

    def _breach(self, what: str, rows: Sequence[Any] = ()) -> None:
        shown = "".join(f"\n    {row}" for row in rows[:_SHOWN])
        more = f"\n    … {len(rows) - _SHOWN} more" if len(rows) > _SHOWN else ""
        self._verdict.breaches.append(f"{self._accepted.job_id} {what}{shown}{more}")


def _end_of(item: Any) -> str:
    if item.state == "succeeded":
        return " ".join(name for name, _ in item.prediction or ())
    return f"!{(item.error or {}).get('code')}"


def _judge_strangers(session: Session, accepted: Sequence[Accepted], verdict: Verdict) -> None:
    """Jobs of these tenants that nobody was told of: a submit that took effect twice."""
    known = {job.job_id for job in accepted}
    query = text("SELECT id, tenant_id FROM jobs WHERE tenant_id IN :tenants").bindparams(
        bindparam("tenants", expanding=True)
    )
    rows = session.execute(query, {"tenants": sorted({job.tenant_id for job in accepted})})
    strangers = [row.id for row in rows if row.id not in known]
    if strangers:
        verdict.twice += len(strangers)
        verdict.breaches.append(f"{len(strangers)} jobs that nobody was told of: {strangers}")


def recoveries(db: Database, deaths: Mapping[int, float]) -> list[float]:
    """Seconds from each death to the next claim of what the dead worker had in hand.

    ``deaths`` are moments in seconds since the epoch by pid. Chunks that were never claimed
    again, because their job was told to stop meanwhile, do not count.
    """
    query = text(
        """
        SELECT extract(epoch FROM next.at) - :died AS seconds
        FROM workers w
        CROSS JOIN LATERAL (
            SELECT DISTINCT ON (chunk_id) chunk_id, id, state, attempt, worker_id
            FROM audit.chunks
            WHERE at <= to_timestamp(:died) AND chunk_id IN (
                SELECT chunk_id FROM audit.chunks WHERE worker_id = w.id)
            ORDER BY chunk_id, id DESC
        ) held
        CROSS JOIN LATERAL (
            SELECT at FROM audit.chunks n
            WHERE n.chunk_id = held.chunk_id AND n.attempt > held.attempt
            ORDER BY n.id LIMIT 1
        ) next
        WHERE w.pid = :pid AND w.started_at <= to_timestamp(:died)
            AND held.worker_id = w.id AND held.state = 'running'
        """
    )
    with db.system() as session:
        return [
            float(row.seconds)
            for pid, died in deaths.items()
            for row in session.execute(query, {"pid": pid, "died": died})
        ]
