"""What this proxy enforces: the view in force, the lease on it, and what a message changes.

No clock and no socket: messages and `now_boot` (CLOCK_BOOTTIME, seconds) are arguments. A reader
takes `Replica.view` once per decision; a message swaps in a new one.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field

from haltwire.wire.messages import Delta, Renewed, Snapshot, TokenRule
from haltwire.wire.names import AgentRef
from haltwire.wire.orders import DRAIN, HOLD, Kill, deciding_kill, live_mode

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
        """The order that decides on a new request, or None. Remembered, so that many orders cost nothing."""
        key = (agent, instance)
        try:
            return self._decisions[key]
        except KeyError:
            pass
        if len(self._decisions) >= _MAX_DECISIONS:
            self._decisions.clear()
        kill = self._decisions[key] = deciding_kill(self._about(agent), agent, instance)
        return kill

    def live_mode(self, agent: AgentRef, instance: str, drained: Container[str]) -> str | None:
        """What becomes of the instance's live connections; `drained`: drains whose grace is over."""
        matching = (order for order in self._about(agent) if order.matches(agent, instance))
        return live_mode(matching, drained)

    def _about(self, agent: AgentRef) -> tuple[Kill, ...]:
        return (*self.by_agent.get(agent.segments, ()), *self.globs)


@dataclass(frozen=True, slots=True)
class Change:
    """What an applied message means for live connections and for its acknowledgement."""

    touched: tuple[Kill, ...] = ()
    "Orders put in force, changed or lifted: what becomes of the live connections they match is asked anew."
    missed: tuple[Kill, ...] = ()
    "Cuts and drains issued and lifted unseen: the live connections that they match are to be severed."
    lifted: tuple[Kill, ...] = ()
    "Orders that are no longer in force."
    acknowledge: tuple[str, ...] = ()
    "Ids of the orders that this message put in force or changed."
    revoked: tuple[str, ...] = ()
    "Ids of tokens whose live connections are to be severed."
    everything: bool = False
    "Another epoch: every live connection was admitted under a store that is no more."


NO_CHANGE = Change()


class Replica:
    """The view in force and its lease. Without a view, or beyond the lease, nothing may pass."""

    def __init__(self, started_boot: float = 0.0) -> None:
        self.view: View | None = None
        self.needs_snapshot = True
        "Whether a delta is missing, or nothing has been applied yet: only a snapshot helps."
        self._lease_end_boot = started_boot
        self._drain_ends: dict[str, float] = {}
        "When the grace of each drain in force is over, by its id: counted from when it was applied here."

    def apply(self, message: Snapshot | Delta, now_boot: float) -> Change:
        """Put a message in force; what cannot be applied changes nothing."""
        if isinstance(message, Snapshot):
            change = self._apply_snapshot(message, now_boot)
        else:
            change = self._apply_delta(message)
        self._note_drains(change, now_boot)
        return change

    def drained(self, now_boot: float) -> frozenset[str]:
        """Ids of the drains whose grace is over."""
        return frozenset(kill_id for kill_id, end in self._drain_ends.items() if end <= now_boot)

    def next_drain_end(self, now_boot: float) -> float | None:
        """Seconds until the next grace is over; None when none runs."""
        running = [end - now_boot for end in self._drain_ends.values() if end > now_boot]
        return min(running, default=None)

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

    @property
    def lease_end_boot(self) -> float:
        """When the lease ends or has ended; before the first one, when this proxy began."""
        return self._lease_end_boot

    def lease_left(self, now_boot: float) -> float:
        """Seconds for which traffic may pass; 0.0 when none may."""
        if self.view is None:
            return 0.0
        return max(0.0, self._lease_end_boot - now_boot)

    def _apply_snapshot(self, message: Snapshot, now_boot: float) -> Change:
        old = self.view
        same_epoch = old is not None and old.epoch == message.epoch
        if old is not None and same_epoch and message.revision < old.revision:
            return NO_CHANGE
        before = {order.kill_id: order for order in old.orders} if old and same_epoch else {}
        self.view = view = _indexed(message)
        self.needs_snapshot = False
        if not same_epoch:
            self._lease_end_boot = min(self._lease_end_boot, now_boot)
        changed = [order for order in view.orders if before.get(order.kill_id) != order]
        kept = {order.kill_id for order in view.orders}
        lifted = tuple(order for kill_id, order in before.items() if kill_id not in kept)
        return Change(
            touched=(*changed, *lifted),
            missed=tuple(o for o in message.lifted_since if _severs(o, before.get(o.kill_id))),
            lifted=lifted,
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
        lifted = tuple(before[kill_id] for kill_id in message.lifted if kill_id in before)
        return Change(
            touched=(*message.kills, *lifted),
            missed=tuple(
                o for o in message.kills if o.kill_id in message.lifted and o.mode != HOLD
            ),
            lifted=lifted,
            acknowledge=tuple(dict.fromkeys(order.kill_id for order in message.kills)),
            revoked=tuple(dict.fromkeys((*message.revoked, *_lost(old, view)))),
        )

    def _note_drains(self, change: Change, now_boot: float) -> None:
        if change.everything:
            self._drain_ends.clear()
        for order in change.touched:
            if order.mode != DRAIN:
                self._drain_ends.pop(order.kill_id, None)
                continue
            end = now_boot + (order.grace_s or 0.0)
            # A drain ordered again can only end sooner.
            self._drain_ends[order.kill_id] = min(end, self._drain_ends.get(order.kill_id, end))
        for order in change.lifted:
            self._drain_ends.pop(order.kill_id, None)


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


def _severs(missed: Kill, known: Kill | None) -> bool:
    """Whether an order that was lifted unseen has to sever what it covered; `known`: as it was enforced here."""
    return missed.mode != HOLD and missed != known


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
