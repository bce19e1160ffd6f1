"""What tenants were served: charged when jobs are claimed, corrected to what was measured when their attempts end.

Each function works inside the transaction of a transition, after its books were moved (`shared.counters`): rows of
`service` and `lanes` are the last that it locks. What the figures mean stands in `shared.scheduling`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from sqlalchemy import Connection, Double, and_, bindparam, case, func, select, update

from shared.counters import upsert
from shared.database import now
from shared.scheduling import Standing
from shared.tables import lanes, service


class Charged(Protocol):
    """A job row, as the transitions return it."""

    id: str
    tenant_id: str
    lane_id: int
    priority: int
    cost: float


def charge(
    connection: Connection, lane_id: int, queue: str, priority: int, costs: Mapping[str, float], seen: Standing | None
) -> None:
    """Jobs of one lane are claimed: tenants are charged `costs`, in estimated seconds.

    `seen` is what the choice was made by: whoever has come back is lifted to where it counted from, and whoever has
    nothing ready any more is marked. Without it, tenants are only charged.
    """
    back = seen.back if seen is not None else frozenset()
    floor = seen.floor if seen is not None else 0.0
    rows = [
        {"tenant_id": tenant, "claimed_s": costs.get(tenant, 0.0), "served_s": floor if tenant in back else 0.0}
        for tenant in sorted(costs.keys() | back)
    ]
    statement = upsert(connection)(service).values(queue=queue, priority=priority, active=True)
    new = statement.excluded
    connection.execute(
        statement.on_conflict_do_update(
            index_elements=["queue", "priority", "tenant_id"],
            set_={
                "claimed_s": service.c.claimed_s + new.claimed_s,
                "served_s": case((service.c.served_s < new.served_s, new.served_s), else_=service.c.served_s),
                "active": True,
            },
        ),
        rows,
    )
    if seen is not None and seen.gone:
        _leave(connection, queue, priority, sorted(seen.gone))
    connection.execute(update(lanes).where(lanes.c.id == lane_id).values(claimed_at=now()))


def _leave(connection: Connection, queue: str, priority: int, tenants: list[str]) -> None:
    """Whoever is just being charged elsewhere is there still: rows that are locked are passed by."""
    c = service.c
    idle = and_(c.queue == queue, c.priority == priority, c.tenant_id.in_(tenants), c.active)
    if connection.dialect.name != "sqlite":
        locked = select(c.tenant_id).where(idle).with_for_update(skip_locked=True)
        idle = and_(idle, c.tenant_id.in_(list(connection.scalars(locked))))
    connection.execute(update(service).where(idle).values(active=False))


def correct(connection: Connection, rows: Iterable[Charged], spent: Mapping[str, float]) -> None:
    """Attempts have ended: what was charged for each becomes the device seconds that it took, by job id.

    A job that is not in `spent` took none: nothing is owed for what never ran.
    """
    sums: dict[tuple[int, str, int], list[float]] = {}
    for row in rows:
        entry = sums.setdefault((row.priority, row.tenant_id, row.lane_id), [0.0, 0.0])
        entry[0] += row.cost
        entry[1] += spent.get(row.id, 0.0)
    if sums:
        connection.execute(_CORRECTION, [_correction(*key, *entry) for key, entry in sorted(sums.items())])


def _correction(priority: int, tenant: str, lane_id: int, claimed: float, spent: float) -> dict[str, Any]:
    return {"of_lane": lane_id, "at": priority, "whose": tenant, "claimed": claimed, "spent": spent}


_claimed = bindparam("claimed", type_=Double)
# Sums of fractions do not come out even: what is left of them is nothing.
_CORRECTION = (
    update(service)
    .where(
        service.c.queue == select(lanes.c.queue).where(lanes.c.id == bindparam("of_lane")).scalar_subquery(),
        service.c.priority == bindparam("at"),
        service.c.tenant_id == bindparam("whose"),
    )
    .values(
        served_s=service.c.served_s + bindparam("spent", type_=Double),
        claimed_s=case((service.c.claimed_s - _claimed > 1e-9, service.c.claimed_s - _claimed), else_=0.0),
    )
)


def most_served(connection: Connection, queue: str, priority: int) -> float:
    """The highest virtual service that any tenant has here; 0 where nobody was ever served."""
    c = service.c
    most = select(func.max(c.served_s + c.claimed_s)).where(c.queue == queue, c.priority == priority)
    return float(connection.scalar(most) or 0.0)
