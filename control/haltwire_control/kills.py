"""The kill state machine: (state, command, now, new id) -> change. All that changes who is killed is here
and, where time alone does it, in lifetimes.py.

Rule 1: a kill is latched; only a resume or its expiry lifts it. Rule 2: a re-kill keeps id, actor and
time of the first and can only strengthen. Rule 3: a resume lifts orders equal to its selector or inside it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from haltwire.wire.messages import Delta
from haltwire.wire.orders import CUT, DRAIN, HOLD, MODES, Kill, lift
from haltwire.wire.selectors import Selector

from haltwire_control.ends import UNKNOWN, Clock, ends_of, united
from haltwire_control.state import (
    Actor,
    Change,
    Lifting,
    NewEvent,
    NotThereError,
    Order,
    State,
    settled,
)

DEFAULT_GRACE_S = 30.0
"How long a drain lets live connections finish when nobody says."
LIFTED_REMEMBERED = 10_000
"Lifted orders kept in memory for proxies that come back: a proxy that missed more has missed days."
_STRENGTHENED = ("mode", "expires_at", "grace_s", "hold_until", "excepted")


@dataclass(frozen=True, slots=True)
class Issue:
    """Stop all that the selector matches."""

    selector: Selector
    actor: Actor
    reason: str | None = None
    mode: str = CUT
    grace_s: float | None = None
    "Of a drain; DEFAULT_GRACE_S when None."
    ttl_s: float | None = None
    "When it lifts itself; None is never."
    hold_limit_s: float | None = None
    "When a hold becomes a cut; None is never."


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


def issue(
    state: State, command: Issue, now: datetime, kill_id: str, clock: Clock = UNKNOWN
) -> Change[Issued]:
    """Put an order in force, or strengthen the one that this selector already has.

    `clock`: the steady one, at `now`; where it is unknown the wall clock alone says when the order ends.
    """
    standing = next((o for o in state.orders if o.kill.selector == command.selector), None)
    revision = state.revision + 1
    wanted = demanded(command, now, kill_id, revision)
    ends = ends_of(wanted, now, clock)
    if standing is None:
        order = Order(wanted, command.actor.actor_id, revision, ends=ends)
        event = issued_event(order, now, command.actor, command.reason)
        return Change(
            replace(state, revision=revision, orders=(*state.orders, order)),
            Issued(order, False),
            put=(order,),
            events=(event,),
            delta=Delta(state.revision, revision, kills=(order.kill,)),
        )
    kill = strengthened(standing.kill, wanted)
    known = clock.shares(standing.ends.boot_id)
    before = standing.ends if known else ends_of(standing.kill, now, clock)
    order = replace(standing, kill=kill, ends=united(before, ends, kill))
    if kill == standing.kill:
        event = issued_event(standing, now, command.actor, command.reason, standing)
        if order == standing:
            return Change(state, Issued(standing, True), events=(event,))
        # The wall clock was set since: by the steady one it lasts longer. That is nothing to a proxy.
        orders = tuple(order if other is standing else other for other in state.orders)
        return Change(
            replace(state, orders=orders), Issued(order, True), put=(order,), events=(event,)
        )
    order = replace(order, changed_revision=revision)
    event = issued_event(order, now, command.actor, command.reason, standing)
    return replaced(state, standing, order, Issued(order, True), event)


def demanded(command: Issue, now: datetime, kill_id: str, revision: int) -> Kill:
    """The order that a command asks for, whatever is in force already."""
    grace_s = DEFAULT_GRACE_S if command.grace_s is None else command.grace_s
    return Kill(
        kill_id,
        command.selector,
        command.mode,
        command.reason,
        command.actor.name,
        now,
        revision,
        expires_at=_after(now, command.ttl_s),
        grace_s=grace_s if command.mode == DRAIN else None,
        hold_until=_after(now, command.hold_limit_s) if command.mode == HOLD else None,
    )


def strengthened(standing: Kill, wanted: Kill) -> Kill:
    """The order that stops all that either stops, at least as hard and as long as either does."""
    mode = max(standing.mode, wanted.mode, key=_strength)
    same = [kill for kill in (standing, wanted) if kill.mode == mode]
    expiries = [kill.expires_at for kill in (standing, wanted) if kill.expires_at is not None]
    graces = [kill.grace_s for kill in same if kill.grace_s is not None]
    limits = [kill.hold_until for kill in same if kill.hold_until is not None]
    return replace(
        standing,
        mode=mode,
        expires_at=max(expiries) if len(expiries) == 2 else None,
        grace_s=min(graces, default=None) if mode == DRAIN else None,
        hold_until=min(limits, default=None) if mode == HOLD else None,
        excepted=(),
    )


def replaced[T](state: State, old: Order, new: Order, outcome: T, event: NewEvent) -> Change[T]:
    """One more revision, in which an order in force has become another one of the same id."""
    revision = state.revision + 1
    orders = tuple(new if order is old else order for order in state.orders)
    return Change(
        replace(state, revision=revision, orders=orders),
        outcome,
        put=(new,),
        events=(event,),
        delta=Delta(state.revision, revision, kills=(new.kill,)),
    )


def issued_event(
    order: Order, now: datetime, actor: Actor, reason: str | None, before: Order | None = None
) -> NewEvent:
    """The order as it stands now and, when it stood `before`, what of it has changed."""
    kill = order.kill
    details: dict[str, object] = {
        "kill_id": kill.kill_id,
        "mode": kill.mode,
        "expires_at": kill.expires_at,
        "grace_s": kill.grace_s,
        "hold_until": kill.hold_until,
        "revision": order.changed_revision,
    }
    if before is not None:
        changed = [n for n in _STRENGTHENED if getattr(kill, n) != getattr(before.kill, n)]
        details |= {"repeated": True, "strengthened": bool(changed), "changed": changed}
    return NewEvent("kill.issued", now, actor, kill.selector, reason, details, (kill.kill_id,))


def resume(state: State, command: Resume, now: datetime) -> Change[Resumed]:
    """Lift what the command names; say which orders still stop some of it."""
    settled(state)
    selector = _resumed_selector(state, command)
    found = lift(state.kills, selector, command.kill_id)
    gone = {kill.kill_id for kill in found.lifted}
    return _lift(state, command, now, selector, gone)


def withdraw(state: State, command: Resume, now: datetime) -> Change[Resumed]:
    """Like `resume`, but lifts only orders that were never stored: all that can be done without a store."""
    settled(state)
    selector = _resumed_selector(state, command)
    found = lift(state.kills, selector, command.kill_id)
    gone = {kill.kill_id for kill in found.lifted} & state.volatile
    return _lift(state, replace(command, carve_out=False), now, selector, gone)


def done_before(state: State, command: Resume, revision: int) -> Change[Resumed]:
    """What a resume did when it was done with this revision, as far as it is remembered; nothing changes."""
    selector = _resumed_selector(state, command)
    lifted = tuple(o.kill for o in state.lifted if o.lifted and o.lifted.revision == revision)
    return Change(state, Resumed(selector, lifted, (), still_stopping(state.orders, selector)))


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
    still = still_stopping(kept, selector)
    outcome = Resumed(selector, tuple(o.kill for o in lifted), tuple(o.kill for o in carved), still)
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
            "still_killed_by": [kill.kill_id for kill in still],
            "revision": revision if changed else state.revision,
        },
        tuple(kill.kill_id for kill in (*outcome.lifted, *outcome.carved)),
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


def still_stopping(orders: Iterable[Order], selector: Selector) -> tuple[Kill, ...]:
    """The orders of these that stop some of the selector, oldest first."""
    found = lift((order.kill for order in orders), selector)
    # Those inside the selector count as "lifted" by that question: they are asked about, and stay.
    both = (*found.lifted, *found.still_killed_by)
    return tuple(sorted(both, key=lambda kill: (kill.revision, kill.kill_id)))


def _can_carve(kill: Kill, selector: Selector) -> bool:
    return kill.selector.covers(selector) and not any(e.covers(selector) for e in kill.excepted)


def _carve(kill: Kill, selector: Selector) -> Kill:
    kept = tuple(e for e in kill.excepted if not selector.covers(e))
    return replace(kill, excepted=(*kept, selector))


def _strength(mode: str) -> int:
    # A mode of a later day is enforced as a cut.
    return MODES.index(mode) if mode in MODES else MODES.index(CUT)


def _after(now: datetime, seconds: float | None) -> datetime | None:
    return None if seconds is None else now + timedelta(seconds=seconds)
