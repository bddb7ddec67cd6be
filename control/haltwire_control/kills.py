"""The kill state machine: (state, command, now, new id) -> change. All that changes who is killed is here.

Rule 1: a kill is latched; only a resume lifts it. Rule 2: a re-kill keeps id, actor and time of the
first and can only strengthen. Rule 3: a resume lifts orders equal to its selector or inside it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime

from haltwire.wire.messages import Delta
from haltwire.wire.orders import CUT, Kill, lift
from haltwire.wire.selectors import Selector

from haltwire_control.state import Actor, Change, Lifting, NewEvent, NotThereError, Order, State

LIFTED_REMEMBERED = 10_000
"Lifted orders kept in memory for proxies that come back: a proxy that missed more has missed days."


@dataclass(frozen=True, slots=True)
class Issue:
    """Stop all that the selector matches."""

    selector: Selector
    actor: Actor
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Issued:
    """The order in force after an Issue."""

    order: Order
    repeated: bool
    "The selector was already killed."


@dataclass(frozen=True, slots=True)
class Resume:
    """Lift the orders inside a selector, or the one order `kill_id`."""

    actor: Actor
    selector: Selector | None = None
    kill_id: str | None = None
    carve_out: bool = False
    "Also except the selector from wider orders."
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Resumed:
    """What a Resume did."""

    selector: Selector
    lifted: tuple[Kill, ...]
    carved: tuple[Kill, ...]
    still_killed_by: tuple[Kill, ...]


def issue(state: State, command: Issue, now: datetime, kill_id: str) -> Change[Issued]:
    """Put an order in force, or strengthen the one that this selector already has."""
    standing = next((o for o in state.orders if o.kill.selector == command.selector), None)
    revision = state.revision + 1
    if standing is None:
        kill = Kill(
            kill_id, command.selector, CUT, command.reason, command.actor.name, now, revision
        )
        order = Order(kill, command.actor.actor_id, revision)
        orders = (*state.orders, order)
        changed = True
    else:
        changed = bool(standing.kill.excepted)
        order = (
            replace(standing, kill=replace(standing.kill, excepted=()), changed_revision=revision)
            if changed
            else standing
        )
        orders = tuple(order if o is standing else o for o in state.orders)
    details: dict[str, object] = {"kill_id": order.kill.kill_id, "mode": order.kill.mode}
    if standing is not None:
        details |= {"repeated": True, "strengthened": changed}
    details["revision"] = revision if changed else state.revision
    event = NewEvent("kill.issued", now, command.actor, command.selector, command.reason, details)
    outcome = Issued(order, standing is not None)
    if not changed:
        return Change(state, outcome, events=(event,))
    return Change(
        replace(state, revision=revision, orders=orders),
        outcome,
        put=(order,),
        events=(event,),
        delta=Delta(state.revision, revision, kills=(order.kill,)),
    )


def resume(state: State, command: Resume, now: datetime) -> Change[Resumed]:
    """Lift what the command names; say which orders still stop some of it."""
    selector = _resumed_selector(state, command)
    found = lift(state.kills, selector, command.kill_id)
    gone = {kill.kill_id for kill in found.lifted}
    return _lift(state, command, now, selector, gone)


def withdraw(state: State, command: Resume, now: datetime) -> Change[Resumed]:
    """Like `resume`, but lifts only orders that were never stored: all that can be done without a store."""
    selector = _resumed_selector(state, command)
    found = lift(state.kills, selector, command.kill_id)
    gone = {kill.kill_id for kill in found.lifted} & state.volatile
    return _lift(state, replace(command, carve_out=False), now, selector, gone)


def _resumed_selector(state: State, command: Resume) -> Selector:
    if command.kill_id is None:
        if command.selector is None:
            raise ValueError("a resume names a selector or a kill")
        return command.selector
    for order in (*state.orders, *reversed(state.lifted)):
        if order.kill.kill_id == command.kill_id:
            return order.kill.selector
    raise NotThereError(f"there is no kill {command.kill_id}")


def _lift(
    state: State, command: Resume, now: datetime, selector: Selector, gone: set[str]
) -> Change[Resumed]:
    revision = state.revision + 1
    ending = Lifting(revision, now, command.actor.name, command.reason)
    lifted = tuple(
        replace(order, lifted=ending) for order in state.orders if order.kill.kill_id in gone
    )
    kept: list[Order] = []
    carved: list[Order] = []
    for order in state.orders:
        if order.kill.kill_id in gone:
            continue
        if command.carve_out and _can_carve(order.kill, selector):
            narrower = _carve(order.kill, selector)
            carved.append(replace(order, kill=narrower, changed_revision=revision))
            kept.append(carved[-1])
        else:
            kept.append(order)
    still = lift((order.kill for order in kept), selector)
    # Orders inside the selector are "lifted" by that question only when `gone` left them out.
    still_kills = tuple(
        sorted((*still.lifted, *still.still_killed_by), key=lambda k: (k.revision, k.kill_id))
    )
    outcome = Resumed(
        selector, tuple(o.kill for o in lifted), tuple(o.kill for o in carved), still_kills
    )
    changed = bool(lifted or carved)
    event = NewEvent(
        "resume.issued",
        now,
        command.actor,
        selector,
        command.reason,
        {
            "lifted": [kill.kill_id for kill in outcome.lifted],
            "carved_out_of": [kill.kill_id for kill in outcome.carved],
            "still_killed_by": [kill.kill_id for kill in still_kills],
            "revision": revision if changed else state.revision,
        },
    )
    if not changed:
        return Change(state, outcome, events=(event,))
    return Change(
        replace(
            state,
            revision=revision,
            orders=tuple(kept),
            lifted=(*state.lifted, *lifted)[-LIFTED_REMEMBERED:],
            volatile=state.volatile - gone,
        ),
        outcome,
        put=(*lifted, *carved),
        events=(event,),
        delta=Delta(
            state.revision,
            revision,
            kills=outcome.carved,
            lifted=tuple(k.kill_id for k in outcome.lifted),
        ),
    )


def _can_carve(kill: Kill, selector: Selector) -> bool:
    return kill.selector.covers(selector) and not any(e.covers(selector) for e in kill.excepted)


def _carve(kill: Kill, selector: Selector) -> Kill:
    kept = tuple(e for e in kill.excepted if not selector.covers(e))
    return replace(kill, excepted=(*kept, selector))
