"""What people write about a kill afterwards. A pure step; it stops and lifts nothing."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from haltwire_control.kills import replaced
from haltwire_control.state import Actor, Change, NewEvent, Note, NotThereError, Order, State

REASON_LENGTH = 1000
"As much of a note as a reason may hold."


def note(
    state: State,
    kill_id: str,
    text: str,
    actor: Actor,
    now: datetime,
    remembered: Order | None = None,
) -> Change[Note]:
    """Keep a note; it becomes the reason of a kill that has none.

    `remembered`: the order as stored, for one that was lifted too long ago to be in the state.
    NotThereError when there is no such kill.
    """
    order = next(
        (o for o in (*state.orders, *reversed(state.lifted)) if o.kill.kill_id == kill_id), None
    )
    if order is None and remembered is not None and remembered.lifted is not None:
        order = remembered
    if order is None:
        raise NotThereError(f"there is no kill {kill_id}")
    kept = Note(kill_id, now, actor.name, text)
    event = NewEvent(
        "kill.noted", now, actor, order.kill.selector, text, {"kill_id": kill_id}, kills=(kill_id,)
    )
    if order.kill.reason:
        return Change(state, kept, put=(kept,), events=(event,))
    # `changed_revision` stays: what the order stops is the same, so its proof is, too.
    told = replace(order, kill=replace(order.kill, reason=text[:REASON_LENGTH]))
    if order.lifted is None:
        change = replaced(state, order, told, kept, event)
        return replace(change, put=(told, kept))
    lifted = tuple(told if other is order else other for other in state.lifted)
    return Change(replace(state, lifted=lifted), kept, put=(told, kept), events=(event,))
