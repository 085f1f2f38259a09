"""Who is served next: deficit round robin over tenants, and inside a tenant over its jobs.

After Shreedhar and Varghese, "Efficient fair queuing using deficit round robin" (1996), twice
nested. Who has waited longest since its last turn is at the head. A turn is worth one quantum,
which is as much as the dearest chunk costs; what a turn leaves over is kept for the next one. A
tenant or job that has nothing more to serve keeps nothing, so nobody saves up while idle.

Pure: no clock, no database. :mod:`app.dispatch.relay` reads the turns and writes them back.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

#: What a turn is worth: a full chunk, about ten seconds of a worker's slot.
QUANTUM = 1000
#: No chunk costs less: its bell, claim and record, and maybe a switch of weights, take time too.
_LEAST_COST = 100
#: One step of priority counts as much as waiting so long, and so does being new: both bring a
#: job of a tenant before its others, and neither can hold these back for ever.
STEP = timedelta(minutes=1)
_TICK = timedelta(microseconds=1)


def cost_of(items: int, full_chunk_items: int) -> int:
    """What a chunk costs, by the time that it is expected to take.

    A chunk of ``full_chunk_items`` takes about ten seconds, whatever the model, because the
    plan cut it so by the model's measured rate. Work without items costs a full chunk.
    """
    if not items:
        return QUANTUM
    return max(_LEAST_COST, min(QUANTUM, QUANTUM * items // full_chunk_items))


@dataclass(frozen=True, slots=True)
class Waiting:
    """A chunk that may be rung now."""

    id: str
    cost: int
    #: Whoever works on it gives its slot back to nobody before its end.
    holds_slot: bool = False


class Turn:
    """Where a tenant or a job stands in its round."""

    def __init__(
        self,
        id: str,  # noqa: A002  (the word for it everywhere)
        since: datetime,
        deficit: int = QUANTUM,
        *,
        lead: timedelta = timedelta(),
    ) -> None:
        self.id = id
        #: Waits since then: its last turn, or its arrival.
        self.since = since
        #: What it may still take before the next one has its turn.
        self.deficit = deficit
        #: Goes before others as if it had waited so much longer.
        self.lead = lead
        #: Whether ``since`` or ``deficit`` differ from what was handed in.
        self.changed = False

    @property
    def place(self) -> tuple[datetime, str]:
        """The least of these is at the head."""
        return self.since - self.lead, self.id

    def charge(self, cost: int) -> None:
        """Pay for a chunk."""
        self.deficit -= cost
        self.changed = True

    def end(self, now: datetime) -> None:
        """Go to the end of the round, with nothing but the quantum of the next turn."""
        self.since, self.deficit, self.changed = now, QUANTUM, True

    def end_if_short(self, cost: int, now: datetime) -> bool:
        """Go to the end of the round where ``cost`` cannot be paid; what is left is kept."""
        left = self.deficit
        if cost > left:
            self.end(now)
            self.deficit += left
        return cost > left


class JobTurn(Turn):
    """A job of a tenant with the chunks that wait in it, in their order."""

    def __init__(
        self,
        id: str,  # noqa: A002
        since: datetime,
        deficit: int = QUANTUM,
        *,
        chunks: Iterator[Waiting],
        priority: int = 0,
    ) -> None:
        super().__init__(id, since, deficit, lead=priority * STEP)
        self._chunks = chunks
        #: The next chunk; None once there is no more.
        self.head = next(chunks, None)

    def step(self) -> None:
        """Go on to the chunk after the head."""
        self.head = next(self._chunks, None)


class TenantTurn(Turn):
    """A tenant with those of its jobs that have something to serve."""

    def __init__(
        self,
        id: str,  # noqa: A002
        since: datetime,
        deficit: int = QUANTUM,
        *,
        jobs: list[JobTurn],
    ) -> None:
        super().__init__(id, since, deficit)
        #: All of them, for the caller to write back.
        self.jobs = jobs
        self._waiting = [job for job in jobs if job.head is not None]

    def head(self) -> tuple[JobTurn, Waiting] | None:
        """The job whose turn it is, and its next chunk; None where nothing waits."""
        self._waiting = [job for job in self._waiting if job.head is not None]
        if not self._waiting:
            return None
        job = min(self._waiting, key=lambda turn: turn.place)
        assert job.head is not None
        return job, job.head

    def pass_over(self, job: JobTurn) -> None:
        """Leave a job out for now; its turn stays as it is."""
        self._waiting.remove(job)


def take_turns(
    tenants: list[TenantTurn], wanted: int, now: datetime, *, most_holding: float = math.inf
) -> list[str]:
    """Choose up to ``wanted`` chunks, in the order to serve them; the turns are moved on.

    ``now`` is what those who end a turn wait from; turns within a call follow each other by a
    microsecond each. Of chunks that hold their slot at most ``most_holding`` are chosen; jobs with
    more of them are passed over and keep their place.
    """
    chosen: list[str] = []
    held = 0
    waiting = list(tenants)
    while waiting and len(chosen) < wanted:
        tenant = min(waiting, key=lambda turn: turn.place)
        head = tenant.head()
        if head is None:
            waiting.remove(tenant)
            continue
        job, chunk = head
        if chunk.holds_slot and held >= most_holding:
            tenant.pass_over(job)
            continue
        now += _TICK
        if job.end_if_short(chunk.cost, now) or tenant.end_if_short(chunk.cost, now):
            continue
        chosen.append(chunk.id)
        held += chunk.holds_slot
        job.charge(chunk.cost)
        tenant.charge(chunk.cost)
        job.step()
        _end_spent_turns(tenant, job, now)
    return chosen


def _end_spent_turns(tenant: TenantTurn, job: JobTurn, now: datetime) -> None:
    """End the turns that can pay no further chunk.

    At once and not when they are at the head again: whoever waits can pay then, so a caller
    needs to look at no more tenants, and no more jobs of one, than it wants chunks.
    """
    if job.head is None:
        job.end(now)
    else:
        job.end_if_short(job.head.cost, now)
    head = tenant.head()
    if head is None:
        tenant.end(now)
    else:
        tenant.end_if_short(head[1].cost, now)
