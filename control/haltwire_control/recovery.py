"""What becomes of a store that lacks what it once had: a restored backup, a lost log. Pure steps.

Nothing is ever let go on by that. The orders that proxies enforce and the store does not know are taken
over, those that both have stop what either stopped, tokens that may have been revoked are withheld, and
until an admin accepts the result nothing is resumed and no token is made.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime

from haltwire.wire.messages import Delta, Hello
from haltwire.wire.orders import CUT, MODES, Kill

from haltwire_control.kills import strengthened
from haltwire_control.state import (
    Actor,
    Change,
    ConflictError,
    NewEvent,
    Note,
    NotThereError,
    Order,
    Recovery,
    State,
)

RECOVERY = Actor("system:recovery")
TAKEN_MOST = 10_000
"Orders that one recovery takes over: a proxy's key must not be able to fill the store."
NAMED_MOST = 100
"Ids that an event names one by one; it counts the others, and the recovery lists them."
AHEAD = (
    "the store lacks what a proxy has applied: it was restored from a backup, or has lost changes"
)
CUT_SHORT = "the database was found without the log that belongs to it: its latest changes are lost"
_KILL_ID = re.compile(r"K[0-9A-Z]{1,31}")


class TooMuchError(Exception):
    """A proxy says more than any store can have lost: it is not let in."""


def is_ahead(state: State, said: Hello, stored_hash: str | None) -> bool:
    """Whether a proxy of this very epoch has applied what is not in the store.

    `stored_hash`: of the revision that it names, None when the store has none by that number.
    """
    if said.epoch != state.epoch:
        return False
    other = said.head_hash is not None and said.head_hash != stored_hash
    return said.revision > state.revision or other


def unknown_orders(state: State, said: Hello, stored: Iterable[str] = ()) -> tuple[Kill, ...]:
    """The orders that a proxy enforces and of which the store has never heard; `stored`: ids that it has."""
    known = {order.kill.kill_id for order in (*state.orders, *state.lifted)}.union(stored)
    return tuple({k.kill_id: k for k in said.orders if k.kill_id not in known}.values())


def may_add(state: State, said: Hello) -> bool:
    """Whether a proxy of another epoch may know harder forms of our orders.

    It does while a recovery waits, when nothing can be carved. Later an order may have been carved since
    then, which is not to be undone.
    """
    return state.recovery is not None and said.epoch not in (None, state.epoch)


def unite(
    state: State,
    said: Hello,
    is_other: bool,
    stored: frozenset[str],
    names: tuple[str, str],
    now: datetime,
) -> Change[Recovery | None]:
    """Take over what a proxy knows and the store does not; None when that is nothing.

    `is_other`: the store has something else under the proxy's revision. `names`: ids for a new epoch and
    a new recovery. TooMuchError when it is more than a store can have lost.
    """
    same_epoch = said.epoch == state.epoch
    beyond = same_epoch and said.revision > state.revision
    ahead = beyond or (same_epoch and is_other)
    fresh = unknown_orders(state, said, stored)
    pending = state.recovery
    revision = state.revision + 1
    theirs = {kill.kill_id: kill for kill in said.orders}
    harder: list[Order] = []
    if ahead or may_add(state, said):
        harder = [
            replace(order, kill=kill, changed_revision=revision)
            for order in state.orders
            if (kill := _either(order.kill, theirs.get(order.kill.kill_id))) != order.kill
        ]
    if not (ahead or fresh or harder):
        return Change(state, None)
    _check(fresh, pending)
    taken = tuple(Order(_plain(kill), None, revision) for kill in fresh)
    changed = {order.kill.kill_id: order for order in harder}
    orders = (*(changed.get(order.kill.kill_id, order) for order in state.orders), *taken)
    withheld: tuple[str, ...] = ()
    if beyond and said.token_ids is not None:
        # Nothing was made here since: what the proxy no longer has was revoked, as far as we can know.
        there = frozenset(said.token_ids)
        withheld = tuple(t.token_id for t in state.tokens.values() if t.token_id not in there)
    kept = tuple(o.kill.kill_id for o in state.orders if o.kill.kill_id not in theirs)
    before = pending or Recovery(names[1], now, AHEAD, state.revision)
    seen = max(said.revision, before.seen_revision or 0) if ahead else before.seen_revision
    recovery = replace(
        before,
        version=before.version + 1,
        seen_revision=seen,
        proxies=_with(before.proxies, (said.proxy_id,)),
        taken=_with(before.taken, [order.kill.kill_id for order in taken]),
        kept=_with(before.kept, kept if ahead else ()),
        withheld=_with(before.withheld, withheld),
    )
    epoch = names[0] if same_epoch else state.epoch
    fresh_ids, harder_ids = tuple(k.kill_id for k in fresh), tuple(changed)
    details = {
        "recovery_id": recovery.recovery_id,
        "proxy_id": said.proxy_id,
        "proxy_revision": said.revision,
        "store_revision": state.revision,
        "orders_taken": list(fresh_ids[:NAMED_MOST]),
        "orders_taken_total": len(fresh_ids),
        "orders_strengthened": list(harder_ids[:NAMED_MOST]),
        "tokens_withheld": list(withheld[:NAMED_MOST]),
        "tokens_withheld_total": len(withheld),
        "epoch": epoch,
        "revision": revision,
    }
    event = NewEvent(
        "system.recovery", now, RECOVERY, None, recovery.why, details, (*fresh_ids, *harder_ids)
    )
    said_by = f"taken over from proxy {said.proxy_id}, which enforced it: the store had lost it"
    notes = tuple(Note(kill_id, now, RECOVERY.name, said_by) for kill_id in fresh_ids)
    return Change(
        replace(state, epoch=epoch, revision=revision, orders=orders, recovery=recovery),
        recovery,
        put=(*taken, *harder, *notes, recovery),
        events=(event,),
        delta=Delta(
            state.revision,
            revision,
            kills=tuple(order.kill for order in (*taken, *harder)),
            revoked=withheld,
        ),
    )


def note_cut_short(state: State, recovery_id: str, now: datetime) -> Change[Recovery]:
    """The store was found without its log: nobody may think that it is whole, even if no proxy knows more."""
    pending = state.recovery
    recovery = pending or Recovery(recovery_id, now, CUT_SHORT, state.revision)
    recovery = replace(recovery, why=CUT_SHORT, version=recovery.version + 1)
    details = {"recovery_id": recovery.recovery_id, "store_revision": state.revision}
    event = NewEvent("system.recovery", now, RECOVERY, None, CUT_SHORT, details)
    return Change(replace(state, recovery=recovery), recovery, put=(recovery,), events=(event,))


def accept(
    state: State, recovery_id: str, version: int, actor: Actor, now: datetime
) -> Change[Recovery]:
    """Be a whole store again: what was found is how it is from now on, and withheld tokens are valid.

    NotThereError when nothing waits for that; ConflictError when more was found than whoever accepts has seen.
    """
    pending = state.recovery
    if pending is None or pending.recovery_id != recovery_id:
        raise NotThereError("there is no such recovery that waits to be accepted")
    if pending.version != version:
        raise ConflictError(
            "more was found since you looked: see `haltwire recover`, then accept that"
        )
    accepted = replace(pending, accepted_at=now, accepted_by=actor.name)
    given = tuple(t.rule for t in state.tokens.values() if t.token_id in pending.withheld)
    revision = state.revision + bool(given)
    details = {"recovery_id": recovery_id, "accepted": True, "revision": revision}
    return Change(
        replace(state, revision=revision, recovery=None),
        accepted,
        put=(accepted,),
        events=(NewEvent("system.recovery", now, actor, None, "accepted", details),),
        delta=Delta(state.revision, revision, tokens=given) if given else None,
    )


def _check(fresh: tuple[Kill, ...], pending: Recovery | None) -> None:
    if len(fresh) + len(pending.taken if pending else ()) > TAKEN_MOST:
        raise TooMuchError(f"it names more than {TAKEN_MOST} orders that the store never had")
    for kill in fresh:
        if not _KILL_ID.fullmatch(kill.kill_id):
            raise TooMuchError("it names an order by what is no id of ours")


def _either(ours: Kill, theirs: Kill | None) -> Kill:
    """An order that stops what either of the two stops."""
    if theirs is None or theirs.selector != ours.selector:
        return ours
    both = strengthened(ours, _plain(theirs))
    # What both leave out may stay left out.
    return replace(both, excepted=tuple(e for e in ours.excepted if e in theirs.excepted))


def _plain(kill: Kill) -> Kill:
    """A mode of a later day is enforced as a cut."""
    return kill if kill.mode in MODES else replace(kill, mode=CUT)


def _with(before: tuple[str, ...], more: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*before, *more)))
