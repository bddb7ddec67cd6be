"""What time alone does to orders: an expiry lifts one, the limit of a hold makes it a cut. Pure steps.

Both are told what was due. An order that has changed since then is left as it is: a re-kill that made
it last must not lose to a clock that had already struck.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime

from haltwire.wire.messages import Delta
from haltwire.wire.orders import CUT, HOLD

from haltwire_control.kills import (
    LIFTED_REMEMBERED,
    Resumed,
    issued_event,
    replaced,
    still_stopping,
)
from haltwire_control.state import EXPIRY, HOLD_LIMIT, Change, Lifting, NewEvent, Order, State

EXPIRED = "expired"
"The reason of a lifting by expiry."


@dataclass(frozen=True, slots=True)
class Due:
    """A time of an order that has come."""

    kill_id: str
    at: datetime
    "Its `expires_at`, or its `hold_until`."
    steady: float | None = None
    "The same on the steady clock, as it is kept with the order."


def expire(state: State, due: Due, now: datetime) -> Change[Resumed | None]:
    """Lift the order whose expiry is due."""
    order = _find(state, due.kill_id)
    if order is None or (order.kill.expires_at, order.ends.expires) != (due.at, due.steady):
        return Change(state, None)
    kill, revision = order.kill, state.revision + 1
    lifted = replace(order, lifted=Lifting(revision, now, EXPIRY.name, EXPIRED))
    kept = tuple(other for other in state.orders if other is not order)
    outcome = Resumed(kill.selector, (kill,), (), still_stopping(kept, kill.selector))
    details = {
        "kill_id": kill.kill_id,
        "mode": kill.mode,
        "expires_at": kill.expires_at,
        "still_killed_by": [other.kill_id for other in outcome.still_killed_by],
        "revision": revision,
    }
    event = NewEvent(
        "kill.expired", now, EXPIRY, kill.selector, EXPIRED, details, kills=(kill.kill_id,)
    )
    return Change(
        replace(
            state,
            revision=revision,
            orders=kept,
            lifted=(*state.lifted, lifted)[-LIFTED_REMEMBERED:],
            volatile=state.volatile - {kill.kill_id},
        ),
        outcome,
        put=(lifted,),
        events=(event,),
        delta=Delta(state.revision, revision, lifted=(kill.kill_id,)),
    )


def harden(state: State, due: Due, now: datetime) -> Change[Order | None]:
    """Make the hold whose limit is due a cut. It keeps its id, first actor, time and expiry."""
    order = _find(state, due.kill_id)
    if order is None or order.kill.mode != HOLD:
        return Change(state, None)
    if (order.kill.hold_until, order.ends.hardens) != (due.at, due.steady):
        return Change(state, None)
    kill = replace(order.kill, mode=CUT, hold_until=None)
    harder = replace(order, kill=kill, changed_revision=state.revision + 1)
    event = issued_event(harder, now, HOLD_LIMIT, None, before=order)
    return replaced(state, order, harder, harder, event)


def _find(state: State, kill_id: str) -> Order | None:
    return next((order for order in state.orders if order.kill.kill_id == kill_id), None)
