"""What this proxy enforces: the view in force, the lease on it, and what a message changes.

No clock and no socket: messages and `now_boot` (CLOCK_BOOTTIME, seconds) are arguments. A reader
takes `Replica.view` once per decision; a message swaps in a new one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from haltwire.wire.messages import Delta, Renewed, Snapshot, TokenRule
from haltwire.wire.names import AgentRef
from haltwire.wire.orders import Kill, deciding_kill

# Above what one worker serves at once; a decision is a few hundred bytes.
_MAX_DECISIONS = 10_000


@dataclass(frozen=True, slots=True)
class View:
    """All that is enforced as of one revision."""

    epoch: str
    revision: int
    orders: tuple[Kill, ...]
    tokens: Mapping[str, TokenRule]
    "By the SHA-256 digest of the secret."
    token_ids: frozenset[str]
    by_agent: Mapping[tuple[str, ...], tuple[Kill, ...]] = field(repr=False, compare=False)
    "The orders whose selector names one agent, by its segments."
    globs: tuple[Kill, ...] = field(repr=False, compare=False)
    "All other orders."
    _decisions: dict[tuple[AgentRef, str], Kill | None] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def deciding(self, agent: AgentRef, instance: str) -> Kill | None:
        """The kill that stops this instance, or None. Remembered, so that many orders cost nothing."""
        key = (agent, instance)
        try:
            return self._decisions[key]
        except KeyError:
            pass
        if len(self._decisions) >= _MAX_DECISIONS:
            self._decisions.clear()
        candidates = (*self.by_agent.get(agent.segments, ()), *self.globs)
        kill = self._decisions[key] = deciding_kill(candidates, agent, instance)
        return kill


@dataclass(frozen=True, slots=True)
class Change:
    """What an applied message means for live connections and for its acknowledgement."""

    kills: tuple[Kill, ...] = ()
    "Orders whose live connections are to be severed: new, strengthened, or issued and lifted unseen."
    acknowledge: tuple[str, ...] = ()
    "Ids of the orders that this message put in force or changed."
    revoked: tuple[str, ...] = ()
    "Ids of tokens whose live connections are to be severed."
    everything: bool = False
    "Another epoch: every live connection was admitted under a store that is no more."


NO_CHANGE = Change()


class Replica:
    """The view in force and its lease. Without a view, or beyond the lease, nothing may pass."""

    def __init__(self) -> None:
        self.view: View | None = None
        self.needs_snapshot = True
        "Whether a delta is missing, or nothing has been applied yet: only a snapshot helps."
        self._lease_end_boot = 0.0

    def apply(self, message: Snapshot | Delta) -> Change:
        """Put a message in force; what cannot be applied changes nothing."""
        if isinstance(message, Snapshot):
            return self._apply_snapshot(message)
        return self._apply_delta(message)

    def renewed(self, message: Renewed, now_boot: float) -> None:
        """Take a lease, if it is for what is in force here. It never shortens an earlier one.

        An earlier lease stays good because the control server counts on the longest it has granted.
        """
        view = self.view
        if view is None or self.needs_snapshot:
            return
        if message.epoch != view.epoch or message.revision > view.revision:
            return
        if not message.sent_at_boot <= now_boot:
            return  # an answer to a question that was not asked yet (or NaN)
        lease_ms = message.lease_ms - max(0, message.view_age_ms)
        self._lease_end_boot = max(self._lease_end_boot, message.sent_at_boot + lease_ms / 1000)

    def lease_left(self, now_boot: float) -> float:
        """Seconds for which traffic may pass; 0.0 when none may."""
        if self.view is None:
            return 0.0
        return max(0.0, self._lease_end_boot - now_boot)

    def _apply_snapshot(self, message: Snapshot) -> Change:
        old = self.view
        same_epoch = old is not None and old.epoch == message.epoch
        if old is not None and same_epoch and message.revision < old.revision:
            return NO_CHANGE
        before = {order.kill_id: order for order in old.orders} if old and same_epoch else {}
        self.view = view = _indexed(message)
        self.needs_snapshot = False
        if not same_epoch:
            self._lease_end_boot = 0.0
        changed = [order for order in view.orders if before.get(order.kill_id) != order]
        severed = [order for order in changed if _stops_more(before.get(order.kill_id), order)]
        return Change(
            kills=(*severed, *message.lifted_since),
            acknowledge=tuple(order.kill_id for order in changed),
            revoked=_lost(old, view) if old is not None else (),
            everything=old is not None and not same_epoch,
        )

    def _apply_delta(self, message: Delta) -> Change:
        old = self.view
        if old is None or message.revision <= old.revision:
            return NO_CHANGE
        if message.previous != old.revision:
            self.needs_snapshot = True
            return NO_CHANGE
        before = {order.kill_id: order for order in old.orders}
        self.view = view = _advanced(old, before, message)
        return Change(
            kills=tuple(o for o in message.kills if _stops_more(before.get(o.kill_id), o)),
            acknowledge=tuple(dict.fromkeys(order.kill_id for order in message.kills)),
            revoked=tuple(dict.fromkeys((*message.revoked, *_lost(old, view)))),
        )


def _indexed(message: Snapshot) -> View:
    orders = {order.kill_id: order for order in message.orders}
    by_agent, globs = _with_orders({}, (), orders.values())
    return View(
        message.epoch,
        message.revision,
        tuple(orders.values()),
        {rule.digest: rule for rule in message.tokens},
        frozenset(rule.token_id for rule in message.tokens),
        by_agent,
        globs,
    )


def _advanced(old: View, before: Mapping[str, Kill], message: Delta) -> View:
    # Touches only what the delta names: to index 10,000 orders anew takes 10 ms.
    touched = {order.kill_id for order in message.kills} | set(message.lifted)
    after = {**before, **{order.kill_id: order for order in message.kills}}
    for kill_id in message.lifted:
        after.pop(kill_id, None)
    kept = dict(old.by_agent)
    for kill_id in touched & before.keys():
        segments = before[kill_id].selector.segments
        if rest := _without(kept.get(segments, ()), touched):
            kept[segments] = rest
        else:
            kept.pop(segments, None)
    added = [order for kill_id in touched if (order := after.get(kill_id))]
    by_agent, globs = _with_orders(kept, _without(old.globs, touched), added)
    tokens, token_ids = old.tokens, old.token_ids
    if message.tokens or message.revoked:
        replaced = {rule.token_id for rule in message.tokens}.union(message.revoked)
        rules = [rule for rule in old.tokens.values() if rule.token_id not in replaced]
        rules += [rule for rule in message.tokens if rule.token_id not in message.revoked]
        tokens = {rule.digest: rule for rule in rules}
        token_ids = frozenset(rule.token_id for rule in rules)
    return View(
        old.epoch, message.revision, tuple(after.values()), tokens, token_ids, by_agent, globs
    )


def _with_orders(
    by_agent: Mapping[tuple[str, ...], tuple[Kill, ...]],
    globs: tuple[Kill, ...],
    orders: Iterable[Kill],
) -> tuple[Mapping[tuple[str, ...], tuple[Kill, ...]], tuple[Kill, ...]]:
    more: dict[tuple[str, ...], list[Kill]] = {}
    more_globs = []
    for order in orders:
        if any("*" in segment for segment in order.selector.segments):
            more_globs.append(order)
        else:
            more.setdefault(order.selector.segments, []).append(order)
    joined = {segments: (*by_agent.get(segments, ()), *added) for segments, added in more.items()}
    return {**by_agent, **joined}, (*globs, *more_globs)


def _without(orders: tuple[Kill, ...], kill_ids: set[str]) -> tuple[Kill, ...]:
    return tuple(order for order in orders if order.kill_id not in kill_ids)


def _stops_more(old: Kill | None, new: Kill) -> bool:
    """Whether live connections that `old` let be must now be severed."""
    return (
        old is None
        or new.selector != old.selector
        or new.mode != old.mode
        or not set(old.excepted) <= set(new.excepted)
    )


def _lost(old: View, new: View) -> tuple[str, ...]:
    """Ids of tokens that are gone, or that no longer allow what they did."""
    if old.tokens is new.tokens:
        return ()
    lost = []
    for digest, rule in old.tokens.items():
        now = new.tokens.get(digest)
        if now is None or (now.token_id, now.selector) != (rule.token_id, rule.selector):
            lost.append(rule.token_id)
    return tuple(lost)
