"""Whose turn it is: the order in which waiting jobs are taken, fair between tenants."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from typing import Any, Literal

from sqlalchemy import ColumnElement, Connection, Select, and_, func, or_, select

from server.jobs.records import Job
from server.jobs.rows import job_of
from server.jobs.schema import JOBS

Condition = ColumnElement[bool]
Turn = Literal["free", "again", "others"]
"""Of jobs that have trained for a while: nobody waits for their place; others wait, and it is the turn of
these again; or it is that of others."""


class Waiting:
    """Jobs that may be taken.

    The next one is the oldest of the tenant that has the fewest running, and among those of the tenant that
    was served longest ago.
    """

    def __init__(
        self, connection: Connection, claimable: Condition, given_back: Collection[str] = ()
    ) -> None:
        """
        Args:
            given_back: ids of running jobs that count as waiting too.
        """
        self._connection = connection
        self._queues: dict[str, list[str]] = {}
        waits = or_(claimable, JOBS.c.id.in_([*given_back]))
        for row in connection.execute(
            select(JOBS.c.id, JOBS.c.tenant).where(waits).order_by(JOBS.c.number.desc())
        ):
            self._queues.setdefault(row.tenant, []).append(row.id)  # the oldest at the end
        runs = and_(JOBS.c.replica != "", JOBS.c.started.is_not(None), JOBS.c.id.not_in([*given_back]))
        held = select(JOBS.c.tenant, func.count()).where(runs)
        self._running = Counter(pairs(connection, held.group_by(JOBS.c.tenant)))
        turns = select(JOBS.c.tenant, func.max(JOBS.c.turn)).where(JOBS.c.tenant.in_(self._queues))
        self._turns = pairs(connection, turns.group_by(JOBS.c.tenant))

    def take(self, accept: Callable[[Job], bool]) -> Job | None:
        """The next one; those that are not accepted are not asked about again."""
        while self._queues:
            tenant = self.tenant
            queue = self._queues[tenant]
            query = select(JOBS).where(JOBS.c.id == queue.pop())
            job = job_of(self._connection.execute(query).mappings().one())
            if not queue:
                del self._queues[tenant]
            if accept(job):
                self._running[tenant] += 1
                return job
        return None

    @property
    def tenants(self) -> set[str]:
        """Those that have some."""
        return {*self._queues}

    @property
    def tenant(self) -> str:
        """Whose turn is next."""
        return min(self._queues, key=lambda name: (self._running[name], self._turns[name], name))


def whose_turn(
    connection: Connection, claimable: Condition, ids: Collection[str], joins: Callable[[Job], bool] | None
) -> Turn:
    """What becomes of the running jobs `ids`, if those that are `claimable` wait.

    Args:
        joins: whether one that waits could train together with them; None: there is no room.
    """
    own = set(connection.execute(select(JOBS.c.tenant).where(JOBS.c.id.in_([*ids]))).scalars())
    waiting = Waiting(connection, claimable, ids)
    strangers = waiting.tenants - own
    if strangers and waiting.tenant not in own:
        return "others"
    if joins is not None:
        found = connection.execute(select(JOBS).where(claimable)).mappings()
        if any(joins(job_of(row)) for row in found):
            return "others"
    return "again" if strangers else "free"


def next_check(connection: Connection, waiting: Condition) -> int | None:
    """The number of the job whose data is looked at next; None if none waits.

    It is the oldest of the tenant that has the fewest looked at now.
    """
    going_on = and_(JOBS.c.status == "validating_files", JOBS.c.replica != "")
    held = pairs(connection, select(JOBS.c.tenant, func.count()).where(going_on).group_by(JOBS.c.tenant))
    oldest = select(JOBS.c.tenant, func.min(JOBS.c.number)).where(waiting).group_by(JOBS.c.tenant)
    turns = [(held.get(tenant, 0), number) for tenant, number in pairs(connection, oldest).items()]
    return min(turns)[1] if turns else None


def pairs(connection: Connection, query: Select[Any]) -> dict[str, int]:
    """Of a query with two columns."""
    return {row[0]: row[1] for row in connection.execute(query)}
